"""Bands of a spec: sets of pairs on which one rotated query and one rotated key serve.

A band keeps only the query frames that have pairs in it (for exact pair quantisation these are one residue class), so a
band is a smaller attention of its own. Lowerings run each band and merge the results by log-sum-exp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..visibility import NONE
from .spec import AttentionSpec

__all__ = ["SpecBand", "spec_bands"]


@dataclass(frozen=True)
class SpecBand:
    """rows: the query frames, evenly spaced. levels: int8 (rows, frames), NONE outside the band.

    query_turn (rows,), key_turn (frames,): by how many latent frames to turn q and k, float64; None for "as they are".
    """

    rows: slice
    levels: np.ndarray
    query_turn: np.ndarray | None
    key_turn: np.ndarray | None


def spec_bands(spec: AttentionSpec, levels: np.ndarray | None = None) -> list[SpecBand]:
    """The bands that together hold every visible pair once; `levels` (frames, frames) if not the strategy's own."""
    frames = spec.grid.frames
    index = np.arange(frames, dtype=np.float64)
    levels = spec.strategy.visibility.levels(frames) if levels is None else levels
    result = []
    for band in spec.strategy.positions.bands(frames):
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
