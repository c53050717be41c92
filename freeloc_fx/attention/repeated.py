"""Attention to keys that end in copies of one key, as zero-padded text does: the copies are one key, counted once.

    512 text keys of Wan: 19 words, then 493 times the same padding  ->  20 keys, the last with a bias of log 493

A pipeline that pads its prompt's embedding with zeros and passes no mask gives every padded place the same key and the
same value. n terms exp(s) v of a softmax are one term exp(s + log n) v, so that nothing is left out and nothing is
approximated. Beside dense video attention the text is little; beside a sparse one it is not: with 16 tokens a frame it
was as long as the video attention itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from freeloc_fx.compat import opaque_operator

from .agree import check_agreement
from .autocast import take_part_in_autocast

__all__ = ["OPERATOR", "attention_over_text", "repeats"]


_LEAST = 0.25
"""Share of the keys that must go; below it, cutting costs more than it saves."""


def repeats(*tensors: torch.Tensor) -> int:
    """How many of the last keys are copies of the last one, bit for bit, in every tensor, batch entry and head.

    Waits for the device.

    Args:
        *tensors: k and v, (batch, heads, keys, channels) each, with equally many keys.

    Returns:
        1 where the last key is alone (or holds NaN, which equals nothing), 0 without keys.
    """
    keys = tensors[0].shape[2]
    if not keys:
        return 0
    same = torch.ones(keys, dtype=torch.bool, device=tensors[0].device)
    for x in tensors:
        same &= (x == x[:, :, -1:]).flatten(0, 1).all(-1).all(0)
    same[-1] = True
    return int(same.flip(0).to(torch.int64).cumprod(0).sum())


def merged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor | None:
    """`attention_over_text` with the last keys' copies as one key; None where there are too few of them."""
    keys, copies = k.shape[2], repeats(k, v)
    if copies - 1 < _LEAST * keys:
        return None
    kept = keys - copies + 1
    bias = torch.zeros(1, 1, 1, kept, dtype=q.dtype, device=q.device)
    bias[..., -1] = math.log(copies)
    return F.scaled_dot_product_attention(q, k[:, :, :kept], v[:, :, :kept], attn_mask=bias, scale=scale)


@opaque_operator("freeloc_fx::attention_over_text")
def attention_over_text(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, verify: bool = False
) -> torch.Tensor:
    """Run scaled_dot_product_attention without a mask, as much cheaper as its last keys repeat.

    Args:
        q: (batch, heads, tokens, head_dim), floating point.
        k: (batch, heads, keys, head_dim), in q's dtype.
        v: (batch, heads, keys, head_dim of v), in q's dtype.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        verify: compare with the plain attention, at every call, since what repeats is data.

    Returns:
        (batch, heads, tokens, head_dim of v) in q's dtype, tokens before heads in memory.

    Raises:
        VerificationError: with `verify`, see `check_agreement`.
    """
    out = merged(q, k, v, scale)
    if out is None:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    elif verify:
        about = f"attention to {k.shape[2]} text keys of which {repeats(k, v)} repeat"
        check_agreement(out, F.scaled_dot_product_attention(q, k, v, scale=scale), q.dtype, about)
    # One memory layout in both cases: tokens before heads, as the model's next flatten wants it.
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@attention_over_text.register_fake
def _shaped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    batch, heads, tokens, _dim = q.shape
    return q.new_empty(batch, tokens, heads, v.shape[3]).transpose(1, 2)


OPERATOR = torch.ops.freeloc_fx.attention_over_text.default
"""The operator as a graph calls it."""
take_part_in_autocast(OPERATOR)
