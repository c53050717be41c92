"""Run a stretch of a graph for some heads at a time, so that no copy of all heads' queries is ever held.

What RoPE does is read off by running it, in float32, at every token. All heads of Wan 14B at 720p and ten times the
trained length are 15 GB of that, several times over, beside the weights; three heads are 1 GB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["AT_A_TIME", "HeadCut", "head_cuts"]

AT_A_TIME = 3
"""Heads. Of three, a table that was cut along the wrong axis does not broadcast: the stretch then fails."""
LARGE = 2**25
"""Numbers (128 MB in float32) in one query past which heads are taken apart."""


def _sizes(heads: int, dim: int) -> Mapping[int, int]:
    """Size of what holds all heads, one number, every channel or one of two a head -> that of what holds some."""
    return {heads * each: AT_A_TIME * each for each in (1, dim, dim // 2)}


@dataclass(frozen=True)
class HeadCut:
    """Some neighbouring heads of an attention.

    Args:
        heads: of the attention.
        dim: channels of a head.
        first: of these heads.
        new: how many of them, the last ones, were in no cut before.
    """

    heads: int
    dim: int
    first: int
    new: int

    @property
    def sizes(self) -> Mapping[int, int]:
        """Size of what holds all heads -> that of what holds these."""
        return _sizes(self.heads, self.dim)

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape that a tensor of a shape has for these heads.

        Args:
            whole: with all heads.
        """
        return tuple(self.sizes.get(size, size) for size in whole)

    def part(self, value: Any) -> Any:
        """What a tensor holds for these heads.

        Args:
            value: with all heads, or none; what is no tensor stays as it is.
        """
        if not isinstance(value, torch.Tensor):
            return value
        for axis, size in enumerate(value.shape):
            if size in self.sizes:
                value = value.narrow(axis, self.first * (size // self.heads), self.sizes[size])
        return value


def head_cuts(heads: int, tokens: int, dim: int, tables: Sequence[Any], batch: int = 1) -> list[HeadCut] | None:
    """Every head of a large attention, a few at a time and each once.

    Args:
        heads: of the attention.
        tokens: of its sequence.
        dim: channels of a head.
        tables: what its RoPE reads beside the query.
        batch: samples of a call.

    Returns:
        The cuts, the first alone where no table tells heads apart; None where the attention is small, has few heads,
        or a size that counts something else might be taken for the heads'.
    """
    others = (1, 2, 3, 4, dim // 4, dim // 2, dim, 2 * dim, tokens)
    sizes = _sizes(heads, dim)
    if heads * tokens * dim <= LARGE or heads <= AT_A_TIME or heads in others or {tokens, batch} & set(sizes):
        return None
    told = any(size in sizes for table in tables if isinstance(table, torch.Tensor) for size in table.shape)
    starts = range(0, heads, AT_A_TIME) if told else (0,)
    return [HeadCut(heads, dim, min(n, heads - AT_A_TIME), min(AT_A_TIME, heads - n)) for n in starts]
