"""Bands of a spec: sets of pairs of latent frames on which one turned query and one turned key serve.

The score of query frame i and key frame j must come out as if they stood P(i, j) apart. If P(i, j) is a difference
a(i) - b(j) on some set of pairs, then turning each query to a(i) and each key to b(j) once is right on all of that set:
such a set is a band. Without a position map all visible pairs are one band. Under one that keeps near pairs and
compresses far ones (P = floor(d / 2) from distance d = 2 on, say) they are a near band and a few far ones::

    key    0 1 2 3 4 5
    row 0  n n . . . .       n  near: nothing turns
        1  n n n . . .       e  far, even query frames: the keys turn to ceil(j / 2)
        2  e n n n . .       o  far, odd query frames: the keys turn to ceil((j - 1) / 2)
        3  o o n n n .
        4  e e e n n n       (the pairs above the diagonal are left out here)
        5  o o o o n n

A band keeps only the query frames that have pairs in it (for exact pair quantisation these are one residue class), so
that a band is a smaller attention of its own. Lowerings run each band and merge the results by log-sum-exp.

A column is a key frame that every query frame sees. One key frame is at any distance from a query if the query turns,
so that it needs no bands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freeloc_fx.method.positions import Identity
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import FULL, NONE

__all__ = ["Column", "SpecBand", "spec_bands", "take_columns"]


@dataclass(frozen=True)
class SpecBand:
    """One band.

    Args:
        rows: its query frames, evenly spaced.
        levels: visibility, int8 (rows, frames), NONE outside the band.
        query_turn: latent frames by which to turn each query frame, float64 (rows,); None where none turns.
        key_turn: latent frames by which to turn each key frame, float64 (frames,); None where none turns.
    """

    rows: slice
    levels: np.ndarray
    query_turn: np.ndarray | None
    key_turn: np.ndarray | None


def spec_bands(spec: AttentionSpec, levels: np.ndarray | None = None) -> list[SpecBand]:
    """The bands of a strategy.

    Args:
        spec: the strategy, grid and RoPE.
        levels: visibility, int8 (frames, frames); None for the strategy's own.

    Returns:
        Bands that together hold every visible pair exactly once.
    """
    index = spec.grid.times
    levels = spec.levels() if levels is None else levels
    result = []
    for band in spec.strategy.positions.bands(spec.grid.frame_times):
        visible = np.where(band.pairs, levels, NONE).astype(np.int8)
        used = np.flatnonzero(visible.any(1))
        if not len(used):
            continue
        step = int(np.gcd.reduce(np.diff(used))) if len(used) > 1 else 1
        rows = slice(int(used[0]), int(used[-1]) + 1, step)
        # Keys of neighbouring residue classes stand at the same places but for a few frames: no common shift is taken
        # out, so that a buffer of turned keys need not move the others.
        query, key = (band.query - index)[rows], band.key - index
        result.append(
            SpecBand(
                rows,
                visible[rows].copy(),  # not a view, which would keep all rows
                query if np.abs(query).max() > 0 else None,
                key if np.abs(key[visible.any(0)]).max() > 0 else None,
            )
        )
    return result


_COLUMNS = 8
"""At most so many key frames seen by everybody are taken out on their own under a position map."""


@dataclass(frozen=True)
class Column:
    """Key frames that every query frame sees.

    Args:
        frames: the key frames: one of them under a position map, else as many as lie side by side.
        turn: latent frames by which each query frame turns to stand at its distance from them, float64 (frames,); None
            where none turns.
    """

    frames: slice
    turn: np.ndarray | None


def take_columns(spec: AttentionSpec, levels: np.ndarray) -> list[Column]:
    """Take the key frames that every query frame sees out of a visibility.

    Args:
        spec: the strategy, grid and RoPE.
        levels: visibility, int8 (frames, frames); what is taken out becomes NONE, in place.

    Returns:
        The columns; none under a position map where more than 8 key frames are seen by all.
    """
    mapped = not isinstance(spec.strategy.positions, Identity)
    found = np.flatnonzero((levels == FULL).all(0))
    if not len(found) or (mapped and len(found) > _COLUMNS):
        return []
    levels[:, found] = NONE
    if not mapped:
        cuts = np.flatnonzero(np.diff(found) > 1)
        starts, ends = found[np.concatenate([[0], cuts + 1])], found[np.concatenate([cuts, [len(found) - 1]])] + 1
        return [Column(slice(int(a), int(b)), None) for a, b in zip(starts, ends, strict=True)]
    table, index = spec.table(), spec.grid.times
    return [Column(slice(int(j), int(j) + 1), table[:, j] + index[j] - index) for j in found]
