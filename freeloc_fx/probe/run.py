"""The probe: generate while observing, turn what was seen into a profile.

Two modes. "observe" watches one generation at the target length and one at the trained length; every site computes on
sampled rows what a shift and a window would do to its own logits. "full" is the paper's: one generation for each layer
and shift, and one for each layer with a window, with a reward on the video.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..backend import Backend, layer_table
from ..errors import CaptureError, ProfileError
from ..profile import Profile, Sensitivity
from ..transform import attach, restore, state_of
from .journal import Journal
from .observe import Intervention, Recorder
from .rule import assign
from .statistics import ProbeSettings, matching_temperature

__all__ = ["probe"]

Generate = Callable[[nn.Module, int, int], Any]
Reward = Callable[[Any, int], float]


def probe(
    pipeline: Any,
    *,
    prompts: Sequence[str] = (),
    generate: Generate | None = None,
    trained_frames: int | None = None,
    target_frames: int | None = None,
    mode: Literal["observe", "full"] = "observe",
    seeds: Sequence[int] = (0,),
    settings: ProbeSettings | None = None,
    every: int = 4,
    steps: int | None = None,
    height: int | None = None,
    width: int | None = None,
    reward: Reward | None = None,
    journal: str | Path | None = None,
    on_unit: Callable[[int, int, str], None] | None = None,
) -> Profile:
    """Measure a model's layers and return a profile with sensitivities, temperatures, strategies and provenance.

    Args:
        pipeline: a diffusers video pipeline; or, with `generate`, any model.
        prompts: for a pipeline, one for each seed in turn.
        generate: f(model, frames, seed) -> video; frames in latent frames for a pipeline's model.
        trained_frames, target_frames: latent frames; by default those of the model's shipped profile, and four times
        the
            trained length (4 (L - 1) + 1).
        mode: "observe" or "full".
        seeds: one generation of each kind for each seed; the standard errors are over rows and seeds.
        every: observe each site on every n-th call.
        steps, height, width: denoising steps and pixels for a pipeline, default its own.
        reward: for "full", (video, seed) -> quality, larger = better; without one the position sensitivity is ALD.
        journal: folder of finished units; the same call goes on from it after a kill.
        on_unit: called as on_unit(done, total, name) after each unit.

    Raises:
        ProfileError: trained_frames is not given and no shipped profile fits; the journal is another probe's.
        CaptureError: no video self-attention was found.
    """
    model = pipeline if isinstance(pipeline, nn.Module) else pipeline.transformer
    if state_of(model) is not None:
        model = restore(model)
    if trained_frames is None:
        trained_frames = Profile.for_model(model).trained_frames
    if isinstance(trained_frames, bool) or not isinstance(trained_frames, int) or trained_frames < 2:
        raise ProfileError(f"trained_frames: expected an integer of at least 2, found {trained_frames!r}")
    target = target_frames if target_frames is not None else 4 * (trained_frames - 1) + 1
    if target <= trained_frames:
        raise ProfileError(f"target_frames: expected more than the {trained_frames} trained frames, found {target}")
    if mode not in ("observe", "full"):
        raise ProfileError(f"mode: expected 'observe' or 'full', found {mode!r}")
    if generate is None:
        if isinstance(pipeline, nn.Module):
            raise ProfileError("generate: a model without its pipeline needs generate=f(model, frames, seed)")
        if not prompts:
            raise ProfileError("prompts: a pipeline needs at least one prompt")
        generate = _of_pipeline(pipeline, list(prompts), list(seeds), steps, height, width)
    settings = settings or ProbeSettings.for_length(trained_frames)
    job = {
        "mode": mode, "trained_frames": trained_frames, "target_frames": target, "seeds": list(seeds),
        "prompts": list(prompts), "every": every, "steps": steps, "height": height, "width": width,
        "settings": _plain(asdict(settings)), "class": type(model).__name__, "torch": torch.__version__,
    }  # fmt: skip
    kept = Journal(Path(journal) if journal is not None else None, job)
    run = _Run(model, generate, settings, every, reward)
    units: list[tuple[str, int, int, Intervention | None]] = [
        ("observe", seed, frames, None) for seed in seeds for frames in (trained_frames, target)
    ]
    layers = None
    if mode == "full":
        first = kept.get(_name(*units[0]), lambda: run.unit(*units[0]))
        layers = sorted(int(layer) for layer in first["layers"])
        units += [
            ("shift", seed, trained_frames, Intervention(layer, shift=shift))
            for seed in seeds for layer in layers for shift in settings.shifts
        ]  # fmt: skip
        units += [
            ("window", seed, target, Intervention(layer, window=settings.window)) for seed in seeds for layer in layers
        ]
    results = {}
    for index, unit in enumerate(units):
        results[_name(*unit)] = kept.get(_name(*unit), lambda unit=unit: run.unit(*unit))  # type: ignore[misc]
        if on_unit is not None:
            on_unit(index + 1, len(units), _name(*unit))
    return _profile(model, job, units, results)


class _Run:
    def __init__(
        self, model: nn.Module, generate: Generate, settings: ProbeSettings, every: int, reward: Reward | None
    ) -> None:
        self.model, self.generate, self.settings, self.every, self.reward = model, generate, settings, every, reward

    def unit(self, kind: str, seed: int, frames: int, intervention: Intervention | None) -> dict[str, Any]:
        """One generation: what each layer showed, as means, standard errors and row counts; the reward, if any."""
        recorder = Recorder(uuid.uuid4().hex, self.settings, seed, self.every, intervention=intervention)
        try:
            with observing(self.model, recorder) as model:
                video = self.generate(model, frames, seed)
            seen = recorder.stacked()
        finally:
            recorder.close()
        if not seen:
            raise CaptureError("probe: the generation ran without calling the observed model")
        layers = {}
        for layer, quantities in sorted(seen.items()):
            values = {}
            for name, rows in quantities.items():
                mean = rows.mean(0)
                error = rows.std(0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.zeros_like(mean)
                values[name] = {"mean": mean.tolist(), "error": error.tolist(), "rows": len(rows)}
            layers[str(layer)] = values
        score = float(self.reward(video, seed)) if self.reward is not None else None
        return {"layers": layers, "reward": score}


@contextmanager
def observing(model: nn.Module, recorder: Recorder) -> Any:
    """The model with its video self-attentions watched by a recorder; computes what the model computes."""
    everything = Profile(trained_frames=2, layers="direct", name="observed")
    backend = Backend(everything, layer_table(model), None, recorder=recorder)
    yield attach(copy.copy(model), model, backend)


def _of_pipeline(
    pipeline: Any, prompts: list[str], seeds: list[int], steps: int | None, height: int | None, width: int | None
) -> Generate:
    from ..generate import generate as run
    from ..request import Facts

    facts = Facts.of(pipeline)

    def generate(model: nn.Module, frames: int, seed: int) -> Any:
        before = pipeline.transformer
        pipeline.transformer = model
        try:
            prompt = prompts[seeds.index(seed) % len(prompts)]
            length = (frames - 1) * facts.temporal + 1
            return run(pipeline, prompt, frames=length, height=height, width=width, steps=steps, seed=seed).frames
        finally:
            pipeline.transformer = before

    return generate


def _name(kind: str, seed: int, frames: int, intervention: Intervention | None) -> str:
    name = f"{kind} seed {seed} frames {frames}"
    if intervention is not None:
        name += f" layer {intervention.layer}"
        name += f" shift {intervention.shift}" if intervention.shift is not None else f" window {intervention.window}"
    return name


def _plain(value: Any) -> Any:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}


def _profile(
    model: nn.Module, job: Mapping[str, Any], units: Sequence[tuple[Any, ...]], results: Mapping[str, Any]
) -> Profile:
    trained, target, seeds = job["trained_frames"], job["target_frames"], job["seeds"]

    def observed(seed: int, frames: int) -> dict[str, Any]:
        layers: dict[str, Any] = results[_name("observe", seed, frames, None)]["layers"]
        return layers

    layers = sorted(int(layer) for layer in observed(seeds[0], target))
    sensitivities, temperature = {}, {}
    for layer in layers:
        key = str(layer)
        at_target = [observed(seed, target)[key] for seed in seeds]
        at_trained = [observed(seed, trained)[key] for seed in seeds]
        entropies = np.mean([o["entropies"]["mean"] for o in at_target], 0)
        temperature[layer] = matching_temperature(entropies, float(np.mean([o["entropy"]["mean"] for o in at_trained])))
        position = [o["position"] for o in at_target]
        context = [o["context"] for o in at_target]
        measured: list[tuple[float, float | None]] = [_mean(position), _mean(context)]
        if job["mode"] == "full":
            measured = [_full_position(layer, units, results), _full_context(layer, units, results)]
        (p, p_error), (c, c_error) = measured
        sensitivities[layer] = Sensitivity(p, c, p_error, c_error)
    config = getattr(model, "config", {})
    keys = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")
    return Profile(
        trained_frames=trained,
        layers=assign(sensitivities),
        temperature=temperature,
        name=f"probed ({job['mode']})",
        model={
            "class": type(model).__name__,
            "config": {k: config[k] for k in keys if isinstance(config, Mapping) and k in config},
        },
        layer_count=len(layers),
        sensitivities=sensitivities,
        provenance={"source": f"probed, {job['mode']} mode", "rule": "context sensitivity in two groups", **job},
    )


def _mean(parts: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean over seeds of means over rows, and its standard error from the rows."""
    mean = float(np.mean([p["mean"] for p in parts]))
    return mean, float(np.sqrt(np.sum([p["error"] ** 2 for p in parts])) / len(parts))


def _full_position(layer: int, units: Sequence[Any], results: Mapping[str, Any]) -> tuple[float, float | None]:
    """Relative loss of reward where there is one, else ALD of the shifted generations; error over shifts and seeds."""
    losses = []
    for unit in units:
        kind, seed, frames, intervention = unit
        if kind != "shift" or intervention.layer != layer:
            continue
        base, moved = results[_name("observe", seed, frames, None)], results[_name(*unit)]
        if base["reward"] is not None:
            losses.append((base["reward"] - moved["reward"]) / max(abs(base["reward"]), 1e-6))
        else:
            losses.append(moved["layers"][str(layer)]["position"]["mean"])
    return float(np.mean(losses)), _error(losses)


def _full_context(layer: int, units: Sequence[Any], results: Mapping[str, Any]) -> tuple[float, float | None]:
    """S = |H' - H| / |H| between the generation with a window in this layer and the one without; error over seeds."""
    values = []
    for unit in units:
        kind, seed, frames, intervention = unit
        if kind == "window" and intervention.layer == layer:
            base = results[_name("observe", seed, frames, None)]["layers"][str(layer)]["entropy"]["mean"]
            windowed = results[_name(*unit)]["layers"][str(layer)]["entropy"]["mean"]
            values.append(abs(windowed - base) / max(abs(base), 1e-6))
    return float(np.mean(values)), _error(values)


def _error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
