"""A small function of tensors as graph nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.compat import STACK, example_value, fake_mode, set_example_value

from .execute import run_nodes

__all__ = ["insert"]


def insert(graph: fx.Graph, before: fx.Node, function: Callable[..., Any], given: fx.Node, owner: fx.Node) -> fx.Node:
    """Put the operations of a function of one tensor into a graph.

    Args:
        graph: changed in place.
        before: the node before which they come.
        function: takes a tensor and gives one; its operations may not depend on numbers in it.
        given: the node that it takes.
        owner: a node in whose module the new ones count as made.

    Returns:
        The node of its result.
    """
    traced = fx.symbolic_trace(lambda x: function(x)).graph  # a partial is no function to the tracer
    copies: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(before):
        for node in traced.nodes:
            if node.op == "placeholder":
                copies[node] = given
            elif node.op != "output":
                copies[node] = graph.node_copy(node, copies.__getitem__)
                copies[node].meta = {STACK: owner.meta[STACK]} if STACK in owner.meta else {}
            else:
                result = copies[node.args[0]]  # type: ignore[index]
    new = [node for node in copies.values() if node is not given]
    like = example_value(given)
    with fake_mode(), torch.no_grad():
        known = {given: torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)}
        for node, value in run_nodes(new, known).items():
            if node is not given:
                set_example_value(node, value)
    return result
