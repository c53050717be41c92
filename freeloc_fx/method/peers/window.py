"""Sliding window attention: the part "window".

The baseline of FreeLOC (CVPR 2026, arXiv 2603.25209; its code takes 12 latent frames to either side, and the first one
as a sink, on a model trained on 21) and the temporal half of Longformer (arXiv 2004.05150, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from freeloc_fx.method import checks
from freeloc_fx.method.frame_times import Frames, first_of_clip
from freeloc_fx.method.parts import Part
from freeloc_fx.method.positions import distances
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import FULL, NONE

__all__ = ["Window"]


_CHECKS = {"window": checks.whole(0), "sink": checks.flag}


@dataclass(frozen=True)
class Window:
    """A query of frame i sees frame j where |i - j| <= window, and frame 0 where `sink`. Positions stay.

    Window(2) in a clip of 10 latent frames:

        ###.......
        ####......
        #####.....
        ######....
        #.#####...
        #..#####..
        #...#####.
        #....#####
        #.....####
        #......###

    Args:
        window: how far a query sees to either side, in latent frames, at least 0.
        sink: whether every frame sees frame 0.

    Raises:
        StrategyError: they are not as described.
    """

    window: int
    sink: bool = True

    def __post_init__(self) -> None:
        checks.fields("window", self, _CHECKS)

    def levels(self, frames: Frames) -> np.ndarray:
        levels = np.where(np.abs(distances(frames)) <= self.window, FULL, NONE).astype(np.int8)
        if self.sink:
            levels[:, first_of_clip(frames)] = FULL
        return levels

    def stripe(self, height: int, width: int) -> np.ndarray:
        return np.ones((height * width, height * width), bool)

    def describe(self) -> dict[str, Any]:
        return {"visibility": "window", **asdict(self)}


def _window(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A query sees the frames within a distance, and the first frame.

    Unless set: the baseline's 12 of 21 frames scaled to the trained length, with the first frame as the sink.
    """
    own.setdefault("window", max(1, round(Fraction(12 * geometry.trained_frames, 21))))
    return {"visibility": Window(**own)}


PART = Part("window", _window, sets=("visibility",), settings=_CHECKS, value=Window)
