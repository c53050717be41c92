"""One lowered frequency: the part "riflex".

RIFLEx (Zhao et al., ICML 2025, arXiv 2502.15894, equations 4, 7 and 8): a video repeats with the period of
one component of temporal RoPE, the intrinsic frequency; lower it until the clip fits within 0.9 of its period.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.frequencies import ranks
from freeloc_fx.method.parts import Part
from freeloc_fx.method.strategy import Geometry

__all__ = ["MARGIN", "RIFLEx"]


MARGIN = 0.9
"""Share of the new period that the clip fills; the authors' value against repetition in the last frames."""


_CHECKS = {"k": checks.whole(1), "repeats": checks.whole(1)}


@dataclass(frozen=True)
class RIFLEx:
    """One frequency is lowered: omega_k becomes 0.9 * 2 pi / frames in a clip longer than its period. The others stay.

    Components count from 1, the fastest; component j has the period N_j = round(2 pi / |omega_j|) latent frames. Which
    one is k is, in this order:

    - `k` (the authors: 4 for HunyuanVideo, 2 for CogVideoX-5B; 1, 4, 5 and 6 are in use for Wan);
    - `repeats` = N, the latent frame at which the model's long videos are first seen to repeat: argmin |N_j - N|, the
      paper's rule;
    - neither: the fastest component whose period is not shorter than the trained clip. Shorter periods turned full
      circle in training, so the model knows them; this is the first that begins to repeat beyond it. It gives the
      authors' k for both of their models without a video to look at. The slowest component where none is that slow.

    Heads are treated on their own.

    Args:
        trained_frames: latent frames of the training clips, at least 1.
        k: the component to lower, counted from 1, the fastest; None to choose it as above.
        repeats: the latent frame at which long videos are first seen to repeat, at least 1; None where it is not
            known. It cannot be given together with `k`.

    Raises:
        StrategyError: they are not as described; `omega` raises it where the model has fewer than k components.
    """

    trained_frames: int
    k: int | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        checks.fields("riflex", self, {"trained_frames": checks.whole(1)})
        for name, check in _CHECKS.items():
            if getattr(self, name) is not None:
                check(f"riflex.{name}", getattr(self, name))
        if self.k is not None and self.repeats is not None:
            raise StrategyError(f"riflex: expected k or repeats, found both: k={self.k}, repeats={self.repeats}")

    def component(self, omega: np.ndarray) -> int:
        """Choose k for one head.

        Args:
            omega: the head's frequencies, (pairs,), radians per latent frame.

        Returns:
            k, counted from 1, the fastest component.

        Raises:
            StrategyError: there are fewer components than the k that was set.
        """
        if self.k is not None:
            if self.k > len(omega):
                raise StrategyError(f"riflex.k: expected 1 to {len(omega)} components of temporal RoPE, found {self.k}")
            return self.k
        periods = [_period(value) for value in -np.sort(-np.abs(omega))]
        if self.repeats is not None:
            gaps = [abs(period - self.repeats) for period in periods]
            return gaps.index(min(gaps)) + 1
        return next((j for j, period in enumerate(periods, 1) if period >= self.trained_frames), len(periods))

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        result = np.array(omega, dtype=np.float64)
        for row, order in zip(result, ranks(result), strict=True):
            pair = int(np.flatnonzero(order == self.component(row) - 1)[0])
            if frames > _period(row[pair]):
                row[pair] = math.copysign(MARGIN * 2 * math.pi / frames, row[pair])
        return result

    def describe(self) -> dict[str, Any]:
        return {"kind": "riflex", **asdict(self)}


def _period(omega: float) -> float:
    """Give N_j in latent frames, infinite for a component that does not turn."""
    return float(round(2 * math.pi / abs(omega))) if omega else math.inf


def _riflex(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The temporal frequency with which videos repeat is lowered until the clip fits within its period."""
    return {"frequencies": RIFLEx(geometry.trained_frames, **own)}


PART = Part("riflex", _riflex, sets=("frequencies",), settings=_CHECKS, value=RIFLEx)
