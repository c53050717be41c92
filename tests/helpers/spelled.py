"""The literal attention of a plan for models that spell it otherwise: grouped heads, keys beside the queries' own, a
second attention over the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from literal import literal

from freeloc_fx.planning.plan import Plan

__all__ = ["in_order", "spelled"]


def in_order(function: Callable[..., torch.Tensor], order: tuple[tuple[int, int], ...]) -> Callable[..., torch.Tensor]:
    """An attention that takes the tokens of a sequence in another order, and puts what comes out back."""
    places = torch.cat([torch.arange(first, stop) for first, stop in order]) if order else torch.zeros(0)
    again = places.argsort()

    def attend(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> torch.Tensor:
        if not order or query.shape[2] != len(places):
            return function(query, key, value, *rest, **options)
        return function(*(x[:, :, places] for x in (query, key, value)), *rest, **options)[:, :, again]

    return attend


def spelled(plan: Plan, original: Callable[..., torch.Tensor], branches: int = 1) -> Callable[..., torch.Tensor]:
    """scaled_dot_product_attention with the plan's strategy written out.

    branches: attentions over the clip's tokens in a layer, of which the first is the plan's.
    """
    whole, grid = literal(plan, original), plan.sites[0].grid
    first = grid.text_first
    calls = 0

    def attend(query: Any, key: Any, value: Any, enable_gqa: bool = False, **options: Any) -> torch.Tensor:
        nonlocal calls
        q, k, v = query, key, value
        # Text of which no query is: all of it, or what stands before the clip.
        missing = grid.sequence - q.shape[2]
        beside = missing > 0 and missing in (grid.text, first)
        if k.shape[2] != grid.sequence or not (beside or q.shape[2] == grid.sequence) or options.get("is_causal"):
            return whole(q, k, v, **options, **({"enable_gqa": True} if enable_gqa else {}))
        calls += 1
        if (calls - 1) % branches:
            return original(q, k, v, **options)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        if not beside:
            return whole(q, k, v, **options)
        rows, end = q.shape[2], k.shape[2] - (missing - first)
        q = torch.cat([k[:, :, :first], q, k[:, :, end:]], 2)
        return whole(q, k, v, **options)[:, :, first : first + rows]

    return attend
