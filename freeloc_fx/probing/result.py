"""From the units of a probe to a profile, and from a profile of several lengths to one of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.errors import ProfileError
from freeloc_fx.method.build import parse
from freeloc_fx.method.checks import is_whole
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.planning.profile import Profile
from freeloc_fx.planning.profile_json import plain

from .observe import Intervention
from .rule import APART, assign, thresholds
from .statistics import ProbeSettings, matching_temperature
from .trials import choose

__all__ = ["Unit", "assignment", "for_length", "made_profile", "measured_lengths", "settled", "uniform"]


_CONFIG = ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "in_channels")


@dataclass(frozen=True)
class Unit:
    """One generation of a probe.

    Args:
        kind: "observe", "shift" or "window".
        seed: of the generation.
        frames: as `generate` counts them.
        intervention: what is done to one layer, if anything.
    """

    kind: str
    seed: int
    frames: int
    intervention: Intervention | None = None

    @property
    def name(self) -> str:
        """What journals call the unit."""
        name = f"{self.kind} seed {self.seed} frames {self.frames}"
        if (what := self.intervention) is not None:
            name += f" layer {what.layer}"
            name += f" shift {what.shift}" if what.shift is not None else f" window {what.window}"
        return name


Results = Mapping[str, Mapping[str, Any]]


def made_profile(
    model: nn.Module,
    job: Mapping[str, Any],
    targets: Sequence[int],
    units: Sequence[Unit],
    results: Results,
    temperature: bool,
) -> Profile:
    """Make the profile for targets[0]; `provenance` has the job, and under "lengths" each target's measurements.

    Args:
        model: the probed model.
        job: what all units depend on.
        targets: frames as `generate` counts them.
        units: all units of the probe.
        results: of each unit, by its name.
        temperature: whether layers that keep every pair get the matched temperature.

    Returns:
        The profile.
    """
    seeds, mode, asked = job["seeds"], job["mode"], job["trained_frames"]
    base = [results[Unit("observe", seed, asked).name] for seed in seeds]
    trained, text = base[0]["frames"], base[0]["text"]
    lengths: dict[str, Any] = {}
    for target in targets:
        seen = [results[Unit("observe", seed, target).name] for seed in seeds]
        sensitivities, matched, ald = {}, {}, {}
        for layer in sorted(int(layer) for layer in seen[0]["layers"]):
            at_target = [s["layers"][str(layer)] for s in seen]
            goal = float(np.mean([b["layers"][str(layer)]["entropy"]["mean"] for b in base]))
            entropies = np.mean([o["entropies"]["mean"] for o in at_target], 0)
            matched[layer] = matching_temperature(entropies, goal)
            ald[layer] = _mean([o["ald"] for o in at_target])[0]
            if mode == "full":
                position = _full_position(layer, units, results)
                context = _full_context(layer, target, units, results)
            else:
                position = _mean([b["layers"][str(layer)]["output"] for b in base])
                context = _mean([o["context"] for o in at_target])
            sensitivities[layer] = Sensitivity(position[0], context[0], position[1], context[1])
        lengths[str(seen[0]["frames"])] = {
            "layers": {str(k): v for k, v in assign(sensitivities, temperature, text).items()},
            "matched_temperature": {str(k): v for k, v in matched.items()},
            "temperature": "entropy-matched" if temperature else "closed formula",
            "ald": {str(k): v for k, v in ald.items()},
            "sensitivities": {str(k): asdict(v) for k, v in sensitivities.items()},
            "thresholds": dict(zip(("position", "context"), thresholds(sensitivities), strict=True)),
        }
    config = getattr(model, "config", {})
    config = config if isinstance(config, Mapping) else {}
    first = next(iter(lengths))
    settings = job["settings"] or asdict(ProbeSettings.for_length(trained))
    provenance = {
        "source": f"probed, {mode} mode",
        "position": "how far the layer's output moves when its keys' frames are shifted, at the trained length"
        if mode == "observe"
        else "loss of the reward when the layer's keys are shifted"
        if job["rewarded"]
        else "ALD of the layer's logits when its keys are shifted",
        "rule": "VRPR everywhere; TSA where the context sensitivity is in the upper of two groups "
        f"at least a factor of {APART} apart, or everywhere where "
        "the sensitivities are one group"
        + "; entropy-matched temperature where there is no TSA" * temperature
        + "; text meets video at places squeezed into the trained length" * text,
        **job,
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "lengths": lengths,
    }
    profile = Profile(
        trained_frames=trained,
        layers="direct",
        name=f"probed ({mode})",
        model={"class": type(model).__name__, "config": {k: config[k] for k in _CONFIG if k in config}},
        layer_count=len(layer_table(model)) or len(lengths[first]["layers"]),  # layers without such attentions count
        provenance=provenance,
    )
    return _with_lengths(profile, lengths, int(first))


def _with_lengths(profile: Profile, lengths: Mapping[str, Any], first: int) -> Profile:
    """The profile with the layers of these measured lengths, `first` in front."""
    assigned = {int(frames): _assigned(found) for frames, found in lengths.items()}
    alike = all(item == next(iter(assigned.values())) for item in assigned.values())
    provenance = {**plain(profile.provenance), "lengths": dict(lengths)}
    return for_length(replace(profile, lengths=None if alike else assigned, provenance=provenance), first)


def assignment(profile: Profile, frames: int) -> str:
    """What a measured length's layers got, in a word: the strategy where they are alike, else a hash of all of them.

    Args:
        profile: a probed one.
        frames: latent frames of a measured length.

    Returns:
        The strategy or the hash.
    """
    found = _assigned((profile.provenance or {})["lengths"][str(frames)])
    if isinstance(found["layers"], str):
        return str(found["layers"])
    return "layers " + hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def uniform(profile: Profile, frames: int, strategy: str) -> Profile:
    """Make the profile for a measured length as if the rule had given every layer one strategy.

    Args:
        profile: a probed one.
        frames: latent frames of a measured length.
        strategy: its name.

    Returns:
        The profile.
    """
    lengths = plain(profile.provenance)["lengths"]
    found = lengths[str(frames)]
    layers = dict.fromkeys(found["layers"], strategy)
    return _with_lengths(profile, {str(frames): {**found, "layers": layers}}, frames)


def settled(profile: Profile, rewards: Mapping[int, Mapping[str, Sequence[float]]]) -> Profile:
    """Give the profile the strategies that trials found better than the rule's; what was tried goes to the provenance.

    Args:
        profile: a probed one.
        rewards: measured length -> strategy -> reward of each seed, the rule's `assignment` among them.

    Returns:
        The profile.
    """
    lengths = plain(profile.provenance)["lengths"]
    for frames, tried in rewards.items():
        found, ruled = lengths[str(frames)], assignment(profile, frames)
        chosen, trials = choose(tried, ruled)
        found["rule"] = found["layers"]
        found["trials"] = {name: asdict(trial) for name, trial in trials.items()}
        if chosen != ruled:
            found["layers"] = dict.fromkeys(found["layers"], chosen)
    first = (profile.provenance or {})["target_frames"]
    made = _with_lengths(profile, lengths, int(first))
    said = plain(made.provenance)
    said["rule"] += "; where a strategy that was tried in every layer beat that by twice the standard error, that one"
    return replace(made, provenance=said)


def _assigned(found: Mapping[str, Any]) -> dict[str, Any]:
    """Layers of a measured length, one name where they are all alike, with the matched temperatures of those that have
    one; without any where a candidate's `+temp` is to be solved."""
    layers = {int(layer): name for layer, name in found["layers"].items()}
    matched = {}
    if found.get("temperature") != "closed formula":  # older profiles do not say, and had matched ones only
        matched = {i: found["matched_temperature"][str(i)] for i, name in layers.items() if "temp" in parse(name)}
    names = set(layers.values())
    made: dict[str, Any] = {"layers": names.pop() if len(names) == 1 else layers}
    return made | ({"temperature": matched} if matched else {})


def measured_lengths(profile: Profile) -> tuple[int, ...]:
    """Latent frames of the targets that a probed profile carries; empty for a profile of another origin.

    Args:
        profile: any profile.

    Returns:
        The lengths in the order in which they were asked for.
    """
    return tuple(int(frames) for frames in (profile.provenance or {}).get("lengths", {}))


def for_length(profile: Profile, frames: int) -> Profile:
    """A probed profile with what was found for a target length in front: its strategies, temperatures, sensitivities.

    A model that runs takes the nearest of `lengths` by itself; this is for looking at one, and for its sensitivities.

    Args:
        profile: from `probe`.
        frames: latent frames; the measured length of the nearest ratio is taken.

    Returns:
        The profile.

    Raises:
        ProfileError: the profile carries no measured lengths.
    """
    lengths = measured_lengths(profile)
    if not lengths:
        raise ProfileError(
            f"provenance.lengths: expected the measurements of a probe in profile {profile.name!r}, found none"
        )
    if not is_whole(frames, 1):
        raise ProfileError(f"frames: expected a positive integer, found {frames!r}")
    nearest = min(lengths, key=lambda n: abs(math.log(n / frames)))
    provenance = plain(profile.provenance)
    found = provenance["lengths"][str(nearest)]
    assigned = _assigned(found)
    return replace(
        profile,
        layers=assigned["layers"],
        temperature=assigned.get("temperature"),
        sensitivities={int(layer): item for layer, item in found["sensitivities"].items()},
        provenance={**provenance, "target_frames": nearest},
    )


Measured = tuple[float, "float | None"]


def _mean(seeds: Sequence[Mapping[str, Any]]) -> Measured:
    """Mean over seeds of means over rows, and its standard error from the rows."""
    mean = float(np.mean([p["mean"] for p in seeds]))
    return mean, float(np.sqrt(np.sum([p["error"] ** 2 for p in seeds])) / len(seeds))


def _full_position(layer: int, units: Sequence[Unit], results: Results) -> Measured:
    """Relative loss of reward where there is one, else ALD of the shifted generations; error over shifts and seeds."""
    losses = []
    for unit in units:
        if unit.kind != "shift" or unit.intervention is None or unit.intervention.layer != layer:
            continue
        base, moved = results[Unit("observe", unit.seed, unit.frames).name], results[unit.name]
        if base["reward"] is not None:
            losses.append((base["reward"] - moved["reward"]) / max(abs(base["reward"]), 1e-6))
        else:
            losses.append(moved["layers"][str(layer)]["ald"]["mean"])
    return float(np.mean(losses)), _error(losses)


def _full_context(layer: int, target: int, units: Sequence[Unit], results: Results) -> Measured:
    """S = |H' - H| / |H| between the generation with a window in this layer and the one without; error over seeds."""
    values = []
    for unit in units:
        if unit.kind != "window" or unit.frames != target:
            continue
        if unit.intervention is not None and unit.intervention.layer == layer:
            base = results[Unit("observe", unit.seed, target).name]["layers"][str(layer)]["entropy"]["mean"]
            windowed = results[unit.name]["layers"][str(layer)]["entropy"]["mean"]
            values.append(abs(windowed - base) / max(abs(base), 1e-6))
    return float(np.mean(values)), _error(values)


def _error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
