"""NTK-by-parts interpolation: the part "yarn".

YaRN (Peng et al., ICLR 2024, arXiv 2309.00071, definition 2): pairs that turn often within the trained length stay,
pairs that turn seldom are interpolated, a linear ramp lies between. The paper's second half, a temperature on the
scores, is the part "temp" here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.frequencies import ranks, stretch
from freeloc_fx.method.parts import Part
from freeloc_fx.method.strategy import Geometry

__all__ = ["YaRN"]


_CHECKS = {"beta_fast": checks.number(0), "beta_slow": checks.number(0)}


@dataclass(frozen=True)
class YaRN:
    """Fast pairs stay, slow ones are divided by the ratio of lengths, with a ramp between them.

    omega'_p = m omega_p + (1 - m) omega_p / s with s = frames / trained_frames, where m falls from 1 to 0 over the
    ranks p between low and high.

    A pair makes trained_frames |omega| / (2 pi) turns in a trained clip. low is the rank (rounded down) at which that
    is beta_fast, high the rank (rounded up) at which it is beta_slow. The ramp over ranks is that of the authors' code;
    the paper's text ramps over turns. The code finds the ranks from RoPE's base; here they are interpolated linearly in
    log |omega|, which is the same for powers of a base and defined for any other frequencies. Beyond the ends they are
    the first and the last rank, so that the slowest pair is interpolated in full where it turns less than beta_slow.

    The defaults are values in use for Wan, where they give a ramp over ranks 2 to 5 of 22.

    Args:
        trained_frames: latent frames of the training clips, at least 1.
        beta_fast: turns in a trained clip from which a pair stays as it is, at least beta_slow.
        beta_slow: turns in a trained clip up to which a pair is interpolated in full, above 0.

    Raises:
        StrategyError: they are not as described.
    """

    trained_frames: int
    beta_fast: float = 1.0
    beta_slow: float = 0.6

    def __post_init__(self) -> None:
        checks.fields("yarn", self, {"trained_frames": checks.whole(1), **_CHECKS})
        if self.beta_slow > self.beta_fast:
            raise StrategyError(
                f"yarn: expected beta_fast >= beta_slow, found beta_fast={self.beta_fast}, beta_slow={self.beta_slow}"
            )

    def ramp(self, omega: np.ndarray) -> tuple[int, int]:
        """Give the ranks between which one head's ramp lies.

        Args:
            omega: the head's frequencies, (pairs,), radians per latent frame.

        Returns:
            low and high.
        """
        turns = np.sort(self.trained_frames * np.abs(omega) / (2 * math.pi))
        logs = np.log(np.maximum(turns, 1e-300))  # pairs that do not turn are the slowest of all
        rank = np.arange(len(omega))[::-1]  # np.interp wants rising logs, so ranks fall
        low = np.interp(math.log(self.beta_fast), logs, rank)
        high = np.interp(math.log(self.beta_slow), logs, rank)
        return math.floor(low), math.ceil(high)

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        omega = np.asarray(omega, dtype=np.float64)
        scale = stretch(self.trained_frames, frames)
        kept = np.empty_like(omega)
        for row, order, m in zip(omega, ranks(omega), kept, strict=True):
            low, high = self.ramp(row)
            # Without a ramp between them (low = high) the step lies just behind that rank, as in the authors' code.
            m[:] = 1 - np.clip((order - low) / max(high - low, 1e-3), 0, 1)
        # As a step away from omega, so that what is kept, and everything at the trained length, stays bit for bit.
        result: np.ndarray = omega + (1 - kept) * (omega / scale - omega)
        return result

    def describe(self) -> dict[str, Any]:
        return {"kind": "yarn", **asdict(self)}


def _yarn(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fast temporal frequencies stay, slow ones are divided by the ratio of lengths, with a ramp between them."""
    return {"frequencies": YaRN(geometry.trained_frames, **own)}


PART = Part("yarn", _yarn, sets=("frequencies",), settings=_CHECKS, value=YaRN)
