"""VBench's temporal and technical dimensions (Huang et al., CVPR 2024, section 3 and appendix) with any model.

Each function gives a `Measure`: the figure, the terms it is the mean of, and where in the video each of them lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .clip import Clip, MetricError
from .models import FeatureModel, FlowModel, InterpolationModel, QualityModel

__all__ = [
    "FREEZE",
    "Measure",
    "Motion",
    "consistency",
    "dynamic_degree",
    "freeze",
    "imaging_quality",
    "motion",
    "motion_smoothness",
    "sampling",
]


FREEZE = 0.1
"""A pair of frames without motion: its motion is below this share of dynamic degree's threshold. Ours, not VBench's."""


_RATE = 8.0  # frames per second at which dynamic degree looks


@dataclass(frozen=True)
class Measure:
    """One figure of one video.

    Args:
        value: the figure.
        terms: float (n,), what it is made of, in order.
        at: float (n,), where each term lies in the video, 0 the first frame, 1 the last.
        model: the model that was asked, or "" where none was.
        unit: "" for a share 0..1.
    """

    value: float
    terms: np.ndarray = field(repr=False, compare=False)
    at: np.ndarray = field(repr=False, compare=False)
    model: str = ""
    unit: str = ""

    def segments(self, count: int) -> list[float]:
        """Average the terms over equal stretches of the video.

        Args:
            count: stretches.

        Returns:
            The mean of each stretch; NaN for one without a term.
        """
        index = np.minimum((self.at * count).astype(int), count - 1)
        total = np.bincount(index, self.terms, count)
        number = np.bincount(index, minlength=count)
        return [float(t / n) if n else float("nan") for t, n in zip(total, number, strict=True)]

    @property
    def slope(self) -> float:
        """Least-squares change of the terms over the whole video; NaN for fewer than two places."""
        x = self.at - self.at.mean()
        spread = float(x @ x)
        return float(x @ (self.terms - self.terms.mean())) / spread if spread > 1e-12 else float("nan")


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip((a * b).sum(-1), 0, 1))


def consistency(clip: Clip, model: FeatureModel) -> Measure:
    """Subject consistency (with a model of the subject) or background consistency (with one of the scene).

    Mean over the frames from the second of (max(0, cos(frame, previous)) + max(0, cos(frame, first))) / 2.

    Args:
        clip: the video.
        model: its features.

    Returns:
        The measure, one term for each frame from the second.

    Raises:
        MetricError: fewer than 2 frames; features of a wrong shape, or one that is zero or not finite.
    """
    frames = len(clip.frames)
    _at_least(clip, 2, "consistency")
    found = np.asarray(model.features(clip.frames), float)
    if found.ndim != 2 or len(found) != frames:
        raise MetricError(f"{model.name}: expected features of shape ({frames}, channels), found {found.shape}")
    length = np.linalg.norm(found, axis=1, keepdims=True)
    if not np.isfinite(found).all() or not (length > 0).all():
        raise MetricError(f"{model.name}: expected finite features with a direction, found NaN, infinity or zeros")
    unit = found / length
    terms = (_cosine(unit[1:], unit[:-1]) + _cosine(unit[1:], unit[:1])) / 2
    return Measure(float(terms.mean()), terms, np.arange(1, frames) / (frames - 1), model.name)


def motion_smoothness(clip: Clip, model: InterpolationModel) -> Measure:
    """Drop every odd frame, interpolate it from its neighbours: mean of (255 - mean absolute error) / 255.

    Args:
        clip: the video.
        model: makes the dropped frames.

    Returns:
        The measure, one term for each dropped frame.

    Raises:
        MetricError: fewer than 3 frames; a frame of another shape or dtype.
    """
    _at_least(clip, 3, "motion smoothness")
    frames = clip.frames
    odd = np.arange(1, len(frames) - 1, 2)
    terms = []
    for i in odd:
        guess = np.asarray(model.between(frames[i - 1], frames[i + 1]))
        if guess.shape != frames[i].shape or guess.dtype != np.uint8:
            expected = f"uint8 {frames[i].shape}"
            raise MetricError(f"{model.name}: expected a frame {expected}, found {guess.dtype} {guess.shape}")
        terms.append(1 - np.abs(guess.astype(np.int16) - frames[i]).mean() / 255)
    return Measure(float(np.mean(terms)), np.array(terms), odd / (len(frames) - 1), model.name)


def sampling(clip: Clip) -> np.ndarray:
    """Choose the frames that dynamic degree looks at: every max(1, round(fps / 8))-th.

    Args:
        clip: the video.

    Returns:
        int (sampled frames,), indices.
    """
    return np.arange(0, len(clip.frames), max(1, round(clip.fps / _RATE)))


@dataclass(frozen=True)
class Motion:
    """Flow between sampled frames, which dynamic degree and freeze share.

    Args:
        magnitudes: float (pairs,), mean of the largest 5% of flow magnitudes, over the threshold: 1 is just dynamic.
        at: float (pairs,), where each pair ends, 0..1.
        model: name of the flow model.
    """

    magnitudes: np.ndarray
    at: np.ndarray
    model: str

    def measure(self) -> Measure:
        """Mean magnitude in units of the threshold: how much moves, where dynamic degree only says whether."""
        return Measure(float(self.magnitudes.mean()), self.magnitudes, self.at, self.model, "x threshold")


def motion(clip: Clip, model: FlowModel) -> Motion:
    """Measure the flow between frames about 1/8 s apart; threshold 6 min(height, width) / 256 px times `model.bias`.

    Args:
        clip: the video.
        model: measures the flow.

    Returns:
        The flow of each pair of sampled frames.

    Raises:
        MetricError: fewer than 2 sampled frames; flow of a wrong shape, or not finite.
    """
    index = sampling(clip)
    stride = int(index[1]) if len(index) > 1 else max(1, round(clip.fps / _RATE))
    _at_least(clip, stride + 1, f"dynamic degree at {clip.fps:g} fps")
    height, width = clip.frames.shape[1:3]
    threshold = 6.0 * min(height, width) / 256 * model.bias
    kept = max(1, int(height * width * 0.05))
    found = []
    for a, b in pairwise(index):
        flow = np.asarray(model.flow(clip.frames[a], clip.frames[b]), float)
        if flow.shape != (height, width, 2) or not np.isfinite(flow).all():
            expected = f"finite flow of shape ({height}, {width}, 2)"
            raise MetricError(f"{model.name}: expected {expected}, found {flow.shape}")
        magnitude = np.hypot(flow[..., 0], flow[..., 1]).ravel()
        found.append(np.partition(magnitude, -kept)[-kept:].mean() / threshold)
    return Motion(np.array(found), index[1:] / (len(clip.frames) - 1), model.name)


def dynamic_degree(found: Motion) -> Measure:
    """Say whether a video moves: 1 if at least round(4 n / 16) of the pairs exceed the threshold, n the number of
    sampled frames, else 0.

    At least one pair is asked for; with fewer than 3 sampled frames VBench's count rounds to none.

    Args:
        found: the flow of the video.

    Returns:
        The measure; its terms say for each pair whether it exceeds the threshold.
    """
    over = (found.magnitudes > 1).astype(float)
    needed = max(1, round(4 * (len(over) + 1) / 16))
    return Measure(float(over.sum() >= needed), over, found.at, found.model)


def freeze(found: Motion) -> Measure:
    """Share of the pairs without motion, see `FREEZE`. 1 is a still image. Not VBench's.

    Args:
        found: the flow of the video.

    Returns:
        The measure, one term a pair.
    """
    still = (found.magnitudes < FREEZE).astype(float)
    return Measure(float(still.mean()), still, found.at, found.model)


def imaging_quality(clip: Clip, model: QualityModel) -> Measure:
    """Mean quality of the frames, 0..1 (VBench: MUSIQ / 100, frames at most 512 px on the longer side).

    Args:
        clip: the video.
        model: judges its frames.

    Returns:
        The measure, one term a frame.

    Raises:
        MetricError: qualities of a wrong shape, or not finite.
    """
    terms = np.asarray(model.quality(clip.frames), float)
    frames = len(clip.frames)
    if terms.shape != (frames,) or not np.isfinite(terms).all():
        raise MetricError(f"{model.name}: expected {frames} finite qualities, found shape {terms.shape}")
    return Measure(float(terms.mean()), terms, np.arange(frames) / max(frames - 1, 1), model.name)


def _at_least(clip: Clip, frames: int, purpose: str) -> None:
    if len(clip.frames) < frames:
        found = f"{len(clip.frames)} frame{'s' if len(clip.frames) != 1 else ''}"
        raise MetricError(f"{clip.name}: expected at least {frames} frames for {purpose}, found {found}")
