"""Shifted groupings of the distance, averaged: the part "longdiff".

LongDiff (Li et al., CVPR 2025, arXiv 2503.18150, section "Position Mapping"): GROUP maps the distances of N frames onto
those of G trained frames, SHIFT moves the edges of the groups M times, and the M softmax matrices are averaged. No code
was released and the paper runs on UNets. Chosen here: the formula on |d| with the sign put back, so that it is odd in
d; M shifts spread evenly over a group. The paper's informative frame selection needs the content of a preview video;
the visibility of another part, as in "longdiff+anchors" or "longdiff+window", stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.frame_times import Frames, times
from freeloc_fx.method.mixture import Mean
from freeloc_fx.method.parts import Part
from freeloc_fx.method.positions import Band, distances, quantised
from freeloc_fx.method.strategy import Geometry, Strategy

__all__ = ["MOST_SHIFTS", "ShiftedGroups", "group_size"]


MOST_SHIFTS = 16
"""Attentions that one layer runs at most unless "shifts" says otherwise; the paper's number."""


_CHECKS = {"frames": checks.whole(2), "shifts": checks.whole(1)}


@dataclass(frozen=True)
class ShiftedGroups:
    """Distances in groups of one size, with edges that are moved by a shift.

    P(d) = sign(d) ceil((|d| - shift) / size), and 0 where the ceiling is negative.

    Over all shifts 0 .. size-1 the mean of P is d / size exactly (Hermite's identity for the ceiling): each grouping is
    coarse, together they tell every two distances apart.

    Args:
        size: distances that share a position, the paper's ceil((N-1)/(G-1)), in latent frames, at least 1.
        shift: by how much the edges of the groups are moved, in latent frames, from 0 to size - 1.

    Raises:
        StrategyError: they are not.
    """

    size: int
    shift: int = 0

    def __post_init__(self) -> None:
        checks.fields("longdiff", self, {"size": checks.whole(1), "shift": checks.whole(0)})
        if self.shift >= self.size:
            raise StrategyError(f"longdiff.shift: expected 0 to {self.size - 1}, found {self.shift}")

    def table(self, frames: Frames) -> np.ndarray:
        d = distances(frames)
        return (np.sign(d) * -((self.shift - np.abs(d)) // self.size)).astype(np.float64)

    def bands(self, frames: Frames) -> list[Band]:
        # For i = a * size + r: ceil((i - j - shift)/size) = a - floor((j - r + shift)/size), and for the future
        # -ceil((j - i - shift)/size) = a - ceil((j - r - shift)/size). shift < size makes both right down to d = 0.
        index = times(frames)
        query = (index // self.size).astype(np.float64)
        d = distances(frames)
        bands = []
        for r in np.unique(index % self.size):
            rows = np.broadcast_to((index % self.size == r)[:, None], d.shape)
            past = (index - r + self.shift) // self.size
            future = -((r + self.shift - index) // self.size)
            if np.array_equal(past, future):
                bands.append(Band(query, past.astype(np.float64), rows.copy()))
            else:
                bands.append(Band(query, past.astype(np.float64), rows & (d >= 0)))
                bands.append(Band(query, future.astype(np.float64), rows & (d < 0)))
        return [band for band in bands if band.pairs.any()]

    def tiers(self, frames: Frames) -> list[tuple[Band, ...]]:
        """Give the one tier: keys at floor(j / size) serve all pairs, with queries at up to three places.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.
        """
        table = self.table(frames)
        return [quantised(table, times(frames) // self.size, np.ones(table.shape, bool))]

    def describe(self) -> dict[str, Any]:
        return {"map": "shifted groups", **asdict(self)}


def group_size(groups: int, frames: int) -> int:
    """Give how many distances share a position when a clip is mapped onto fewer frames: ceil((N-1)/(G-1)).

    Args:
        groups: G, the latent frames that the clip is mapped onto, at least 2.
        frames: N, latent frames of the clip.

    Returns:
        The number of distances, at least 1.
    """
    return max(1, -(-(frames - 1) // (groups - 1)))


def _longdiff(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The mean of several attentions, each with distances grouped into the trained range in another way.

    Unless set: G ("frames") is the trained length, M ("shifts") as many as differ, at most `MOST_SHIFTS`.
    """
    groups = own.get("frames", geometry.trained_frames)
    if not 2 <= groups <= geometry.trained_frames:
        raise StrategyError(f"longdiff.frames: expected 2 to the trained {geometry.trained_frames}, found {groups}")
    size = group_size(groups, geometry.frames)
    shifts = own.get("shifts", min(size, MOST_SHIFTS))
    if shifts > size:
        raise StrategyError(f"longdiff.shifts: {size} groupings differ at {geometry.frames} frames, found {shifts}")
    maps = [ShiftedGroups(size, m * size // shifts) for m in range(shifts)]
    return {"mixture": Mean(tuple(Strategy(f"longdiff.{m}", positions) for m, positions in enumerate(maps)))}


PART = Part("longdiff", _longdiff, sets=("mixture",), settings=_CHECKS, mixes=("positions",))
