"""Replace each planned attention call by the long attention of its strategy.

    unfused:    scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m, scale=s)
    rewritten:  freeloc_fx.long_attention(q, k, v, "vrpr+tsa@81x30x52#3f2a...", "tiles", s, key_mask, False)

q and k arrive rotated by the model's own RoPE; the operator turns them from there, so the RoPE nodes stay as they are
whatever their spelling. Where the number of text tokens depends on data, q, k and v are padded to all that there may
be, the padding is hidden by a key mask, and its rows are dropped again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.attention import op
from freeloc_fx.attention.registry import Specs
from freeloc_fx.graph.calls import arguments, erase_unused, pad_tokens, replace_call
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import AttentionSite, sites
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.planning.plan import Plan

__all__ = ["rewrite_attention"]


def rewrite_attention(
    graph: fx.Graph, capture: Capture, *, plan: Plan, attention: str, verify: bool, specs: Specs
) -> int:
    """Act on the plan.

    Args:
        graph: changed in place.
        capture: says on which device the attention runs.
        plan: a strategy for each site.
        attention: "auto" or a lowering's name.
        verify: long attentions compare themselves with the reference.
        specs: what the graph names is added to them.

    Returns:
        The number of calls replaced.
    """
    lowering = op.choose(attention, capture.device)
    count = 0
    for node, site in sites(graph):
        planned = plan.site(site.path) if site.kind == "video" else None
        if planned is None or planned.strategy.changes_nothing:
            continue
        assert site.rope is not None and site.grid is not None
        key = specs.add(AttentionSpec(planned.strategy, site.grid, site.rope))
        given = arguments(node)
        q, k, v = given["query"], given["key"], given["value"]
        if site.padded:
            _replace_padded(graph, node, site, (q, k, v), (key, lowering, site.scale), verify, capture.device)
        else:
            replace_call(graph, node, op.OPERATOR, (q, k, v, key, lowering, site.scale, site.mask, verify))
        erase_unused(graph, given.get("attn_mask"))
        count += 1
    return count


def _replace_padded(
    graph: fx.Graph,
    node: fx.Node,
    site: AttentionSite,
    qkv: tuple[Any, ...],
    rest: tuple[Any, ...],
    verify: bool,
    device: torch.device,
) -> None:
    with graph.inserting_before(node):
        padded, mask, length = pad_tokens(graph, qkv, site.query_shape[2], device)
        out = graph.call_function(op.OPERATOR, (*padded, *rest, mask, verify))
    replace_call(graph, node, torch.narrow, (out, 2, 0, length))
