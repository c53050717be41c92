"""Position interpolation: the part "pi".

Chen et al. 2023 (arXiv 2306.15595, equation 4): positions are divided by s = frames / trained_frames, which is the same
as dividing every frequency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.method import checks
from freeloc_fx.method.frequencies import stretch
from freeloc_fx.method.parts import Part
from freeloc_fx.method.strategy import Geometry

__all__ = ["PI"]


@dataclass(frozen=True)
class PI:
    """All frequencies are divided by the ratio of lengths: omega' = omega / s with s = frames / trained_frames.

    The last frame of the clip then stands at (frames - 1) / s, which is less than trained_frames.

    Args:
        trained_frames: latent frames of the training clips, at least 1.

    Raises:
        StrategyError: it is not.
    """

    trained_frames: int

    def __post_init__(self) -> None:
        checks.fields("pi", self, {"trained_frames": checks.whole(1)})

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        result: np.ndarray = np.asarray(omega, dtype=np.float64) / stretch(self.trained_frames, frames)
        return result

    def describe(self) -> dict[str, Any]:
        return {"kind": "pi", **asdict(self)}


def _pi(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All temporal frequencies are divided by the ratio of lengths."""
    return {"frequencies": PI(geometry.trained_frames)}


PART = Part("pi", _pi, sets=("frequencies",), value=PI)
