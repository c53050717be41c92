"""NTK-aware interpolation: the part "ntk".

bloc97 2023, written down in YaRN (Peng et al., ICLR 2024, arXiv 2309.00071, definition 1): the base b of RoPE becomes
b s^(d/(d-2)), which turns omega_p = b^(-2p/d) into omega_p s^(-2p/(d-2)). The second form needs no base, only the order
of the pairs, so it holds for frequencies that are no powers of a base.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import checks
from ..frequencies import ranks, stretch
from ..strategy import Geometry, Settings, part

__all__ = ["NTK"]


@dataclass(frozen=True)
class NTK:
    """omega'_p = omega_p s^(-2p/(d-2)) with p the rank of the pair, 0 the fastest, d = 2 pairs, s = frames/trained.

    The fastest pair stays and the slowest is divided by s. A single pair is the fastest and stays.

    Args: trained_frames in latent frames, at least 1.
    Raises: StrategyError where it is not.
    """

    trained_frames: int

    def __post_init__(self) -> None:
        checks.fields("ntk", self, {"trained_frames": checks.whole(1)})

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        omega = np.asarray(omega, dtype=np.float64)
        share = ranks(omega) / max(omega.shape[-1] - 1, 1)  # 2p/(d-2)
        result: np.ndarray = omega * stretch(self.trained_frames, frames) ** -share
        return result

    def describe(self) -> dict[str, Any]:
        return {"kind": "ntk", **asdict(self)}


@part("ntk")
def _ntk(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    return {"frequencies": NTK(geometry.trained_frames)}
