"""Long attention written out pair of frames by pair of frames, in place of a model's own attention: an oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from freeloc_fx.method.visibility import FULL, STRIPE
from freeloc_fx.planning.plan import Plan

__all__ = ["attention", "literal"]


def literal(plan: Plan, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """scaled_dot_product_attention with P and M written out pair of frames by pair of frames."""
    site, grid = plan.sites[0], plan.sites[0].grid
    positions = site.strategy.positions.table(grid.frame_times)
    levels, times = site.spec().levels(), grid.times
    stripe = torch.from_numpy(site.strategy.visibility.stripe(grid.height, grid.width))
    ends = [grid.text_first]
    for size in grid.sizes:
        ends.append(ends[-1] + size)

    def turn(x: torch.Tensor, frames: float) -> torch.Tensor:
        out = x.clone()
        for h in range(x.shape[1]):
            rates = site.rope.omega[h % len(site.rope.omega)]
            for a, b, omega in zip(site.rope.first, site.rope.second, rates, strict=True):
                c, s = math.cos(omega * frames), math.sin(omega * frames)
                out[:, h, :, a] = x[:, h, :, a] * c - x[:, h, :, b] * s
                out[:, h, :, b] = x[:, h, :, a] * s + x[:, h, :, b] * c
        return out

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> torch.Tensor:
        tokens = query.shape[2]
        fits = tokens == grid.sequence or (grid.text_last and grid.video <= tokens <= grid.sequence)
        if key.shape != query.shape or not fits:
            return original(query, key, value, attn_mask=attn_mask, **options)
        q, k, v = query.double(), key.double(), value.double()
        scores = q @ k.transpose(-1, -2)
        for i in range(grid.places):
            rows = slice(ends[i], ends[i + 1])
            for j in range(grid.places):
                columns = slice(ends[j], ends[j + 1])
                turned = turn(k[:, :, columns], times[i] - times[j] - positions[i, j])
                block = q[:, :, rows] @ turned.transpose(-1, -2)
                if levels[i, j] == STRIPE:
                    block = block.masked_fill(~stripe, -math.inf)
                elif levels[i, j] != FULL:
                    block = torch.full_like(block, -math.inf)
                scores[:, :, rows, columns] = block
        scores = scores * (options.get("scale") or 1 / math.sqrt(query.shape[-1]))
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if hidden else scores + attn_mask
        return (scores.softmax(-1).nan_to_num() @ v).to(query.dtype)

    return attend


@contextmanager
def attention(function: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Eager models attend by `function` inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", function)
        yield
