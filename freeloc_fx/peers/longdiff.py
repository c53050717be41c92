"""Shifted groupings of the distance, averaged: the part "longdiff".

LongDiff (Li et al., CVPR 2025, arXiv 2503.18150, section "Position Mapping"): GROUP maps the distances of N frames onto
those of G trained frames, SHIFT moves the edges of the groups M times, and the M softmax matrices are averaged. No code
was released and the paper runs on UNets. Chosen here: the formula on |d| with the sign put back, so that it is odd in
d; M shifts spread evenly over a group. The paper's informative frame selection needs the content of a preview video;
the visibility of another part, as in "longdiff+anchors" or "longdiff+window", stands in for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import checks
from ..errors import StrategyError
from ..mixture import Mean
from ..positions import Band, distances
from ..strategy import Geometry, Settings, Strategy, own_settings, part

__all__ = ["MOST_SHIFTS", "ShiftedGroups", "group_size"]

MOST_SHIFTS = 16
"""Attentions that one layer runs at most unless "shifts" says otherwise; the paper's number."""

_CHECKS = {"frames": checks.whole(2), "shifts": checks.whole(1)}


@dataclass(frozen=True)
class ShiftedGroups:
    """P(d) = sign(d) ceil((|d| - shift) / size), and 0 where that is negative.

    Over all shifts 0 .. size-1 the mean of P is d / size exactly (Hermite's identity for the ceiling): each grouping is
    coarse, together they tell every two distances apart.

    Args: size (the paper's ceil((N-1)/(G-1))) at least 1 and shift from 0 to size - 1, in latent frames.
    Raises: StrategyError where they are not.
    """

    size: int
    shift: int = 0

    def __post_init__(self) -> None:
        checks.fields("longdiff", self, {"size": checks.whole(1), "shift": checks.whole(0)})
        if self.shift >= self.size:
            raise StrategyError(f"longdiff.shift: expected 0 to {self.size - 1}, found {self.shift}")

    def table(self, frames: int) -> np.ndarray:
        d = distances(frames)
        return (np.sign(d) * -((self.shift - np.abs(d)) // self.size)).astype(np.float64)

    def bands(self, frames: int) -> list[Band]:
        # For i = a * size + r: ceil((i - j - shift)/size) = a - floor((j - r + shift)/size), and for the future
        # -ceil((j - i - shift)/size) = a - ceil((j - r - shift)/size). shift < size makes both right down to d = 0.
        index = np.arange(frames)
        query = (index // self.size).astype(np.float64)
        d = distances(frames)
        bands = []
        for r in range(min(self.size, frames)):
            rows = np.broadcast_to((index % self.size == r)[:, None], d.shape)
            past = (index - r + self.shift) // self.size
            future = -((r + self.shift - index) // self.size)
            if np.array_equal(past, future):
                bands.append(Band(query, past.astype(np.float64), rows.copy()))
            else:
                bands.append(Band(query, past.astype(np.float64), rows & (d >= 0)))
                bands.append(Band(query, future.astype(np.float64), rows & (d < 0)))
        return [band for band in bands if band.pairs.any()]

    def describe(self) -> dict[str, Any]:
        return {"map": "shifted groups", **asdict(self)}


def group_size(groups: int, frames: int) -> int:
    """ceil((N-1)/(G-1)): distances a position stands for when `frames` are mapped onto `groups` of them."""
    return max(1, -(-(frames - 1) // (groups - 1)))


@part("longdiff", _CHECKS)
def _longdiff(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """Unless set: G ("frames") is the trained length, M ("shifts") as many as differ, at most `MOST_SHIFTS`."""
    own = own_settings("longdiff", settings)
    groups = own.get("frames", geometry.trained_frames)
    if not 2 <= groups <= geometry.trained_frames:
        raise StrategyError(f"longdiff.frames: expected 2 to the trained {geometry.trained_frames}, found {groups}")
    size = group_size(groups, geometry.frames)
    shifts = own.get("shifts", min(size, MOST_SHIFTS))
    if shifts > size:
        raise StrategyError(f"longdiff.shifts: {size} groupings differ at {geometry.frames} frames, found {shifts}")
    maps = [ShiftedGroups(size, m * size // shifts) for m in range(shifts)]
    return {"mixture": Mean(tuple(Strategy(f"longdiff.{m}", positions) for m, positions in enumerate(maps)))}
