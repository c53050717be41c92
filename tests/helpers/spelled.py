"""The literal attention of a plan for models that spell it otherwise: grouped heads, keys beside the queries' own, a
second attention over the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from literal import literal

from freeloc_fx.planning.plan import Plan

__all__ = ["spelled"]


def spelled(plan: Plan, original: Callable[..., torch.Tensor], branches: int = 1) -> Callable[..., torch.Tensor]:
    """scaled_dot_product_attention with the plan's strategy written out.

    branches: attentions over the clip's tokens in a layer, of which the first is the plan's.
    """
    whole, grid = literal(plan, original), plan.sites[0].grid
    first, last = grid.text_first, grid.text_last
    calls = 0

    def attend(query: Any, key: Any, value: Any, enable_gqa: bool = False, **options: Any) -> torch.Tensor:
        nonlocal calls
        q, k, v = query, key, value
        beside = bool(grid.text) and q.shape[2] == grid.video
        if k.shape[2] != grid.sequence or not (beside or q.shape[2] == grid.sequence) or options.get("is_causal"):
            return whole(q, k, v, **options, **({"enable_gqa": True} if enable_gqa else {}))
        calls += 1
        if (calls - 1) % branches:
            return original(q, k, v, **options)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        if not beside:
            return whole(q, k, v, **options)
        q = torch.cat([k[:, :, :first], q, k[:, :, k.shape[2] - last :]], 2)
        return whole(q, k, v, **options)[:, :, first : first + grid.video]

    return attend
