"""Replace each video self-attention by one that also hands sampled rows to a recorder.

unfused:    scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m, scale=s)
rewritten:  freeloc_fx.observe_attention(q, k, v, "recorder", "blocks.3.attn1", s, m, key_mask, weight)
"""

from __future__ import annotations

from typing import Any

import torch.fx as fx
import torch.nn.functional as F

from freeloc_fx.attention import observed
from freeloc_fx.graph.calls import arguments, replace_call
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import sites
from freeloc_fx.graph.shapes import shape_of
from freeloc_fx.planning.plan import Plan

__all__ = ["observe_attention"]


_LAYOUT = {"transpose", "permute", "reshape", "view", "flatten", "contiguous", "clone", "to", "type_as", "float"}
"""Methods between an attention and its projection that keep every element."""


def projection(node: fx.Node) -> fx.Node | None:
    """The weight of the linear layer that all of an attention's output goes to; None where text and video part before
    it, or something else is in between."""
    given = arguments(node)
    query, value = shape_of(given["query"]), shape_of(given["value"])
    if query is None or value is None:
        return None
    here = node
    while True:
        users = list(here.users)
        if len(users) != 1:
            return None
        (here,) = users
        if here.op == "call_function" and here.target is F.linear:
            weight: Any = here.args[1] if len(here.args) > 1 else here.kwargs.get("weight")
            shape = shape_of(weight) if isinstance(weight, fx.Node) else None
            return weight if shape is not None and shape[1:] == (query[1] * value[3],) else None
        if not (here.op == "call_method" and here.target in _LAYOUT):
            return None


def observe_attention(graph: fx.Graph, capture: Capture, *, plan: Plan, recorder: str) -> int:
    """Act on every planned site.

    Args:
        graph: changed in place.
        capture: not read.
        plan: names the sites.
        recorder: name of an open recorder.

    Returns:
        The number of calls replaced.
    """
    count = 0
    watched = [(node, site) for node, site in sites(graph) if plan.site(site.path) is not None]
    weights = [projection(node) for node, _ in watched]
    if None in weights:  # one measure for all layers, or they could not be compared
        weights = [None] * len(watched)
    for (node, site), weight in zip(watched, weights, strict=True):
        given = arguments(node)
        operands = (given["query"], given["key"], given["value"])
        call = (*operands, recorder, site.path, site.scale, given.get("attn_mask"), site.mask, weight)
        replace_call(graph, node, observed.OPERATOR, call)
        count += 1
    return count
