"""Decayed scores outside the trained window: the part "ultravico".

UltraViCo (Zhao et al., ICLR 2026, arXiv 2511.20123, section 3.3): positive scores of frames farther than half of the
trained length are multiplied by alpha, and by a smaller beta near the distances at which the model repeats itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.frame_times import Frames
from freeloc_fx.method.parts import Part
from freeloc_fx.method.positions import distances
from freeloc_fx.method.strategy import Geometry

__all__ = ["UltraViCo"]


_CHECKS = {
    "alpha": checks.number(0, 1),
    "beta": checks.number(0, 1),
    "gamma": checks.whole(0),
    "period": checks.whole(1),
}


@dataclass(frozen=True)
class UltraViCo:
    """A factor below 1 on the positive scores of frames that are far apart.

    The factor of frames i and j, with L = trained_frames:

        |i-j| <= L/2:                                   1
        |i-j| within gamma of a multiple of `period`:   beta
        elsewhere:                                      alpha

    The authors: alpha = 0.9 and no beta for Wan; for HunyuanVideo gamma = 4 and (alpha, beta) = (0.95, 0.6) at twice
    the trained length, (0.9, 0.6) at three, (0.9, 0.8) at four and five times. `period` is that of the model's
    intrinsic frequency (RIFLEx's N_k; 50 latent frames for HunyuanVideo), None for a model that does not repeat.

    Args:
        trained_frames: latent frames of the training clips, at least 1.
        alpha: factor on scores outside the trained window, in (0, 1].
        beta: factor near multiples of the period, in (0, 1].
        gamma: how near, in latent frames, at least 0.
        period: the period with which the model repeats, in latent frames, at least 1; None where it does not.

    Raises:
        StrategyError: they are not.
    """

    trained_frames: int
    alpha: float = 0.9
    beta: float = 0.6
    gamma: int = 4
    period: int | None = None

    def __post_init__(self) -> None:
        required = {key: check for key, check in _CHECKS.items() if key != "period"}
        checks.fields("ultravico", self, {"trained_frames": checks.whole(1), **required})
        if self.period is not None:
            _CHECKS["period"]("ultravico.period", self.period)

    def table(self, frames: Frames) -> np.ndarray:
        distance = np.abs(distances(frames))
        factor = np.full(distance.shape, float(self.alpha))
        if self.period is not None:
            phase = distance % self.period
            # Distance 0 is a multiple too; its neighbourhood matters only where gamma exceeds L/2.
            factor[np.minimum(phase, self.period - phase) <= self.gamma] = self.beta
        factor[2 * distance <= self.trained_frames] = 1.0
        return factor

    def describe(self) -> dict[str, Any]:
        return {"kind": "ultravico", **asdict(self)}


def _ultravico(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Positive scores of frames farther apart than half of the trained length are multiplied by a factor below 1."""
    for name in ("beta", "gamma"):
        if name in own and "period" not in own:
            raise StrategyError(f"ultravico.period: missing; {name} holds near multiples of the period")
    return {"decay": UltraViCo(geometry.trained_frames, **own)}


PART = Part("ultravico", _ultravico, sets=("decay",), settings=_CHECKS, value=UltraViCo)
