"""Replace each planned attention call by the long attention of its strategy.

    unfused:    scaled_dot_product_attention(query=q, key=k, value=v, scale=s)
    rewritten:  freeloc_fx.long_attention(q, k, v, "vrpr+tsa@81x30x52#3f2a...", "tiles", s)

q and k arrive rotated by the model's own RoPE; the operator turns them from there, so the RoPE nodes stay as they are
whatever their spelling.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from freeloc_fx.attention import op, spec
from freeloc_fx.meta import sites
from freeloc_fx.pipeline import PassContext

from .find_attention import arguments, replace_call

__all__ = ["rewrite_attention"]


def rewrite_attention(graph: fx.Graph, context: PassContext) -> int:
    """Act on the plan; returns the number of calls replaced."""
    assert context.plan is not None, "rewrite_attention runs after planning"
    count = 0
    for node, site in sites(graph):
        planned = context.plan.site(site.path)
        if planned is None or planned.strategy.changes_nothing:
            continue
        assert site.rope is not None and site.grid is not None
        lowering = op.choose(context.attention, context.device) + ("+verify" if context.verify else "")
        key = spec.register(spec.AttentionSpec(planned.strategy, site.grid, site.rope))
        given = arguments(node)
        call = (given["query"], given["key"], given["value"], key, lowering, site.scale)
        replace_call(graph, node, torch.ops.freeloc_fx.long_attention.default, call)
        count += 1
    return count
