"""Clipped distances: the part "clip".

ReRoPE (Su, "Transformer upgrade path 12: ReRoPE", 2023), with both directions of time: sign(d) min(|d|, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.method import checks
from freeloc_fx.method.frame_times import Frames, times
from freeloc_fx.method.parts import Part
from freeloc_fx.method.positions import Band, distances, two_sided
from freeloc_fx.method.strategy import Geometry

__all__ = ["Clip"]


_CHECKS = {"bound": checks.whole(0)}


@dataclass(frozen=True)
class Clip:
    """Near distances stay and all far ones become one: P(d) = sign(d) min(|d|, bound).

    Args:
        bound: the largest distance that is kept, in latent frames, at least 0.

    Raises:
        StrategyError: it is not.
    """

    bound: int

    def __post_init__(self) -> None:
        checks.fields("clip", self, _CHECKS)

    def table(self, frames: Frames) -> np.ndarray:
        return np.clip(distances(frames), -self.bound, self.bound).astype(np.float64)

    def bands(self, frames: Frames) -> list[Band]:
        index, d = times(frames).astype(np.float64), distances(frames)
        far = np.abs(d) > self.bound
        still = np.zeros(len(index))
        return [Band(index, index, ~far), *two_sided(still, still, self.bound, far, d)]

    def describe(self) -> dict[str, Any]:
        return {"map": "clip", **asdict(self)}


def _clip(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Near distances stay, all farther ones become the largest that is kept.

    Unless set, that is the largest trained distance. ReRoPE itself uses half of the trained length or less.
    """
    return {"positions": Clip(**{"bound": geometry.trained_frames - 1, **own})}


PART = Part("clip", _clip, sets=("positions",), settings=_CHECKS, value=Clip)
