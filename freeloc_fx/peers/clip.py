"""Clipped distances: the part "clip".

ReRoPE (Su, "Transformer upgrade path 12: ReRoPE", 2023), with both directions of time: sign(d) min(|d|, W).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import checks
from ..positions import Band, distances, two_sided
from ..strategy import Geometry, Settings, own_settings, part

__all__ = ["Clip"]

_CHECKS = {"bound": checks.whole(0)}


@dataclass(frozen=True)
class Clip:
    """P(d) = sign(d) min(|d|, bound): near distances stay, all far ones become one.

    Args: bound in latent frames, at least 0.
    Raises: StrategyError where it is not.
    """

    bound: int

    def __post_init__(self) -> None:
        checks.fields("clip", self, _CHECKS)

    def table(self, frames: int) -> np.ndarray:
        return np.clip(distances(frames), -self.bound, self.bound).astype(np.float64)

    def bands(self, frames: int) -> list[Band]:
        index = np.arange(frames, dtype=np.float64)
        far = np.abs(distances(frames)) > self.bound
        still = np.zeros(frames)
        return [Band(index, index, ~far), *two_sided(still, still, self.bound, far)]

    def describe(self) -> dict[str, Any]:
        return {"map": "clip", **asdict(self)}


@part("clip", _CHECKS)
def _clip(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """Unless set: the largest trained distance. ReRoPE itself uses half of the trained length or less."""
    own = own_settings("clip", settings)
    return {"positions": Clip(**{"bound": geometry.trained_frames - 1, **own})}
