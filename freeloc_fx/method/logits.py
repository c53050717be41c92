"""A learned logit of each head as a key more, of value 0, whose score is a product of a few channels of q and of k.

softmax over [scale q k, s], the last column dropped, times v
= softmax over scale [q, c] [k, 0; 0, s / (scale c)], times [v; 0]

c is a power of two with scale c from 1 to below 2, so that float16 holds both factors.
"""

from __future__ import annotations

import math

import torch

__all__ = ["MORE", "factor", "with_logits", "with_units", "with_zeros"]


MORE = 8
"""Channels that a head gets, a multiple that kernels like."""


_PARTS = 3
"""Of which so many hold a logit: bfloat16 numbers whose sum is a float32."""


_MOST = 3e4
"""Logits beyond it are as it: nothing else counts beside one, or it does not count, and float16 holds it."""


def _unit(scale: float) -> float:
    return float(2.0 ** max(-14, min(15, math.ceil(-math.log2(abs(scale))))))


def factor(head_dim: int, scale: float | None) -> float:
    """What products of q and k are multiplied by, with `MORE` channels as without.

    Args:
        head_dim: channels of a head without them.
        scale: as the model calls its attention; None for 1 / sqrt(head_dim).
    """
    return head_dim**-0.5 if scale is None else scale


def with_units(q: torch.Tensor, scale: float) -> torch.Tensor:
    """Give queries channels that are the same for all.

    Args:
        q: (batch, heads, tokens, head_dim).
        scale: that products of q and k are multiplied by, not 0.

    Returns:
        (batch, heads, tokens, head_dim + MORE).
    """
    return torch.cat([q, torch.full_like(q[..., :1], _unit(scale)).expand(-1, -1, -1, MORE)], 3)


def with_zeros(v: torch.Tensor) -> torch.Tensor:
    """Give values channels of zeros, so that they are as wide as q and k.

    Args:
        v: (batch, heads, tokens, head_dim).

    Returns:
        (batch, heads, tokens, head_dim + MORE).
    """
    return torch.cat([v, torch.zeros_like(v[..., :1]).expand(-1, -1, -1, MORE)], 3)


def with_logits(k: torch.Tensor, logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Give the last key its score for every query.

    Args:
        k: keys, (batch, heads, tokens, head_dim), of which the last is 0.
        logits: (heads,), the last key's scores; -inf where a head has none.
        scale: that products of q and k are multiplied by, not 0.

    Returns:
        (batch, heads, tokens, head_dim + MORE), for queries of `with_units`.
    """
    left = logits.float().clamp(-_MOST, _MOST) / (scale * _unit(scale))
    parts = []
    for _ in range(_PARTS):
        parts.append(left.to(torch.bfloat16).float())
        left = left - parts[-1]
    channels = torch.stack([*parts, *[torch.zeros_like(left)] * (MORE - _PARTS)], 1).to(k)
    own = torch.zeros_like(k[:, :, -1:, :1]) + channels[None, :, None]
    others = torch.zeros_like(k[:, :, :-1, :1]).expand(-1, -1, -1, MORE)
    return torch.cat([torch.cat([k[:, :, :-1], others], 3), torch.cat([k[:, :, -1:], own], 3)], 2)
