"""NTK-aware interpolation: the part "ntk".

bloc97 2023, written down in YaRN (Peng et al., ICLR 2024, arXiv 2309.00071, definition 1): the base b of RoPE becomes
b s^(d/(d-2)), which turns omega_p = b^(-2p/d) into omega_p s^(-2p/(d-2)). The second form needs no base, only the order
of the pairs, so it holds for frequencies that are no powers of a base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.method import checks
from freeloc_fx.method.frequencies import ranks, stretch
from freeloc_fx.method.parts import Part
from freeloc_fx.method.strategy import Geometry

__all__ = ["NTK"]


@dataclass(frozen=True)
class NTK:
    """The fastest pair stays, the slowest is divided by the ratio of lengths, and the others lie between.

    omega'_p = omega_p s^(-2p/(d-2)), with p the rank of the pair (0 is the fastest), d twice the number of pairs, and
    s = frames / trained_frames. A single pair is the fastest and stays.

    Args:
        trained_frames: latent frames of the training clips, at least 1.

    Raises:
        StrategyError: it is not.
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


def _ntk(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Temporal frequencies are lowered, the fastest not at all, the slowest by the ratio of lengths."""
    return {"frequencies": NTK(geometry.trained_frames)}


PART = Part("ntk", _ntk, sets=("frequencies",), value=NTK)
