"""The probe: generate while observing; `result` turns what was seen into a profile.

Two modes. "observe" watches one generation at the target length and one at the trained length; every site computes on
sampled rows what a shift would do to its own output and a window to its entropy. "full" is the paper's: one generation
for each layer and shift, and one for each layer with a window, with a reward on the video.
"""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from freeloc_fx.compiler.backend import Backend
from freeloc_fx.compiler.capture.attach import attach
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.compiler.capture.shallow import shallow_copy
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.compiler.transform import restore, transform
from freeloc_fx.errors import CaptureError, ProfileError, TransformError
from freeloc_fx.files import installed_version
from freeloc_fx.generation.components import check_pipeline
from freeloc_fx.generation.request import Facts, defaults
from freeloc_fx.generation.windows import windowed_model
from freeloc_fx.method.checks import is_whole
from freeloc_fx.planning.profile import Profile

from .journal import Units
from .observe import Intervention, Recorder
from .result import Unit, assignment, for_length, made_profile, measured_lengths, settled, uniform
from .statistics import ProbeSettings
from .trials import Candidates, check

__all__ = ["probe", "watched_copy", "weights_digest"]


Generate = Callable[[nn.Module, int, int], Any]


Reward = Callable[[Any, int], float]


def probe(
    pipeline: Any,
    *,
    prompts: Sequence[str] = (),
    generate: Generate | None = None,
    trained_frames: int | None = None,
    target_frames: int | None = None,
    lengths: Sequence[int] = (),
    temperature: bool = False,
    candidates: Candidates = (),
    mode: Literal["observe", "full"] = "observe",
    seeds: Sequence[int] = (0,),
    settings: ProbeSettings | None = None,
    every: int = 4,
    steps: int | None = None,
    height: int | None = None,
    width: int | None = None,
    guidance: float | None = None,
    reward: Reward | None = None,
    reward_name: str | None = None,
    journal: str | Path | None = None,
    on_unit: Callable[[int, int, str], None] | None = None,
) -> Profile:
    """Measure a model's layers and return a profile with sensitivities, temperatures, strategies and provenance.

    Args:
        pipeline: a diffusers video pipeline; or, with `generate`, any model.
        prompts: for a pipeline, one for each seed in turn.
        generate: f(model, frames, seed) -> video; frames in latent frames for a pipeline's model. Other transformers of
            the pipeline are as it finds them.
        trained_frames: latent frames of the training clips, by default those of the model's shipped profile.
        target_frames: latent frames, by default the first of `lengths`, or else four times the trained length (4 (L -
            1) + 1).
        lengths: further target lengths. Each is measured by its own generations; the profile is for target_frames and
            carries them all, `for_length` gives the profile for another one.
        temperature: layers that keep every pair get "+temp" with the temperature that gives their attention at the
            target length, at VRPR's positions, the entropy it has at the trained length. Without it a candidate's
            "+temp" is the closed formula.
        candidates: strategies to try in every layer beside the rule's assignment, at each target length, one generation
            for each seed: the best is taken where its reward is above the rule's by twice the standard error within
            seeds. Names, or name -> the target lengths at which it is tried. Needs a reward and at least three seeds.
        mode: "observe", one generation at each length for each seed, or "full", one for each layer and shift. By
            context, which decides, both ranked the layers of the embedded models alike; by position, which is only
            noted, those of one of the two (bench/README.md, "Probing").
        seeds: one generation of each kind and length for each seed; the standard errors are over rows and seeds.
        settings: what to shift and to hide, by default the paper's for the trained length.
        every: observe each site on every n-th call.
        steps: denoising steps for a pipeline, by default its own.
        height: pixels for a pipeline, by default its own.
        width: pixels for a pipeline, by default its own.
        guidance: guidance scale for a pipeline, by default its own. Probe at the one that videos are made with: both
            the layers' context and the rewards of candidates change with it.
        reward: for "full" and for candidates, (video, seed) -> quality, larger = better; "full" without one takes ALD
            for the position sensitivity.
        reward_name: what the reward is, so that a journal's rewards are not taken for those of another one.
        journal: folder of finished units; the same call goes on from it after a kill, and one with more lengths adds to
            it. It knows the model by its weights and the reward by its name, not what `generate` does.
        on_unit: called as on_unit(done, total, name) after each unit.

    Returns:
        The profile.

    Raises:
        StrategyError: a candidate that is not a strategy.
        ProfileError: a bad argument; trained_frames is not given and no shipped profile fits; the journal is another
            probe's.
        LengthError: the pipeline makes no video of such a length.
        CaptureError: no video self-attention was found.
        TransformError: the pipeline has no transformer, or a transformed one cannot be restored, see `restore`.
        DamagedFileError: a file of the journal does not hold what was written to it.
    """
    given = {"model": pipeline} if isinstance(pipeline, nn.Module) else check_pipeline(pipeline)
    for name, each in given.items():
        if windowed_model(each) is not None:
            raise TransformError(
                f"probe: {name} ({type(each).__name__}) runs in context windows, where it never sees a long clip; "
                "expected the model that context_windows was given"
            )
    (first, model), *more = [(name, _original(each)) for name, each in given.items()]
    others = dict(more) if generate is None else {}
    if trained_frames is None:
        trained_frames = Profile.for_model(model).trained_frames
    if not is_whole(trained_frames, 2):
        raise ProfileError(f"trained_frames: expected an integer of at least 2, found {trained_frames!r}")
    if target_frames is None:
        target_frames = lengths[0] if len(lengths) else 4 * (trained_frames - 1) + 1
    targets = list(dict.fromkeys([target_frames, *lengths]))
    for target in targets:
        if target <= trained_frames:
            raise ProfileError(f"target_frames: expected more than the {trained_frames} trained frames, found {target}")
    if mode not in ("observe", "full"):
        raise ProfileError(f"mode: expected 'observe' or 'full', found {mode!r}")
    if not len(seeds):
        raise ProfileError("seeds: expected at least one, found none")
    tried = check(candidates, targets, seeds, reward is not None)
    if generate is None:
        if isinstance(pipeline, nn.Module):
            raise ProfileError("generate: a model without its pipeline needs generate=f(model, frames, seed)")
        if not prompts:
            raise ProfileError("prompts: a pipeline needs at least one prompt")
        if guidance is None:
            guidance = defaults(pipeline).guidance
        facts = Facts.of(pipeline)
        counts = {n: facts.video_frames(n, f"{n} latent frames, frames") for n in (trained_frames, *targets)}
        generate = _of_pipeline(
            pipeline, first, others, counts, list(prompts), list(seeds), steps, height, width, guidance
        )
    elif guidance is not None:
        raise ProfileError("guidance: expected None beside generate=f(model, frames, seed), which decides it")
    job = {
        # "measures": of what a unit records; another number where that changes, so that old journals are refused.
        "measures": 2, "mode": mode, "trained_frames": trained_frames, "seeds": list(seeds), "prompts": list(prompts),
        "every": every, "steps": steps, "height": height, "width": width, "rewarded": reward is not None,
        "settings": None if settings is None else asdict(settings), "class": type(model).__name__,
        "weights": "+".join(map(weights_digest, (model, *others.values()))), "torch": torch.__version__,
        "freeloc_fx": installed_version(),
        **({} if guidance is None else {"guidance": guidance}),
        **({} if reward_name is None else {"reward": reward_name}),
    }  # fmt: skip
    kept = Units(Path(journal) if journal is not None else None, job)
    run = _Run(model, generate, settings, every, reward)
    units = [Unit("observe", seed, frames) for seed in seeds for frames in (trained_frames, *targets)]
    # What a shift of "twice the trained length" is, in latent frames, the first unit says: `generate` may count frames
    # of the video.
    first = kept.get(units[0].name, lambda: run.unit(units[0], None))
    if mode == "full":
        layers = sorted(int(layer) for layer in first["layers"])
        used = settings or ProbeSettings.for_length(first["frames"])
        units += [
            Unit("shift", seed, trained_frames, Intervention(layer, shift=shift))
            for seed in seeds for layer in layers for shift in used.shifts
        ]  # fmt: skip
        units += [
            Unit("window", seed, target, Intervention(layer, window=used.window))
            for seed in seeds for target in targets for layer in layers
        ]  # fmt: skip

    def finish(name: str, work: Callable[[], Any], done: int, total: int) -> Any:
        result = kept.get(name, work)
        if on_unit is not None:
            on_unit(done, total, name)
        return result

    results = {}
    total = len(units) + len(seeds) * sum(len(names) + 1 for names in tried.values())
    for done, unit in enumerate(units, 1):
        results[unit.name] = finish(unit.name, functools.partial(run.unit, unit, first["frames"]), done, total)
    profile = made_profile(model, job, targets, units, results, temperature)
    if not tried:
        return profile
    trials = []
    for target, frames in zip(targets, measured_lengths(profile), strict=True):
        if target not in tried:
            continue
        contenders = {assignment(profile, frames): for_length(profile, frames)}
        contenders |= {name: uniform(profile, frames, name) for name in tried[target] if name not in contenders}
        for name, contender in contenders.items():
            trial = run.trial(contender, target)  # one capture for all seeds
            # A temperature that is solved and one that is matched are two trials of one name.
            solved = " closed formula" if contender.temperature is None and "temp" in name.split("+") else ""
            trials += [
                (frames, name, seed, f"trial seed {seed} frames {target} {name}{solved}", trial) for seed in seeds
            ]
    total = len(units) + len(trials)  # fewer where the rule's own assignment was among the candidates
    rewards: dict[int, dict[str, list[float]]] = {}
    for done, (frames, name, seed, unit_name, trial) in enumerate(trials, len(units) + 1):
        reward_of = finish(unit_name, functools.partial(trial, seed), done, total)
        rewards.setdefault(frames, {}).setdefault(name, []).append(reward_of)
    return settled(profile, rewards)


def weights_digest(model: nn.Module) -> str:
    """A hash of the parameters' names, shapes, dtypes and first values: retrained weights have another.

    Args:
        model: any module.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.device.type != "meta":
            digest.update(value.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Run:
    def __init__(
        self, model: nn.Module, generate: Generate, settings: ProbeSettings | None, every: int, reward: Reward | None
    ) -> None:
        self.model, self.generate, self.settings, self.every, self.reward = model, generate, settings, every, reward
        self._watched: dict[tuple[int, int], tuple[Recorder, nn.Module]] = {}

    def _watching(self, unit: Unit) -> tuple[Recorder, nn.Module]:
        """The recorder of a generation and the model it watches.

        What is done to a layer is no part of a graph, so generations of one length and seed share what was captured;
        not where one generation calls the model at several sizes, since graphs do not say which is to come.
        """
        key = unit.frames, unit.seed
        if key not in self._watched or self._watched[key][0].several:
            recorder = Recorder(uuid.uuid4().hex, self.settings, unit.seed, self.every)
            self._watched[key] = recorder, watched_copy(self.model, recorder)
        return self._watched[key]

    def unit(self, unit: Unit, trained: int | None) -> dict[str, Any]:
        """Make one generation and say what each layer showed: means, standard errors and row counts.

        Args:
            unit: the generation.
            trained: latent frames of the trained length, None if this is it.

        Returns:
            Its latent frames; whether text attends beside the video; the layers' values; the reward, if any.

        Raises:
            CaptureError: the observed model was not called.
        """
        seed = unit.seed
        recorder, model = self._watching(unit)
        recorder.begin(unit.intervention, trained)
        try:
            video = self.generate(model, unit.frames, seed)
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
        text = any(site.grid.text for site in recorder.sites.values())
        return {"frames": recorder.frames, "text": text, "layers": layers, "reward": score}

    def trial(self, profile: Profile, frames: int) -> Callable[[int], float]:
        """Make the trial of a profile. The model is transformed when it is first asked.

        Args:
            profile: what to try.
            frames: as `generate` counts them.

        Returns:
            seed -> the reward of one generation.
        """
        model = functools.cache(lambda: transform(self.model, profile, backend="eager"))
        reward = self.reward
        assert reward is not None
        return lambda seed: float(reward(self.generate(model(), frames, seed), seed))


def watched_copy(model: nn.Module, recorder: Recorder) -> nn.Module:
    """Give a copy of a model whose video self-attentions are watched; it computes what the model computes.

    Args:
        model: the model, not transformed.
        recorder: collects what is seen.

    Returns:
        A model of the same class that shares the weights.
    """
    everything = Profile(trained_frames=2, layers="direct", name="observed")
    watched = shallow_copy(model)
    backend = Backend(everything, layer_table(model), None, recorder=recorder, model=watched)
    return attach(watched, model, backend)


def _original(model: nn.Module) -> nn.Module:
    return model if state_of(model) is None else restore(model)


def _of_pipeline(
    pipeline: Any,
    first: str,
    others: Mapping[str, nn.Module],
    counts: Mapping[int, int],
    prompts: list[str],
    seeds: list[int],
    steps: int | None,
    height: int | None,
    width: int | None,
    guidance: float,
) -> Generate:
    from freeloc_fx.generation.pipelines import generate as run

    tried: dict[nn.Module, Mapping[str, nn.Module]] = {}  # the last one only: candidates come one after the other

    def beside(model: nn.Module) -> Mapping[str, nn.Module]:
        """The other transformers: with the profile that is tried, but untouched where the first is watched."""
        state = state_of(model)
        if state is None or state.backend.recorder is not None:
            return others
        if model not in tried:
            profile = state.backend.profile
            tried.clear()
            tried[model] = {name: transform(each, profile, backend="eager") for name, each in others.items()}
        return tried[model]

    def generate(model: nn.Module, frames: int, seed: int) -> Any:
        put = {first: model, **beside(model)}
        before = {name: getattr(pipeline, name) for name in put}
        try:
            for name, each in put.items():
                setattr(pipeline, name, each)
            prompt = prompts[seeds.index(seed) % len(prompts)]
            options: dict[str, Any] = {"height": height, "width": width, "steps": steps, "guidance": guidance}
            return run(pipeline, prompt, frames=counts[frames], seed=seed, **options).frames
        finally:
            for name, each in before.items():
                setattr(pipeline, name, each)

    return generate
