"""Find frames that stand among words or sound, and the order in which they would stand next to the clip.

    in the model:  words | keyframe | sound | clip          MiniMax-H3 has keyframes and references there
    in order:      words | sound | keyframe | clip          as `beside` reads a sequence

Attention does not ask for the order of its tokens, so they may be taken in any, and the result be put back.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .beside import longest
from .measure import STILL, Rotations
from .pictures import Rasters
from .temporal import grid_of

__all__ = ["Order", "back", "in_order", "order_of", "places_of"]

Order = tuple[tuple[int, int], ...]
"""Spans of tokens, each by its first and the one after its last, in the order in which they are to be read."""


def order_of(
    rotations: Rotations, tolerance: float, known: tuple[int, int] | None = None
) -> tuple[Order, tuple[int, int]] | None:
    """Find the order in which all words and sound stand before or after all frames.

    Where a model turns some channels in time alone, tokens of one time that stand in a row are frames, and words that
    are at a frame's time; `pictures` says how they are told apart. Where nothing tells, they count as words.

    Args:
        rotations: what RoPE does at each token.
        tolerance: largest accepted deviation from a rotation, as in `measure`.
        known: as of `beside.stretch_of`.

    Returns:
        The order, and where in it those tokens begin and end that stand together with the clip's in the model, which
        alone may be more of it; None where the sequence is in order, or nothing tells.
    """
    whole = rotations.phase[0]
    limit = max(4 * tolerance, 2e-2)
    found = longest(whole, limit, known)
    if found is None:
        return None
    first, n, count = found
    frame, stop = whole[first : first + n], first + n * count
    alone = (np.abs(frame - frame[0]).max(0) <= limit) & (np.abs(whole[first + n] - frame[0]) > limit)
    if not alone.any() or n == 1:
        return None
    own = grid_of(frame, n, limit, 0, 0)
    rasters = Rasters(frame[:, ~alone], (own.height, own.width), limit)
    early, late = (_spans(whole, alone, rasters, span, limit) for span in ((0, first), (stop, len(whole))))
    words = [[one[1:] for one in some if not one[0]] for some in (early, late)]
    frames = [[one[1:] for one in some if one[0]] for some in (early, late)]
    order = _joined([*words[0], *frames[0], (first, stop), *frames[1], *words[1]])
    if len(order) == 1:
        return None
    place = next(index for index, span in enumerate(order) if span[0] <= first < span[1])
    start = sum(b - a for a, b in order[:place])
    return order, (start, start + order[place][1] - order[place][0])


def in_order(rotations: Rotations, order: Order) -> Rotations:
    """Give what RoPE does at tokens that are taken in another order.

    Args:
        rotations: as the model has them.
        order: of the tokens.
    """
    places, others = places_of(order), rotations.others
    return replace(
        rotations,
        phase=rotations.phase[:, places],
        others=None if others is None else lambda at: _others(others, places[at]),
    )


def places_of(order: Order) -> np.ndarray:
    """Give the tokens of an order, one by one.

    Args:
        order: of the tokens.
    """
    return np.concatenate([np.arange(first, stop) for first, stop in order])


def back(order: Order) -> Order:
    """Give the order that undoes another one.

    Args:
        order: of the tokens.
    """
    ends = np.cumsum([stop - first for first, stop in order]).tolist()
    spans = [(first, end - (stop - first), end) for (first, stop), end in zip(order, ends, strict=True)]
    return tuple((start, stop) for _, start, stop in sorted(spans))


def _others(others: object, places: np.ndarray) -> np.ndarray:
    """Phases at tokens in any order, asked for in a rising one."""
    assert callable(others)
    rank = np.argsort(places, kind="stable")
    found: np.ndarray = np.asarray(others(places[rank]))[:, np.argsort(rank)]
    return found


def _spans(
    whole: np.ndarray, alone: np.ndarray, rasters: Rasters, span: tuple[int, int], limit: float
) -> list[tuple[bool, int, int]]:
    """Frames (True) and words of a stretch beside the clip, each with its tokens."""
    first, stop = span
    if first == stop:
        return []
    time = whole[first:stop, alone]
    cuts = np.flatnonzero(np.abs(np.diff(time, axis=0)).max(1) > limit) + 1
    found: list[tuple[bool, int, int]] = []
    for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), stop - first], strict=True):
        tokens = whole[first + a : first + b]
        parts = rasters.parts(tokens[:, ~alone]) if b - a > 1 else None
        unsure = parts is None or any(rasters.may_be_words(part, tokens[:, ~alone]) for part in parts)
        if parts is None or unsure or not (np.abs(tokens - 1) > STILL).any():
            found.append((False, first + a, first + b))
        else:
            found += [(part.height > 0, first + a + part.first, first + a + part.stop) for part in parts]
    return found


def _joined(spans: list[tuple[int, int]]) -> Order:
    """The same with spans that follow each other made one."""
    found: list[tuple[int, int]] = []
    for first, stop in spans:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((first, stop))
    return tuple(found)
