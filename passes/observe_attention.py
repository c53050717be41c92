"""Replace each video self-attention by one that also hands sampled rows to a recorder.

unfused:    scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m, scale=s)
rewritten:  freeloc_fx.observe_attention(q, k, v, "recorder", "blocks.3.attn1", s, m, key_mask)
"""

from __future__ import annotations

import torch
import torch.fx as fx

from freeloc_fx.meta import sites
from freeloc_fx.pipeline import PassContext
from freeloc_fx.probe import observe  # noqa: F401 - defines the operator

from .find_attention import arguments, replace_call

__all__ = ["observe_attention"]


def observe_attention(graph: fx.Graph, context: PassContext) -> int:
    """Act on every planned site; returns the number of calls replaced."""
    assert context.plan is not None and context.recorder is not None
    count = 0
    for node, site in sites(graph):
        if context.plan.site(site.path) is None:
            continue
        given = arguments(node)
        operands = (given["query"], given["key"], given["value"])
        call = (*operands, context.recorder, site.path, site.scale, given.get("attn_mask"), site.mask)
        replace_call(graph, node, torch.ops.freeloc_fx.observe_attention.default, call)
        count += 1
    return count
