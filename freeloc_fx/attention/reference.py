"""Dense attention with P and M applied literally: slow, obviously right, the judge of every other lowering."""

from __future__ import annotations

import math

import torch

from ..rope import rotate
from ..visibility import FULL, STRIPE
from .spec import AttentionSpec

__all__ = ["reference"]


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None = None,
    *,
    rows: list[int] | None = None,
) -> torch.Tensor:
    """One query frame at a time: turn every key to its remapped distance, mask, softmax, weigh the values.

    Args:
        q, k, v: (batch, heads, tokens, head_dim), q and k already rotated by the model's RoPE.
        scale: factor on q k; default 1/sqrt(head_dim). The strategy's temperature multiplies it.
        rows: query frames to compute, default all.

    Returns: (batch, heads, tokens of those frames, head_dim) in q's dtype; arithmetic in float64 (float32 on devices
        without it).
    """
    grid, n = spec.grid, spec.grid.tokens
    work = torch.float32 if q.device.type == "mps" else torch.float64
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * spec.strategy.temperature
    keys = k.to(work).unflatten(2, (grid.frames, n))
    values = v.to(work)
    shifts = spec.shifts()
    levels = spec.strategy.visibility.levels(grid.frames)
    stripe = torch.from_numpy(spec.strategy.visibility.stripe(grid.height, grid.width)).to(q.device)
    full = torch.ones_like(stripe)
    none = torch.zeros_like(stripe)
    out = []
    for i in range(grid.frames) if rows is None else rows:
        cos, sin = spec.rotation(shifts[i], q.device, work)
        turned = rotate(keys, spec.rope, cos, sin).flatten(2, 3)
        scores = q[:, :, i * n : (i + 1) * n].to(work) @ turned.transpose(-1, -2) * scale
        visible = torch.cat([{FULL: full, STRIPE: stripe}.get(int(level), none) for level in levels[i]], 1)
        scores = scores.masked_fill(~visible, float("-inf"))
        out.append((scores.softmax(-1) @ values).to(q.dtype))
    return torch.cat(out, 2)
