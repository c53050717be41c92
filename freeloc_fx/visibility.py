"""Visibility: which tokens a query may attend to.

Between two frames a query token sees every token (FULL), only spatial neighbours (STRIPE) or nothing (NONE). A rule is
a table of these levels over all pairs of frames and one token mask for STRIPE, so no S x S object ever exists outside
the reference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from .errors import StrategyError

__all__ = ["FULL", "NONE", "STRIPE", "TSA", "Everything", "Rotating", "Visibility", "visible_tokens"]

NONE, STRIPE, FULL = 0, 1, 2


@runtime_checkable
class Visibility(Protocol):
    """What a strategy says about context."""

    def levels(self, frames: int) -> np.ndarray:
        """int8 (frames, frames): NONE, STRIPE or FULL for query frame i (row) and key frame j (column)."""
        ...

    def stripe(self, height: int, width: int) -> np.ndarray:
        """bool (tokens, tokens), tokens = height * width in raster order: what STRIPE lets token k see of token l."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-serialisable settings, with the rule's name under "visibility"."""
        ...


@runtime_checkable
class Rotating(Protocol):
    """A visibility that depends on the denoising step."""

    @property
    def period(self) -> int:
        """Number of steps after which the rules repeat, at least 1."""
        ...

    def at(self, step: int) -> Visibility:
        """The rule at a step from 0; the same for step and step + period, whatever step this rule is itself at."""
        ...


@dataclass(frozen=True)
class Everything:
    """Dense attention."""

    def levels(self, frames: int) -> np.ndarray:
        return np.full((frames, frames), FULL, np.int8)

    def stripe(self, height: int, width: int) -> np.ndarray:
        return np.ones((height * width, height * width), bool)

    def describe(self) -> dict[str, Any]:
        return {"visibility": "everything"}


@dataclass(frozen=True)
class TSA:
    """Tiered sparse attention (FreeLOC, CVPR 2026, section "TSA").

    Token k of frame i sees token l of frame j where

        |i-j| < D1:        always
        D1 <= |i-j| < D2:  |k-l| < D_s (raster order; `spatial="2d"`: Chebyshev distance on the grid, D_s in tokens)
        beyond:            never, except that every frame sees all of frame 0 (`sink`)

    The official code drops the pairs between the first two tiers; here every pair belongs to one tier.

    Args: d1, d2 in latent frames (1 <= d1 <= d2); ds in tokens (>= 1).
    Raises: StrategyError where those orders do not hold.
    """

    d1: int
    d2: int
    ds: int
    sink: bool = True
    spatial: Literal["raster", "2d"] = "raster"

    def __post_init__(self) -> None:
        for name in ("d1", "d2", "ds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise StrategyError(f"tsa.{name}: expected an integer, found {value!r}")
        if not 1 <= self.d1 <= self.d2:
            raise StrategyError(f"tsa: expected 1 <= d1 <= d2, found d1={self.d1}, d2={self.d2}")
        if self.ds < 1:
            raise StrategyError(f"tsa.ds: expected at least 1 token, found {self.ds}")
        if self.spatial not in ("raster", "2d"):
            raise StrategyError(f"tsa.spatial: expected 'raster' or '2d', found {self.spatial!r}")

    def levels(self, frames: int) -> np.ndarray:
        d = _apart(frames)
        levels = np.full(d.shape, NONE, np.int8)
        levels[d < self.d2] = STRIPE
        levels[d < self.d1] = FULL
        if self.sink:
            levels[:, 0] = FULL
        return levels

    def stripe(self, height: int, width: int) -> np.ndarray:
        if self.spatial == "raster":
            return _apart(height * width) < self.ds
        index = np.arange(height * width)
        y, x = index // width, index % width
        return np.maximum(np.abs(y[:, None] - y[None]), np.abs(x[:, None] - x[None])) < self.ds

    def describe(self) -> dict[str, Any]:
        return {"visibility": "tsa", **asdict(self)}


def _apart(count: int) -> np.ndarray:
    """|i - j| of all pairs below `count`: (count, count), of a narrow integer type: int64 is large beside the keys of
    a small model."""
    index = np.arange(count, dtype=np.min_scalar_type(-max(count, 1)))
    return np.abs(index[:, None] - index[None, :])


def visible_tokens(rule: Visibility, frames: int, height: int, width: int) -> np.ndarray:
    """Mean number of visible tokens for a query of each frame, float64 (frames,)."""
    levels = rule.levels(frames)
    tokens = height * width
    stripe = rule.stripe(height, width).sum() / tokens if (levels == STRIPE).any() else 0.0
    return (levels == FULL).sum(1) * float(tokens) + (levels == STRIPE).sum(1) * stripe
