"""Does a video repeat itself: NoRepeat at a known period (RIFLEx), and a loop score that needs none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clip import Clip, MetricError
from .proxies import area_means
from .vbench import Measure

__all__ = ["THRESHOLD", "Loop", "NoRepeat", "distances", "loop", "no_repeat", "recurrences"]


THRESHOLD = 0.05
"""NoRepeat: aligned sequences whose mean RMS difference (pixels 0..1) is not above this repeat. Our choice."""


_SIDE = 16  # cells a side of the thumbnails that the loop score compares


_NOISE = 4 / 255  # typical differences below this are taken for noise


_NEAR, _FAR = 0.4, 2 / 3  # of the clip's typical difference


@dataclass(frozen=True)
class NoRepeat:
    """NoRepeat of one video.

    Args:
        repeats: whether distance <= threshold.
        lag: video frames between frame 0 and its nearest near the period.
        distance: mean RMS difference of the video and itself `lag` frames later, pixels in 0..1.
        period: video frames at which a repeat was looked for.
        threshold: see `THRESHOLD`.
    """

    repeats: bool
    lag: int
    distance: float
    period: int
    threshold: float


def no_repeat(clip: Clip, period: int, search: int | None = None, threshold: float = THRESHOLD) -> NoRepeat:
    """NoRepeat (Zhao et al. 2025, "RIFLEx", arXiv 2502.15894): is the video its own copy near the predicted period?

    Among the frames within `search` of `period` the one nearest to frame 0 (L2) gives the lag; the video and itself
    shifted by the lag are compared frame by frame. A still video repeats. Differences are root mean squares over pixels
    and channels, so that the size does not matter.

    Args:
        clip: the video.
        period: frames of the video; for an intrinsic frequency theta, 2 pi / theta latent frames times the VAE's
            temporal factor.
        search: frames to either side, default period / 8, at least 1.
        threshold: see `THRESHOLD`.

    Returns:
        Whether it repeats, with what was measured.

    Raises:
        MetricError: a period below 2 or not inside the video; a negative search or threshold.
    """
    frames = clip.frames
    search = max(1, round(period / 8)) if search is None else search
    if period < 2 or search < 0 or not threshold >= 0:
        raise MetricError(
            f"NoRepeat: expected a period of at least 2 frames, search and threshold not negative; found {period}, "
            f"{search} and {threshold}"
        )
    lags = [lag for lag in range(max(1, period - search), period + search + 1) if lag < len(frames)]
    if not lags or period >= len(frames):
        raise MetricError(f"{clip.name}: NoRepeat expects a period inside the {len(frames)} frames, found {period}")
    lag = min(lags, key=lambda n: (_rms(frames[0], frames[n]), abs(n - period)))
    distance = float(np.mean([_rms(a, b) for a, b in zip(frames[:-lag], frames[lag:], strict=True)]))
    return NoRepeat(distance <= threshold, lag, distance, period, threshold)


def _rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(a.astype(np.float32) - b)))) / 255


@dataclass(frozen=True)
class Loop:
    """How much of a video recurs.

    Args:
        share: of all video frames, those that recur.
        period: the most common lag among them in video frames; None if none recurs.
    """

    share: Measure
    period: int | None


def loop(clip: Clip) -> Loop:
    """Share of the frames that show again, for half a second on end, what was shown at least a second earlier, after
    the video had been somewhere else in between. Ours.

    Frames are compared as thumbnails of 16x16 area means less the frame's mean colour (so that drifting brightness
    hides no loop), by RMS difference. The clip's typical difference is the upper quartile over pairs at least a second
    apart, but no less than 4 grey levels of 255. "Again" is below 0.4 of it, "somewhere else" above 2/3.

    A clip that plays twice scores 0.5; a still clip 0, since it was never away (see `vbench.freeze`); one shorter than
    1.5 s scores 0. Real motion may return by itself: of 40 rendered tiny-wan scenes (321 and 801 frames) that had no
    part in the choice of these settings 37 scored 0 and the others at most 0.11. A repeat that comes back displaced by
    1.5% of the width is found, one by 3% only in part. Not validated on filmed video.

    Args:
        clip: the video.

    Returns:
        The share and the period.
    """
    frames = len(clip.frames)
    shortest, run = max(4, round(clip.fps)), max(3, round(clip.fps / 2))
    lags = np.zeros(frames, int)
    if frames >= shortest + run:
        gap = distances(clip.frames)
        apart = gap[np.triu_indices(frames, shortest)]
        typical = max(float(np.percentile(apart, 75)), _NOISE)
        lags = recurrences(gap, _NEAR * typical, _FAR * typical, shortest, run)
    terms = (lags > 0).astype(float)
    share = Measure(float(terms.mean()), terms, np.arange(frames) / max(frames - 1, 1))
    return Loop(share, int(np.bincount(lags[lags > 0]).argmax()) if lags.any() else None)


def distances(frames: np.ndarray) -> np.ndarray:
    """RMS difference (0..1) of every two frames' thumbnails, each less its mean colour.

    Args:
        frames: uint8 (frames, height, width, 3).

    Returns:
        float64 (frames, frames).
    """
    cells = np.concatenate([area_means(f[None], _SIDE, _SIDE) for f in frames]).astype(np.float64) / 255
    small = (cells - cells.mean((1, 2), keepdims=True)).reshape(len(frames), -1)
    small -= small.mean(0)  # smaller numbers cancel less below
    squared = np.einsum("ij,ij->i", small, small)
    gap = squared[:, None] + squared[None] - 2 * small @ small.T
    return np.asarray(np.sqrt(np.maximum(gap, 0) / small.shape[1]))


def recurrences(gap: np.ndarray, near: float, far: float, shortest: int, run: int) -> np.ndarray:
    """For each frame t the lag at which it recurs, 0 where it does not.

    t recurs at lag d >= shortest if t lies in `run` frames on end, each of which differs by less than `near` from the
    frame d earlier, and by then some frame in between differed by more than `far` from that earlier one. Of several
    lags the one with the smallest difference counts, of equal ones the shortest.

    Args:
        gap: differences of frames, (frames, frames), symmetric.
        near: below it two frames are the same.
        far: above it they are not.
        shortest: smallest lag, frames.
        run: frames on end that have to recur.

    Returns:
        int (frames,).
    """
    frames = len(gap)
    rows = np.arange(frames)
    # farthest[s, t]: how far the video got from frame s between s and t.
    farthest = np.maximum.accumulate(np.where(rows[None] >= rows[:, None], gap, 0), axis=1)
    again = (gap < near) & (farthest > far)
    found, nearest = np.zeros(frames, int), np.full(frames, np.inf)
    for lag in range(shortest, frames - run + 1):
        same = np.concatenate([[0], np.diagonal(again, lag).astype(int).cumsum()])
        starts = np.flatnonzero(same[run:] - same[:-run] == run)
        covered = np.zeros(frames - lag + 1, int)
        np.add.at(covered, starts, 1)
        np.add.at(covered, starts + run, -1)
        members = np.flatnonzero(covered.cumsum()[:-1] > 0) + lag
        difference = gap[members - lag, members]
        better = difference < nearest[members]
        found[members[better]], nearest[members[better]] = lag, difference[better]
    return found
