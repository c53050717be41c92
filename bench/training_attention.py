"""Attention of the training on a processor that is quick at bfloat16, two and a half times as fast as torch's own.

torch's flash kernel for CPUs took 63% of a step: its backward is slow at a head_dim of 32 and at the few keys of a
prompt. Here a clip's scores are one piece that stays in the cache (5 heads x 336 x 336), made by matrix products and
fused pointwise code; the few keys of a prompt are left to the compiled graph, whose softmax it fuses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from training_loop import is_quick_at_bfloat16

__all__ = ["attention", "use"]

FEW = 64
"""Keys up to which all scores are made at once."""


@torch.compile
def _forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One clip: (heads, tokens, head_dim) and (keys,) to the result and the scores' log-sum-exp (heads, tokens, 1)."""
    scores = torch.bmm(q, k.transpose(1, 2)).float() / math.sqrt(q.shape[-1]) + bias
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest)
    total = weights.sum(-1, keepdim=True)
    return (torch.bmm(weights.to(q.dtype), v).float() / total).to(q.dtype), largest + torch.log(total)


@torch.compile
def _backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Gradients of one clip's q, k and v; the weights are made again from the log-sum-exp."""
    scale = 1 / math.sqrt(q.shape[-1])
    weights = torch.exp(torch.bmm(q, k.transpose(1, 2)).float() * scale + bias - lse)
    sums = (grad.float() * out.float()).sum(-1, keepdim=True)
    scores = (weights * (torch.bmm(grad, v.transpose(1, 2)).float() - sums) * scale).to(q.dtype)
    by_v = torch.bmm(weights.to(q.dtype).transpose(1, 2), grad)
    return torch.bmm(scores, k), torch.bmm(scores.transpose(1, 2), q), by_v


@torch.library.custom_op("freeloc_bench::attention", mutates_args=())
def _clip_by_clip(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = torch.empty(q.shape, dtype=q.dtype), q.new_empty((*q.shape[:3], 1), dtype=torch.float32)
    for i in range(len(q)):
        out[i], lse[i] = _forward(*(t[i].contiguous() for t in (q, k, v, bias)))
    return out, lse


@_clip_by_clip.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty((*q.shape[:3], 1), dtype=torch.float32)


@torch.library.custom_op("freeloc_bench::attention_backward", mutates_args=())
def _clip_by_clip_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    found = tuple(torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v))
    for i in range(len(q)):
        parts = _backward(*(t[i].contiguous() for t in (q, k, v, bias, out, lse, grad)))
        for whole, part in zip(found, parts, strict=True):
            whole[i] = part
    return found


@_clip_by_clip_backward.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*_clip_by_clip_backward(*ctx.saved_tensors, grad), None)


_clip_by_clip.register_autograd(_differentiate, setup_context=_keep)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **_: Any
) -> torch.Tensor:
    """Dense attention in the manner of diffusers' `dispatch_attention_fn`.

    Args:
        query, key, value: (batch, tokens, heads, head_dim).
        attn_mask: None, or what is added to the scores (or which keys are seen), (batch, 1, 1, keys); a mask of another
            shape leaves the attention to torch.

    Returns:
        (batch, tokens, heads, head_dim).
    """
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (t.to(torch.get_autocast_dtype("cpu")) for t in (q, k, v))
    per_key = attn_mask is None or attn_mask.shape == (len(q), 1, 1, k.shape[2])
    if q.dtype != torch.bfloat16 or not per_key:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2)
    bias = torch.zeros(len(q), k.shape[2], device=q.device)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, device=q.device).masked_fill(~attn_mask, float("-inf"))
        bias = bias + attn_mask[:, 0, 0].float()
    if k.shape[2] > FEW:
        return _clip_by_clip(q, k, v, bias)[0].transpose(1, 2)
    with torch.autocast("cpu", enabled=False):
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1]) + bias[:, None, None]
        return (torch.softmax(scores, -1).to(v.dtype) @ v).transpose(1, 2)


def use(module: Any, device: torch.device) -> None:
    """Let the attentions of a module of diffusers' models be `attention`, where it is the quicker one.

    Args:
        module: that imported `dispatch_attention_fn`.
        device: where the training runs.
    """
    if device.type == "cpu" and is_quick_at_bfloat16(device):
        module.dispatch_attention_fn = attention
