"""Visibility: which tokens a query may attend to.

Between two frames a query token sees every token (FULL), only spatial neighbours (STRIPE) or nothing (NONE). A rule is
a table of these levels over all pairs of frames and one token mask for STRIPE, so no table of all pairs of tokens ever
exists outside the reference.

The docstrings of rules draw their tables, as `picture` does: rows are query frames, columns are key frames, "#" is
FULL, "/" is STRIPE, "." is NONE.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from freeloc_fx.errors import StrategyError

from .checks import is_whole
from .frame_times import Frames, FrameTimes, count, first_of_clip
from .positions import distances

__all__ = ["FULL", "NONE", "STRIPE", "TSA", "Everything", "Rotating", "Visibility", "picture", "visible_tokens"]


NONE, STRIPE, FULL = 0, 1, 2
"""What a query frame sees of a key frame: nothing, the tokens that `Visibility.stripe` lets it see, or every token."""


@runtime_checkable
class Visibility(Protocol):
    """What a strategy says about which tokens see each other. Implementations are immutable and hashable."""

    def levels(self, frames: Frames) -> np.ndarray:
        """Give what each query frame sees of each key frame.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.

        Returns:
            NONE, STRIPE or FULL, int8 (frames, frames), row = query frame i, column = key frame j.
        """
        ...

    def stripe(self, height: int, width: int) -> np.ndarray:
        """Give which tokens of a key frame each token of a query frame sees where the level is STRIPE.

        Args:
            height: rows of tokens in one latent frame.
            width: columns of tokens in one latent frame.

        Returns:
            bool (tokens, tokens) with tokens = height * width in raster order, row = query token k, column = key
            token l.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Give the settings as JSON-serialisable data, with the rule's name under "visibility"."""
        ...


@runtime_checkable
class Rotating(Protocol):
    """A visibility that depends on the denoising step."""

    @property
    def period(self) -> int:
        """Number of denoising steps after which the rules repeat, at least 1."""
        ...

    def at(self, step: int) -> Visibility:
        """Give the rule at one denoising step, whatever step this rule is itself at.

        Args:
            step: the step, counted from 0.

        Returns:
            The rule; the same one for `step` and `step + period`.
        """
        ...


@dataclass(frozen=True)
class Everything:
    """Dense attention: every token sees every token.

    In a clip of 6 latent frames:

        ######
        ######
        ######
        ######
        ######
        ######
    """

    def levels(self, frames: Frames) -> np.ndarray:
        return np.full((count(frames),) * 2, FULL, np.int8)

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
        beyond:            never, except that every frame sees all of the clip's frame 0 (`sink`)

    The official code drops the pairs between the first two tiers; here every pair belongs to one tier.

    TSA(d1=2, d2=4, ds=1) in a clip of 10 latent frames:

        ##//......
        ###//.....
        ####//....
        #/###//...
        #//###//..
        #.//###//.
        #..//###//
        #...//###/
        #....//###
        #.....//##

    Args:
        d1: distance below which frames are seen whole, in latent frames, at least 1.
        d2: distance below which frames are seen along the stripe, in latent frames, at least d1.
        ds: distance below which the stripe reaches, in tokens, at least 1.
        sink: whether every frame sees all of frame 0.
        spatial: how distance between tokens is measured: "raster" or "2d", see above.

    Raises:
        StrategyError: those orders do not hold, or a field is of another kind.
    """

    d1: int
    d2: int
    ds: int
    sink: bool = True
    spatial: Literal["raster", "2d"] = "raster"

    def __post_init__(self) -> None:
        for name in ("d1", "d2", "ds"):
            value = getattr(self, name)
            if not is_whole(value):
                raise StrategyError(f"tsa.{name}: expected an integer, found {value!r}")
        if not 1 <= self.d1 <= self.d2:
            raise StrategyError(f"tsa: expected 1 <= d1 <= d2, found d1={self.d1}, d2={self.d2}")
        if self.ds < 1:
            raise StrategyError(f"tsa.ds: expected at least 1 token, found {self.ds}")
        if self.spatial not in ("raster", "2d"):
            raise StrategyError(f"tsa.spatial: expected 'raster' or '2d', found {self.spatial!r}")

    def levels(self, frames: Frames) -> np.ndarray:
        d = np.abs(distances(frames)) if isinstance(frames, FrameTimes) else _apart(frames)
        levels = np.full(d.shape, NONE, np.int8)
        levels[d < self.d2] = STRIPE
        levels[d < self.d1] = FULL
        if self.sink:
            levels[:, first_of_clip(frames)] = FULL
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
    """Give |i - j| of all pairs below `count`, (count, count), of a narrow integer type."""
    # int64 would be large beside the keys of a small model.
    index = np.arange(count, dtype=np.min_scalar_type(-max(count, 1)))
    return np.abs(index[:, None] - index[None, :])


def visible_tokens(rule: Visibility, frames: int, height: int, width: int) -> np.ndarray:
    """Count the tokens that queries see.

    Args:
        rule: the rule that says what they see.
        frames: latent frames of the clip, at least 1.
        height: rows of tokens in one latent frame.
        width: columns of tokens in one latent frame.

    Returns:
        The mean number of visible tokens for the queries of each frame, float64 (frames,).
    """
    levels = rule.levels(frames)
    tokens = height * width
    stripe = rule.stripe(height, width).sum() / tokens if (levels == STRIPE).any() else 0.0
    return (levels == FULL).sum(1) * float(tokens) + (levels == STRIPE).sum(1) * stripe


def picture(rule: Visibility, frames: int) -> str:
    """Draw a rule: one line a query frame, one character a key frame.

    Args:
        rule: the rule.
        frames: latent frames of the clip, at least 1.

    Returns:
        Lines of "#" for FULL, "/" for STRIPE and "." for NONE.
    """
    return "\n".join("".join("./#"[level] for level in row) for row in rule.levels(frames).tolist())
