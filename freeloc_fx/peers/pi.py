"""Position interpolation: the part "pi".

Chen et al. 2023 (arXiv 2306.15595, equation 4): positions are divided by s = frames / trained_frames, which is the same
as dividing every frequency.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import checks
from ..frequencies import stretch
from ..strategy import Geometry, Settings, part

__all__ = ["PI"]


@dataclass(frozen=True)
class PI:
    """omega' = omega / s: the last frame stands at (frames - 1)/s, less than trained_frames.

    Args: trained_frames in latent frames, at least 1.
    Raises: StrategyError where it is not.
    """

    trained_frames: int

    def __post_init__(self) -> None:
        checks.fields("pi", self, {"trained_frames": checks.whole(1)})

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        result: np.ndarray = np.asarray(omega, dtype=np.float64) / stretch(self.trained_frames, frames)
        return result

    def describe(self) -> dict[str, Any]:
        return {"kind": "pi", **asdict(self)}


@part("pi")
def _pi(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    return {"frequencies": PI(geometry.trained_frames)}
