"""Do the things of a clip stay: is each there once, and does it keep what it had in the first trained length?

What a viewer notices first in a long video is not that a frame is wrong but that something changes: a thing vanishes,
appears a second time, or turns into another. These scores look at each thing over time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from freeloc_fx.generation.tiny_wan.scenes import AREA

from .reading import TRAINED
from .tracking import Analysis, Track

__all__ = ["Identity", "constancy", "identities", "permanence", "pops"]


_HIDDEN = 0.35  # expected visible share of a thing below which nothing is asked of it


_THERE = 0.4  # share of what should be visible that has to be there


_WHOLE = 0.8  # expected visible share of a thing from which on its size and kind are asked for


_SECOND = 0.3  # share of a thing's area from which on what has its colour elsewhere is a second one


_DOUBLE = 1.7  # share of its area from which on a thing is two that touch


_LASTING = 3  # frames for which a state has to last to be noticed


_SLACK, _OTHER = 0.06, 0.3  # RGB distance of colours that are the same, and of colours that have nothing in common


@dataclass(frozen=True)
class Identity:
    """One thing over time; the arrays have one value a video frame.

    Args:
        count: how often it is there, 0, 1 or 2 (twice or more); NaN where it is hidden, so that nothing is asked.
        changes: 1 in the first frame of each lasting change of that number, else 0.
        kept: 0..1, closeness of its colour, size and kind to those in the first trained length; 0 where it is missing,
            NaN where it is hidden or was not seen in the first trained length.
    """

    count: np.ndarray
    changes: np.ndarray
    kept: np.ndarray


def identities(analysis: Analysis) -> tuple[tuple[Identity, ...], np.ndarray]:
    """Follow each thing of a clip.

    Args:
        analysis: what was found in the clip.

    Returns:
        The identity of each of its shapes, and (frames,) how many things of colours that were not asked for appear or
        vanish in each frame.
    """
    changes = np.zeros(len(analysis.foreign))
    for area in analysis.strangers:
        changes += _changes((area >= _SECOND * AREA).astype(float))
    return tuple(_identity(track) for track in analysis.tracks), changes


def _identity(track: Track) -> Identity:
    known = np.nan_to_num(track.visible)
    lost = known == 0  # not seen, whether or not the track excuses it
    visible = np.where(lost, 1.0, known)
    share = track.area / np.maximum(visible, 0.05)
    count = (share >= _THERE).astype(float) + ((track.second >= _SECOND) | (share > _DOUBLE))
    # Where it is hidden a second one still is one too many; that the first is not seen says nothing.
    hidden = np.where(lost, track.hidden, visible < _HIDDEN)
    count[hidden & (track.second < _SECOND)] = np.nan
    return Identity(count, _changes(count), _kept(track, count))


def _changes(count: np.ndarray) -> np.ndarray:
    """1 where a number changes and stays for `_LASTING` frames; frames without a number change nothing."""
    changes = np.zeros(len(count))
    known = np.flatnonzero(~np.isnan(count))
    if not len(known):
        return changes
    values = count[known]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    lasting = [(int(start), values[start]) for start, length in zip(starts, lengths, strict=True) if length >= _LASTING]
    for (_, before), (start, value) in pairwise(lasting):
        if value != before:
            changes[known[start]] = 1
    return changes


def _kept(track: Track, count: np.ndarray) -> np.ndarray:
    head = slice(0, TRAINED)
    visible = np.nan_to_num(track.visible)
    whole = track.clear | (visible > _WHOLE)
    kept = np.full(len(count), np.nan)
    coloured = ~np.isnan(track.colour).any(1)
    first = (track.clear & coloured)[head]
    if not first.any():  # others were near it all the time
        first = (whole & coloured)[head]
    if not first.any():
        return kept
    area = track.area / np.maximum(visible, 0.05)
    colour, size = np.median(track.colour[head][first], 0), float(np.median(area[head][first]))
    kind = int(np.bincount(track.kind[head][first]).argmax())
    distance = np.linalg.norm(track.colour - colour, axis=1)
    value = np.clip(1 - (distance - _SLACK) / (_OTHER - _SLACK), 0, 1)
    ratio = area / max(size, 1e-6)
    # Of a thing that others hide or the frame cuts in good part only the colour is asked for.
    value[whole] *= np.minimum(ratio, 1 / np.maximum(ratio, 1e-6))[whole] * (track.kind == kind)[whole]
    kept[coloured] = value[coloured]
    kept[np.isnan(count)] = np.nan
    kept[count == 0] = 0.0
    return kept


def permanence(found: tuple[Identity, ...], window: slice) -> float:
    """Share of the frames in which each thing is there exactly once, hidden ones left out.

    Args:
        found: the things.
        window: frames that count.

    Returns:
        0..1, the mean over the things; NaN where all were hidden throughout.
    """
    return _mean([_mean((i.count[window] == 1)[~np.isnan(i.count[window])]) for i in found])


def constancy(found: tuple[Identity, ...], window: slice) -> float:
    """How far each thing keeps the colour, size and kind that it had in the first trained length.

    Args:
        found: the things.
        window: frames that count.

    Returns:
        0..1, the mean over the things; NaN where none could be told.
    """
    return _mean([_mean(i.kept[window]) for i in found])


def pops(found: tuple[Identity, ...], strangers: np.ndarray, window: slice) -> float:
    """Things that appear, vanish, double or merge again.

    Args:
        found: the things.
        strangers: (frames,), changes among what was not asked for.
        window: frames that count.

    Returns:
        Changes per 100 frames, summed over all things.
    """
    total = sum(float(i.changes[window].sum()) for i in found) + float(strangers[window].sum())
    return 100 * total / max(1, len(strangers[window]))


def _mean(values: list[float] | np.ndarray) -> float:
    kept = np.asarray(values, float)
    kept = kept[~np.isnan(kept)]
    return float(kept.mean()) if len(kept) else math.nan
