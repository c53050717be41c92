"""Let attentions whose frames stand among words or sound read their tokens with all frames next to the clip.

    before:  scaled_dot_product_attention(q, k, v)                 words | keyframe | sound | clip
    after:   q, k, v -> words | sound | keyframe | clip
             scaled_dot_product_attention(q, k, v)                 as every other pass knows a sequence
             result -> words | keyframe | sound | clip

The call stays in the graph, read by nobody, until `restore_attention`: what no strategy replaces runs as the model has
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.graph.calls import arguments
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.inserted import insert, insert_attention
from freeloc_fx.graph.records import StandIn, move, sites, stand_in, write, write_stand_in
from freeloc_fx.method.rope.among import Order, back

__all__ = ["arrange_frames"]


def arrange_frames(graph: fx.Graph, capture: Capture) -> int:
    """Act on every site whose tokens are not in order.

    Args:
        graph: changed in place; the calls stay, without users and records.
        capture: not read.

    Returns:
        The number of attentions that now read their tokens in another order.
    """
    count = 0
    for node, site in sites(graph):
        given = arguments(node)
        bound = site.padded or any(site.beside) or given.get("attn_mask") is not None or stand_in(node) is not None
        if not site.order or bound:
            continue
        there, again = _taken(site.order), _taken(back(site.order))
        q, k, v = (insert(graph, node, there, given[name], node) for name in ("query", "key", "value"))
        options = {} if given.get("scale") is None else {"scale": given["scale"]}
        attention = insert_attention(graph, node, q, k, v, options)
        result = insert(graph, node.next, again, attention, node)
        node.replace_all_uses_with(result)
        move(node, attention)
        write(attention, kind="video", reason="")
        write_stand_in(attention, StandIn(node, node, result, (q, k, v)))
        count += 1
    return count


def _taken(order: Order) -> Callable[[Any], Any]:
    """A function that takes tokens in an order."""
    return lambda x: torch.cat([x.narrow(2, first, stop - first) for first, stop in order], 2)
