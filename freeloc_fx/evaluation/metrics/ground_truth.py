"""Score a tiny-wan clip against what its prompt says must be in it.

Where the shapes start, and in which direction, is the sampler's choice; the prompt tells the rest, or leaves some of it
open: which colours and kinds, how large, how fast, over which two background tones and with which scroll. What it
leaves open is read off the clip's first trained length (`reading`). A pixel belongs to the
palette colour whose mixing line with the background it is nearest to, so a blurred edge keeps its shape's colour.
A shape that others touch or hide, or that the frame cuts, is placed by fitting a template to what can be seen of it,
and is held only to the area that should be visible.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from freeloc_fx.generation.tiny_wan.scenes import SIZE, SPEEDS, Shape

from .blobs import SEEN
from .identity import Identity, constancy, identities, permanence, pops
from .tracking import LAG, Analysis, Track, analyse

__all__ = ["COMPOSITE", "GroundTruthScore", "ShapeScore", "per_time", "score", "score_and_drift"]


COMPOSITE = "composite, repeated time"
"""What `GroundTruthScore.composite` is. Journals hold it beside their values, so that none goes on with values of the
composite of before, which took all of a loop off; whoever changes the composite changes this."""


_CHUNK = 24  # frames a median is taken over: few enough that a wall is met at most once on an axis


_PAIRS = 12  # displacements a median needs: a wall spoils 4


_MATCH = 1.5  # px: two positions are the same


_CAP = 60.0  # dB


_STANDING = 0.25  # of the true speed: below it a shape stands


_NOTICED = 20.0  # pops per 100 frames that make a clip e times worse


@dataclass(frozen=True)
class ShapeScore:
    """One shape of the prompt. Ratios are measured / true; a value is NaN where no frame allowed the measurement.

    Args:
        name: colour and kind, as far as the prompt tells them.
        presence: share of its countable frames with at least half the expected visible area in the right colour.
        shape_accuracy: share of the frames in which it is seen whole whose best-fitting kind is the prompt's, or the
            usual one in the first trained length.
        area: ratio, 1 is right.
        speed: ratio, 1 is right.
        motion: mean over chunks of 24 frames of min(speed, 1 / speed), so that fast and frozen halves do not cancel.
        sharpness: ratio of the mean slope of the outline to an ideal one's, 1 is right.
        psnr: dB beside the ideal shape at the same place, within 3 px of it; at most 60.
    """

    name: str
    presence: float
    shape_accuracy: float
    area: float
    speed: float
    motion: float
    sharpness: float
    psnr: float


@dataclass(frozen=True)
class GroundTruthScore:
    """The score of a clip or of a window of it: means of `ShapeScore`'s fields over the shapes, and what concerns all
    of them.

    Means leave NaN out. A frozen clip scores 0 on `loop` (it scores on `speed`), and so do fewer than 48 frames. Thirty
    real clips of 321 frames scored at most 0.02, but a bounce can repeat by itself, so read it beside a real clip's.

    Args:
        presence: see `ShapeScore`.
        shape_accuracy: see `ShapeScore`.
        area: see `ShapeScore`.
        speed: see `ShapeScore`.
        motion: see `ShapeScore`.
        sharpness: see `ShapeScore`.
        psnr: see `ShapeScore`.
        foreign: share of all pixels, 0..1, in blobs of at least 5x5 px of a colour that was not asked for, or in a
            second blob of a colour that was. One extra shape in every frame is 0.062.
        scroll_error: px per frame between the background's measured and true velocity (for stripes: across them).
        loop: 0..1. Over all lags of at least 16 frames, the largest share of the times t at which every shape is within
            1.5 px of where it was a lag earlier, for 9 frames on end, after having been more than 6 px away in between.
        repeated: 0..1, share of the clip's time that so repeats an earlier time, at the lag at which that is most: of a
            perfect loop all but its first round, so that one of two rounds is 0.5 and one of ten 0.9.
        constancy: 0..1, how far each shape keeps the colour, size and kind that it had in the first trained length; 0
            in frames where it is missing.
        permanence: 0..1, share of the frames in which each shape is there exactly once, hidden ones left out.
        pops: lasting changes of how often a shape is there, asked for or not, per 100 frames, summed over the shapes.
        freeze: 0..1, share of the time in which a shape stands (moves at less than a quarter of the true speed).
        composite: 0..1, geometric mean of four terms, what is not a number left out; 0 where nothing was found: of no
            shape anything but what others hide, or of none in the whole clip what stays or what goes on (noise).
            What is shown: identity = presence * shape_accuracy * asked / (asked + foreign). How it looks:
            min(sharpness, 1 / sharpness) * min(area, 1 / area). What stays: constancy * permanence * exp(-pops / 20).
            What goes on: motion * (1 - freeze) * (1 - repeated).
        composite_before: 0..1, the composite of results that know no constancy: geometric mean of identity,
            min(sharpness, 1 / sharpness), motion and min(area, 1 / area). It hardly sees loops and freezes.
        shapes: the score of each shape.
        asked: share of all pixels that the shapes should take.
    """

    presence: float
    shape_accuracy: float
    area: float
    speed: float
    motion: float
    sharpness: float
    psnr: float
    foreign: float
    scroll_error: float
    loop: float
    repeated: float
    constancy: float
    permanence: float
    pops: float
    freeze: float
    composite: float
    composite_before: float
    shapes: tuple[ShapeScore, ...]
    asked: float

    @property
    def identity(self) -> float:
        """Shapes seen in their colour and kind and nothing else beside, 0..1; NaN where no kind could be told."""
        return _identity(self.shapes, self.foreign, self.asked)

    @property
    def quality(self) -> float:
        """What a still frame can show, 0..1: geometric mean of identity and the closeness of sharpness and area.

        0 where nothing was found, as of `composite`.
        """
        if self.composite_before == 0 and self.motion != 0:  # it has motion beside these terms
            return 0.0
        return _geometric([self.identity, float(_closeness(self.sharpness)), float(_closeness(self.area))])

    def as_dict(self) -> dict[str, Any]:
        """Plain floats, and `shapes` as a list of dicts. NaN stays NaN."""
        return {**asdict(self), "shapes": [asdict(s) for s in self.shapes]}


def score(video: np.ndarray, prompt: str, window: tuple[int, int] | None = None) -> GroundTruthScore:
    """Score a clip against its prompt.

    Args:
        video: float RGB in [0, 1] of shape (frames, 64, 64, 3), at least 2 frames.
        prompt: in tiny-wan's grammar (`scenes.parse_prompt`).
        window: score frames start..stop-1 only. Tracking still uses the whole clip.

    Returns:
        The score.

    Raises:
        ValueError: wrong shape or dtype, values not finite or outside [-0.5, 1.5], an empty window, or a bad prompt.
    """
    analysis = analyse(video, prompt)
    frames = len(video)
    start, stop = window or (0, frames)
    if not 0 <= start < stop <= frames:
        raise ValueError(f"window ({start}, {stop}) must lie inside the clip's {frames} frames and hold at least one")
    return _aggregate(analysis, slice(start, stop))


def per_time(video: np.ndarray, prompt: str, segments: int = 8) -> list[GroundTruthScore]:
    """Score equal stretches of a clip in order: the drift over time.

    Stretches of fewer than about 24 frames give noisy speeds; `loop` needs 48.

    Args:
        video: as of `score`.
        prompt: as of `score`.
        segments: number of stretches, at most one a frame.

    Returns:
        The score of each stretch.

    Raises:
        ValueError: as of `score`, or another number of stretches.
    """
    return score_and_drift(video, prompt, segments)[1]


def score_and_drift(
    video: np.ndarray, prompt: str, segments: int = 8
) -> tuple[GroundTruthScore, list[GroundTruthScore]]:
    """Score the whole clip and its stretches with one tracking, which is what takes the time.

    Args:
        video: as of `score`.
        prompt: as of `score`.
        segments: as of `per_time`.

    Returns:
        What `score` gives, and what `per_time` gives.

    Raises:
        ValueError: as of `per_time`.
    """
    analysis = analyse(video, prompt)
    if not 1 <= segments <= len(video):
        raise ValueError(f"segments={segments} must be between 1 and the clip's {len(video)} frames")
    edges = np.linspace(0, len(video), segments + 1).round().astype(int)
    stretches = [_aggregate(analysis, slice(int(a), int(b))) for a, b in pairwise(edges)]
    return _aggregate(analysis, slice(0, len(video))), stretches


def _chunks(window: slice) -> list[slice]:
    """The window in equal pieces of about _CHUNK frames."""
    count = max(1, round((window.stop - window.start) / _CHUNK))
    edges = np.linspace(window.start, window.stop, count + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


def _speeds(track: Track, window: slice, true: float) -> np.ndarray:
    """Speed of each chunk relative to the true one. A wall turns one axis around, so each axis has its own median."""
    lag = min(LAG, len(track.clear) - 1)
    moved = np.abs(track.centre[lag:] - track.centre[:-lag]) / lag
    visible = np.nan_to_num(track.visible)
    found = []
    for chunk in _chunks(window):
        ends = slice(chunk.start, min(chunk.stop, len(moved)))
        for usable in (track.clear, visible > 0.6):
            good = moved[ends][(usable[lag:] & usable[:-lag])[ends]]
            if len(good) >= min(_PAIRS, max(1, chunk.stop - chunk.start - lag)):
                found.append(float(np.hypot(*np.median(good, 0))) / true)
                break
    return np.array(found)


def _mean(values: Any) -> float:
    kept = np.asarray(values, float)
    kept = kept[~np.isnan(kept)]
    return float(kept.mean()) if len(kept) else math.nan


def _closeness(ratio: float | np.ndarray) -> Any:
    return np.minimum(ratio, 1 / np.maximum(ratio, 1e-6))


def _score_shape(track: Track, name: str, window: slice, speed: float) -> ShapeScore:
    area, visible = track.area[window], track.visible[window]
    lost, clear = np.isnan(visible), track.clear[window]
    counted = lost | (visible >= 0.35)
    share = np.where(lost, 0, area / np.where(lost, 1, np.maximum(visible, 0.05)))
    right = np.full(len(area), math.nan) if track.told < 0 else (track.kind[window] == track.told).astype(float)
    well = ~lost & (visible > 0.7)
    speeds = _speeds(track, window, speed)
    error = _mean(track.error[window])
    return ShapeScore(
        name=name,
        presence=_mean(share[counted] >= 0.5),
        shape_accuracy=_mean(right[clear] if clear.any() else right[well]),
        area=_mean(share[clear] if clear.any() else share[well]),
        speed=_mean(speeds),
        motion=_mean(_closeness(speeds)),
        sharpness=_mean(track.sharpness[window]),
        psnr=math.nan if math.isnan(error) else min(_CAP, -10 * math.log10(max(error, 1e-12))),
    )


def _loop_and_repeated(
    tracks: tuple[Track, ...], window: slice, shortest: int = 16, run: int = 9, away: float = 6.0
) -> tuple[float, float]:
    """See `GroundTruthScore.loop` and `repeated`."""
    centre = np.stack([t.centre[window] for t in tracks], 1)
    known = np.stack([np.nan_to_num(t.visible[window]) > 0.5 for t in tracks], 1)
    frames, loop, repeated = len(centre), 0.0, 0.0
    if frames < 3 * shortest:
        return 0.0, 0.0
    farthest = np.zeros(frames)
    for lag in range(1, frames - max(shortest, frames // 4) + 1):
        gap = np.hypot(*(centre[lag:] - centre[:-lag]).transpose(2, 0, 1))
        both = known[lag:] & known[:-lag]
        gap[~both] = 0.0
        farthest = np.maximum(farthest[: len(gap)], gap.max(1))
        if lag < shortest:
            continue
        same = both.any(1) & (gap < _MATCH).all(1) & (farthest > away)
        width = min(run, len(same))
        total = np.convolve(same, np.ones(width), "valid")
        share = float((total > width - 0.5).mean())
        loop, repeated = max(loop, share), max(repeated, share * (frames - lag) / frames)
    return loop, repeated


def _identity(shapes: tuple[ShapeScore, ...], foreign: float, asked: float) -> float:
    """A shape that was never found is wrong; one that others hid all the time is unknown."""
    found = _mean([0.0 if s.presence == 0 else s.presence * s.shape_accuracy for s in shapes])
    return found * asked / (asked + foreign)


def _product(factors: list[float]) -> float:
    """NaN factors left out; NaN of none."""
    kept = [f for f in factors if not math.isnan(f)]
    return math.prod(kept) if kept else math.nan


def _geometric(terms: list[float]) -> float:
    """Geometric mean, NaN terms left out; 0 of none."""
    kept = [t for t in terms if not math.isnan(t)]
    return math.prod(kept) ** (1 / len(kept)) if kept else 0.0


def _freeze(tracks: tuple[Track, ...], window: slice, speed: float) -> float:
    """See `GroundTruthScore.freeze`."""
    return _mean([_mean(speeds < _STANDING) for track in tracks if len(speeds := _speeds(track, window, speed))])


def _name(shape: Shape) -> str:
    colour = "some" if "colour" in shape.open else shape.colour
    return f"{colour} {'shape' if 'kind' in shape.open else shape.kind}"


def _aggregate(analysis: Analysis, window: slice) -> GroundTruthScore:
    scene, tracks = analysis.scene, analysis.tracks
    speed = SPEEDS[scene.speed]
    shapes = tuple(
        _score_shape(track, _name(shape), window, speed) for track, shape in zip(tracks, scene.shapes, strict=True)
    )
    names = ("presence", "shape_accuracy", "area", "speed", "motion", "sharpness", "psnr")
    mean = {name: _mean([getattr(s, name) for s in shapes]) for name in names}
    foreign = _mean(analysis.foreign[window])
    errors = [
        [float(np.median(measured[chunk])) - true for chunk in _chunks(window) if len(measured[chunk])]
        for measured, true in analysis.scroll
    ]
    asked = sum(track.size for track in tracks) / SIZE**2
    things, strangers = identities(analysis)
    stays = _stays(things, strangers, window)
    (loop, repeated), freeze = _loop_and_repeated(tracks, window), _freeze(tracks, window, speed)
    close = [float(_closeness(mean["sharpness"])), float(_closeness(mean["area"]))]
    still = [_identity(shapes, foreign, asked), *close]
    terms = [
        still[0],
        _product(close),
        _product([stays["constancy"], stays["permanence"], math.exp(-stays["pops"] / _NOTICED)]),
        _product([mean["motion"], 1 - freeze, 1 - repeated]),
    ]
    found = _told(tracks, things, speed) and (mean["presence"] > 0 or _away(tracks, shapes, window))
    return GroundTruthScore(
        **mean,
        **stays,
        foreign=foreign,
        scroll_error=_mean(np.hypot.reduce(np.array(errors), axis=0)) if errors else math.nan,
        loop=loop,
        repeated=repeated,
        freeze=freeze,
        composite=_geometric(terms) if found else 0.0,
        composite_before=_geometric([*still, mean["motion"]]) if found else 0.0,
        shapes=shapes,
        asked=asked,
    )


def _told(tracks: tuple[Track, ...], things: tuple[Identity, ...], speed: float) -> bool:
    """Whether the clip as a whole tells of any shape what stays and what goes on; a stretch may be too short to."""
    whole = slice(0, len(tracks[0].area))
    return not math.isnan(constancy(things, whole)) and any(len(_speeds(track, whole, speed)) for track in tracks)


def _away(tracks: tuple[Track, ...], shapes: tuple[ShapeScore, ...], window: slice) -> bool:
    """Whether all shapes are out of the frame, so that nothing can be asked: none was missed, and no more of their
    colours is there than could be in view. Of noise, in which each seems to be behind the others, there is more."""
    more = [track.area[window] - np.nan_to_num(track.visible[window]) for track in tracks]
    return all(math.isnan(shape.presence) for shape in shapes) and float(np.mean(more)) < SEEN


def _stays(found: tuple[Identity, ...], strangers: np.ndarray, window: slice) -> dict[str, float]:
    return {
        "constancy": constancy(found, window),
        "permanence": permanence(found, window),
        "pops": pops(found, strangers, window),
    }
