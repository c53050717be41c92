"""One video, every figure: consistency always together with dynamics, freeze and loop.

A frozen video is perfectly consistent, and a loop nearly so: a consistency figure alone rewards the very failures that
long video shows. `Evaluation` cannot be made without the figures that expose them, and prints them side by side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from freeloc_fx.generation.tiny_wan.scenes import SIZE, parse_prompt

from . import vbench
from .clip import Clip, MetricError, prompt_beside, read_size
from .ground_truth import GroundTruthScore, score_and_drift
from .models import FeatureModel, FlowModel, InterpolationModel, QualityModel
from .proxies import ColourLayout, DisFlow, FlowMidpoint, ShapeHistogram, Sharpness
from .repetition import NoRepeat, loop, no_repeat
from .vbench import Measure

__all__ = ["MEASURES", "NO_AESTHETIC", "Evaluation", "Models", "check_file", "evaluate"]


MEASURES = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "motion",
    "freeze",
    "loop",
    "imaging_quality",
)
"""Fields of `Evaluation` that are a `Measure`, in the order in which they are shown."""


NO_AESTHETIC = "aesthetic quality is not measured: nothing that runs without learned weights does it honestly"


_DISTRUST = ("dynamic_degree", "motion", "freeze", "loop")


@dataclass(frozen=True)
class Models:
    """The models that the measures ask; the defaults are offline stand-ins, named "proxy: ..." in every output.

    Args:
        subject: features that follow the subject.
        background: features that follow the scene.
        flow: optical flow between two frames.
        interpolation: the frame half-way between two.
        quality: technical quality of a frame.
    """

    subject: FeatureModel = field(default_factory=ShapeHistogram)
    background: FeatureModel = field(default_factory=ColourLayout)
    flow: FlowModel = field(default_factory=DisFlow)
    interpolation: InterpolationModel = field(default_factory=FlowMidpoint)
    quality: QualityModel = field(default_factory=Sharpness)


@dataclass(frozen=True)
class Evaluation:
    """All figures of one video.

    Args:
        name: what tables call the video.
        frames: video frames.
        fps: frames per second.
        subject_consistency: 0..1, 1 is best.
        background_consistency: 0..1, 1 is best.
        motion_smoothness: 0..1, 1 is best.
        dynamic_degree: 1 if the video moves, else 0.
        motion: how much moves, 1 is just dynamic.
        freeze: share of frame pairs without motion.
        loop: share of frames that recur.
        imaging_quality: 0..1, 1 is best.
        loop_period: after how many video frames most of them recur, None if none does.
        no_repeat: RIFLEx's test, None where no period was given.
        ground_truth: the score against a tiny-wan prompt, None where there is none.
        ground_truth_segments: the score of each segment.
        no_ground_truth: the reason why there is no score.
        segments: number of stretches in which drift is shown.
        vbench: figures of the vbench package, if any were added (`adapters.with_vbench`).

    Raises:
        MetricError: dynamics, freeze or loop is not a number.
    """

    name: str
    frames: int
    fps: float
    subject_consistency: Measure
    background_consistency: Measure
    motion_smoothness: Measure
    dynamic_degree: Measure
    motion: Measure
    freeze: Measure
    loop: Measure
    imaging_quality: Measure
    loop_period: int | None = None
    no_repeat: NoRepeat | None = None
    ground_truth: GroundTruthScore | None = None
    ground_truth_segments: tuple[GroundTruthScore, ...] = ()
    no_ground_truth: str | None = None
    segments: int = 4
    vbench: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _DISTRUST:
            measure = getattr(self, name)
            if not isinstance(measure, Measure) or not math.isfinite(measure.value):
                raise MetricError(
                    f"{self.name}: {name} must be a measured number wherever consistency is shown, found {measure!r}"
                )

    def measures(self) -> Iterator[tuple[str, Measure]]:
        """Go through the measures in the order in which they are shown.

        Yields:
            Name and measure of each of `MEASURES`.
        """
        for name in MEASURES:
            yield name, getattr(self, name)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Why consistency and smoothness say little about this video; empty where nothing speaks against them."""
        found = []
        if self.freeze.value >= 0.5:
            found.append(f"frozen: {self.freeze.value:.0%} of the frame pairs are without motion")
        if self.loop.value >= 0.25:
            found.append(f"loops: {self.loop.value:.0%} of the frames recur, most after {self.loop_period}")
        return tuple(found)

    def drift(self) -> dict[str, dict[str, Any]]:
        """Show how each measure changes over the video.

        Slopes are least-squares fits over all terms; the ground truth's over its segments. Terms compare with the
        video's own first frame, not the segment's, so a slow departure shows.

        Returns:
            name -> {"segments": means of equal stretches in order, "slope": change over the whole video}.
        """
        result: dict[str, dict[str, Any]] = {
            name: {"segments": m.segments(self.segments), "slope": m.slope} for name, m in self.measures()
        }
        if self.ground_truth_segments:
            values = np.array([s.composite for s in self.ground_truth_segments])
            middle = (np.arange(len(values)) + 0.5) / len(values)
            slope = Measure(float(values.mean()), values, middle).slope
            result["ground_truth"] = {"segments": values.tolist(), "slope": slope}
        return result

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready but for NaN; every measure with its model and unit, the drift beside it."""
        drift = self.drift()
        figures = {
            name: {"value": m.value, "model": m.model or None, "unit": m.unit or None, **drift[name]}
            for name, m in self.measures()
        }
        truth = self.ground_truth.as_dict() | {"drift": drift["ground_truth"]} if self.ground_truth else None
        return {
            "video": self.name,
            "frames": self.frames,
            "fps": self.fps,
            "measures": figures,
            "loop_period": self.loop_period,
            "no_repeat": asdict(self.no_repeat) if self.no_repeat else None,
            "ground_truth": truth,
            "no_ground_truth": self.no_ground_truth,
            "vbench": self.vbench or None,
            "cautions": list(self.cautions),
            "not_measured": None if "aesthetic_quality" in self.vbench else NO_AESTHETIC,
        }

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.frames} frames at {self.fps:g} fps"]
        for name, m in self.measures():
            words = f"  {name.replace('_', ' '):24}{m.value:8.4f} {m.unit}".rstrip()
            lines.append(f"{words}  ({m.model})" if m.model else words)
        if self.no_repeat:
            verdict = "repeats" if self.no_repeat.repeats else "does not repeat"
            lines.append(f"  NoRepeat at {self.no_repeat.period} frames: {verdict} ({self.no_repeat.distance:.4f})")
        if self.ground_truth:
            lines.append(f"  {'ground truth':24}{self.ground_truth.composite:8.4f}")
        lines += [f"  {name} (vbench){value:8.4f}" for name, value in self.vbench.items()]
        return "\n".join(lines + [f"  caution: {c}" for c in self.cautions])


def evaluate(
    video: Clip | np.ndarray | str | os.PathLike[str],
    *,
    prompt: str | None = None,
    fps: float | None = None,
    models: Models | None = None,
    period: int | None = None,
    segments: int = 4,
) -> Evaluation:
    """Measure one video.

    Args:
        video: a file, a clip, or frames (frames, height, width, 3), uint8 or floats in [0, 1].
        prompt: score the video against this tiny-wan prompt; for a file without one, the prompt in the JSON report
            beside it is used if the video is one of tiny-wan's.
        fps: frames per second, default the file's, 16 for an array.
        models: what the measures ask; default the offline stand-ins.
        period: frames; also run RIFLEx's NoRepeat at it.
        segments: stretches for the drift over time.

    Raises:
        MetricError: see `Clip.of`; too few frames; segments not between 1 and the number of frames; a prompt that was
            given but is not in the grammar, or a video that is not tiny-wan's; whatever the measures raise.
        DependencyError: a model's package is missing.
    """
    clip = Clip.of(video, fps)
    frames = len(clip.frames)
    _check_length(clip.name, frames, segments, period)
    models = models or Models()
    truth = _ground_truth(clip, prompt, video, segments)
    repeat = no_repeat(clip, period) if period is not None else None
    flows = vbench.motion(clip, models.flow)
    looped = loop(clip)
    return Evaluation(
        name=clip.name,
        frames=frames,
        fps=clip.fps,
        subject_consistency=vbench.consistency(clip, models.subject),
        background_consistency=vbench.consistency(clip, models.background),
        motion_smoothness=vbench.motion_smoothness(clip, models.interpolation),
        dynamic_degree=vbench.dynamic_degree(flows),
        motion=flows.measure(),
        freeze=vbench.freeze(flows),
        loop=looped.share,
        imaging_quality=vbench.imaging_quality(clip, models.quality),
        loop_period=looped.period,
        no_repeat=repeat,
        ground_truth=truth[0],
        ground_truth_segments=truth[1],
        no_ground_truth=truth[2],
        segments=segments,
    )


def check_file(
    video: str | os.PathLike[str], *, prompt: str | None = None, period: int | None = None, segments: int = 4
) -> None:
    """Check what can be told of a file before it is measured, so that no later one ends a run of several.

    Args:
        video: as of `evaluate`.
        prompt: as of `evaluate`.
        period: as of `evaluate`.
        segments: as of `evaluate`.

    Raises:
        MetricError: as `evaluate`, which may still find more.
        DependencyError: as `evaluate`.
    """
    frames, height, width = read_size(video, max(3, segments, (period or 0) + 1))
    _check_length(str(video), frames, segments, period)
    if prompt is not None:
        try:
            parse_prompt(prompt)
            _check_native(str(video), height, width)
        except ValueError as error:
            raise MetricError(f"prompt: {error}") from error


def _check_length(name: str, frames: int, segments: int, period: int | None) -> None:
    """Refuse a video that is too short for what is asked of it."""
    if frames < 3:
        raise MetricError(f"{name}: expected at least 3 frames, found {frames}")
    if not 1 <= segments <= frames:
        raise MetricError(f"segments: expected between 1 and the {frames} frames of {name}, found {segments}")
    if period is not None and period >= frames:
        raise MetricError(f"{name}: NoRepeat expects a period inside the {frames} frames, found {period}")


def _ground_truth(
    clip: Clip, prompt: str | None, source: Any, segments: int
) -> tuple[GroundTruthScore | None, tuple[GroundTruthScore, ...], str | None]:
    """Scores of the whole and of the segments, or the reason why there are none."""
    given = prompt is not None
    try:
        if prompt is None and isinstance(source, (str, os.PathLike)):
            prompt = prompt_beside(source)
        if prompt is None:
            return None, (), "no prompt"
        parse_prompt(prompt)
        frames = _native(clip)
    except ValueError as error:
        if given:
            raise MetricError(f"prompt: {error}") from error
        return None, (), str(error)
    whole, stretches = score_and_drift(frames, prompt, segments)
    return whole, tuple(stretches), None


def _native(clip: Clip) -> np.ndarray:
    """tiny-wan's own pixels as floats: the command line enlarges its videos by a whole factor."""
    height, width = clip.frames.shape[1:3]
    _check_native(clip.name, height, width)
    k = height // SIZE
    cells = clip.frames.reshape(-1, SIZE, k, SIZE, k, 3)
    return np.stack([c.mean((1, 3)) for c in cells]).astype(np.float32) / 255


def _check_native(name: str, height: int, width: int) -> None:
    """Refuse a size that cannot be tiny-wan's."""
    if height != width or height % SIZE:
        raise MetricError(f"{name}: scores need {SIZE}x{SIZE} pixels or a whole multiple, found {width}x{height}")
