"""Sliding window attention: the part "window".

The baseline of FreeLOC (CVPR 2026, arXiv 2603.25209; its code takes 12 frames to either side and the first
frame as a sink on a model trained on 21) and the temporal half of Longformer (arXiv 2004.05150, section 3.1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .. import checks
from ..positions import distances
from ..strategy import Geometry, Settings, own_settings, part
from ..visibility import FULL, NONE

__all__ = ["Window"]

_CHECKS = {"window": checks.whole(0), "sink": checks.flag}


@dataclass(frozen=True)
class Window:
    """A query of frame i sees frame j where |i - j| <= window, and frame 0 where `sink`. Positions stay.

    Args: window in latent frames, at least 0.
    Raises: StrategyError where it is not.
    """

    window: int
    sink: bool = True

    def __post_init__(self) -> None:
        checks.fields("window", self, _CHECKS)

    def levels(self, frames: int) -> np.ndarray:
        levels = np.where(np.abs(distances(frames)) <= self.window, FULL, NONE).astype(np.int8)
        if self.sink:
            levels[:, 0] = FULL
        return levels

    def stripe(self, height: int, width: int) -> np.ndarray:
        return np.ones((height * width, height * width), bool)

    def describe(self) -> dict[str, Any]:
        return {"visibility": "window", **asdict(self)}


@part("window", _CHECKS)
def _window(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """Unless set: the baseline's 12 of 21 frames scaled to the trained length, with the sink."""
    own = own_settings("window", settings)
    own.setdefault("window", max(1, round(Fraction(12 * geometry.trained_frames, 21))))
    return {"visibility": Window(**own)}
