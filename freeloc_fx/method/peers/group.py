"""Grouped positions: the part "group".

SelfExtend (Jin et al., ICML 2024, arXiv 2401.01325): neighbours keep their distance, farther pairs get the distance of
their groups. Written for causal text; for video the formula is continued to the future with the sign of d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.frame_times import Frames, times
from freeloc_fx.method.parts import Part
from freeloc_fx.method.positions import Band, distances, two_sided
from freeloc_fx.method.strategy import Geometry

__all__ = ["Group"]


_CHECKS = {"near": checks.whole(1), "group": checks.whole(1)}


@dataclass(frozen=True)
class Group:
    """Neighbours keep their distance, farther pairs get the distance of their groups.

    With W = near and G = group: P = d where |d| < W, else P = floor(i/G) - floor(j/G) + sign(d) (W - floor(W/G)).

    Args:
        near: the paper's neighbour window, in latent frames, at least 1.
        group: the paper's group size, in latent frames, at least 1.

    Raises:
        StrategyError: they are not.
    """

    near: int
    group: int

    def __post_init__(self) -> None:
        checks.fields("group", self, _CHECKS)

    def reach(self, frames: Frames) -> int:
        """Give the largest |P| of a clip, in latent frames.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.
        """
        return int(np.abs(self.table(frames)).max())

    def table(self, frames: Frames) -> np.ndarray:
        d = distances(frames)
        groups = times(frames) // self.group
        far = groups[:, None] - groups[None, :] + np.sign(d) * (self.near - self.near // self.group)
        return np.where(np.abs(d) < self.near, d, far).astype(np.float64)

    def bands(self, frames: Frames) -> list[Band]:
        index, d = times(frames), distances(frames)
        near = np.abs(d) < self.near
        own, groups = index.astype(np.float64), index // self.group
        return [Band(own, own, near), *two_sided(groups, groups, self.near - self.near // self.group, ~near, d)]

    def describe(self) -> dict[str, Any]:
        return {"map": "group", **asdict(self)}


def _group(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Neighbours keep their distance, farther pairs get the distance of their groups.

    Unless set: neighbours up to half of the trained length, and the smallest group that keeps |P| within it.
    """
    near = own.setdefault("near", max(1, geometry.trained_frames // 2))
    if "group" not in own:
        own["group"] = _smallest(near, geometry)
    return {"positions": Group(**own)}


def _smallest(near: int, geometry: Geometry) -> int:
    """Find the smallest group size with which no distance leaves the trained range."""
    for group in range(1, geometry.frames + 1):
        if Group(near, group).reach(geometry.frames) < geometry.trained_frames:
            return group
    raise StrategyError(
        f"group.near: no group size keeps {geometry.frames} latent frames within the trained "
        f"{geometry.trained_frames}; expected near of at most {geometry.trained_frames - 1}, found {near}"
    )


PART = Part("group", _group, sets=("positions",), settings=_CHECKS, value=Group)
