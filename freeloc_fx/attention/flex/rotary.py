"""The rotary operator of rewritten graphs: a tensor turned to other latent frames, in as many versions as are asked.

    freeloc_fx.vrpr_rotary(q, cos, sin, segment, partner)

It is pointwise. A compiler takes it apart into a gather from two small tables, two multiplications and an addition, and
fuses them with what stands around; run as it is, it keeps its temporaries to one head at a time. Both are one kernel,
which tells them apart by what it is given: torch takes nothing apart that has a kernel for the device as well.
"""

from __future__ import annotations

import numpy as np
import torch

from freeloc_fx.method.grid import RopeLayout

__all__ = ["OPERATOR", "partners", "rotary_tables", "vrpr_rotary"]

_LIBRARY = torch.library.Library("freeloc_fx", "FRAGMENT")
_LIBRARY.define("vrpr_rotary(Tensor x, Tensor cos, Tensor sin, Tensor segment, Tensor partner) -> Tensor")


def _composed(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segment: torch.Tensor, partner: torch.Tensor
) -> torch.Tensor:
    """What a compiler sees: arithmetic in float32 at least, the result in x's dtype."""
    work = torch.promote_types(x.dtype, cos.dtype)
    here, there = x.to(work), x.index_select(-1, partner).to(work)
    cos, sin = (t.index_select(-2, segment).transpose(0, 1) for t in (cos, sin))  # (heads or 1, versions, tokens, dim)
    return (here[:, :, None] * cos + there[:, :, None] * sin).to(x.dtype).contiguous()


def _eager(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segment: torch.Tensor, partner: torch.Tensor
) -> torch.Tensor:
    """The same, version by version and head by head."""
    batch, heads, tokens, dim = x.shape
    result = x.new_empty(batch, heads, cos.shape[0], tokens, dim)
    for head in range(heads):
        one = x[:, head : head + 1]
        of = slice(head, head + 1) if cos.shape[1] > 1 else slice(0, 1)
        for version in range(cos.shape[0]):
            place = slice(version, version + 1)
            result[:, head : head + 1, place] = _composed(one, cos[place, of], sin[place, of], segment, partner)
    return result


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segment: torch.Tensor, partner: torch.Tensor
) -> torch.Tensor:
    # What traces, and what only knows shapes, comes with a type of its own.
    run = _eager if type(x) in (torch.Tensor, torch.nn.Parameter) else _composed
    return run(x, cos, sin, segment, partner)


_LIBRARY.impl("vrpr_rotary", _turned, "CompositeImplicitAutograd")

OPERATOR = torch.ops.freeloc_fx.vrpr_rotary.default
"""The operator as a graph calls it."""


def vrpr_rotary(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segment: torch.Tensor, partner: torch.Tensor
) -> torch.Tensor:
    """Turn the temporal channels of a tensor; every other channel, and every text token, is copied.

    Args:
        x: (batch, heads, tokens, head_dim), floating point, q or k as the model's own RoPE has turned it.
        cos: float32 (versions, heads or 1, segments, head_dim), from `rotary_tables`: for each version the cosine of
            the angle by which each segment's tokens turn in each channel; 1 in the other channels.
        sin: as cos, the sine with the sign with which the channel's partner counts; 0 in the other channels.
        segment: int32 (tokens,), the segment of each token: its latent frame, or the one of text.
        partner: int32 (head_dim,), the other channel of each channel's pair, see `partners`.

    Returns:
        (batch, heads, versions, tokens, head_dim) in x's dtype.
    """
    result: torch.Tensor = OPERATOR(x, cos, sin, segment, partner)
    return result


def partners(layout: RopeLayout) -> np.ndarray:
    """The other channel of each channel's temporal pair.

    Args:
        layout: the temporal channel pairs.

    Returns:
        int32 (head_dim,); a channel that does not turn is its own.
    """
    found = np.arange(layout.head_dim, dtype=np.int32)
    found[list(layout.first)], found[list(layout.second)] = layout.second, layout.first
    return found


def rotary_tables(layout: RopeLayout, angle: np.ndarray, text: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine for `vrpr_rotary`.

    Args:
        layout: the temporal channel pairs.
        angle: radians by which each latent frame turns each pair, float64 (versions, heads or 1, frames, pairs).
        text: whether the sequence has text, the last segment, which does not turn.

    Returns:
        (cos, sin), float32 (versions, heads or 1, segments, head_dim) each.
    """
    versions, heads, frames, _ = angle.shape
    cos = np.ones((versions, heads, frames + text, layout.head_dim), np.float32)
    sin = np.zeros_like(cos)
    first, second = list(layout.first), list(layout.second)
    cos[:, :, :frames, first] = cos[:, :, :frames, second] = np.cos(angle)
    sin[:, :, :frames, second] = np.sin(angle)
    sin[:, :, :frames, first] = -sin[:, :, :frames, second]
    return cos, sin
