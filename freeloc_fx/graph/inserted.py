"""A small function of tensors, or an attention, as graph nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F

from freeloc_fx.compat import STACK, example_value, fake_mode, set_example_value

from .execute import run_nodes
from .shapes import value_of

__all__ = ["insert", "insert_attention"]


def insert(
    graph: fx.Graph,
    before: fx.Node,
    function: Callable[..., Any],
    given: fx.Node | Sequence[fx.Node],
    owner: fx.Node,
    shape: Sequence[int] | None = None,
) -> fx.Node:
    """Put the operations of a function of tensors into a graph.

    Args:
        graph: changed in place.
        before: the node before which they come.
        function: takes tensors and gives one; its operations may not depend on numbers in them.
        given: the nodes that it takes, or the one.
        owner: a node in whose module the new ones count as made.
        shape: of what it takes, where the capture does not say; None for what it says.

    Returns:
        The node of its result.
    """
    taken = [given] if isinstance(given, fx.Node) else list(given)
    traced = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(traced)
    inputs = [traced.placeholder(f"x{index}") for index in range(len(taken))]
    made = function(*(fx.Proxy(one, tracer) for one in inputs)).node
    copies: dict[fx.Node, fx.Node] = dict(zip(inputs, taken, strict=True))
    with graph.inserting_before(before):
        for node in traced.nodes:
            if node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                copies[node].meta = {STACK: owner.meta[STACK]} if STACK in owner.meta else {}
    new = [node for node in copies.values() if node not in taken]
    with fake_mode(), torch.no_grad():
        known = {node: _without_values(example_value(node), shape) for node in taken}
        for node, value in run_nodes(new, known).items():
            if node not in known:
                set_example_value(node, value)
    return copies[made]


def insert_attention(
    graph: fx.Graph, before: fx.Node, q: fx.Node, k: fx.Node, v: fx.Node, options: dict[str, Any]
) -> fx.Node:
    """Put a scaled_dot_product_attention into a graph that stands for another attention call.

    Args:
        graph: changed in place.
        before: that call, before which it comes and in whose module it counts as made.
        q: queries, (batch, heads, tokens, head_dim).
        k: keys, (batch, heads, keys, head_dim).
        v: values, as the keys.
        options: further arguments, such as attn_mask or scale.

    Returns:
        The node of its result, of the queries' shape.
    """
    with graph.inserting_before(before):
        attention = graph.call_function(F.scaled_dot_product_attention, (q, k, v), options)
    attention.meta = {STACK: before.meta[STACK]} if STACK in before.meta else {}
    set_example_value(attention, value_of(q).new_empty(()).expand(value_of(q).shape))
    return attention


def _without_values(like: torch.Tensor, shape: Sequence[int] | None) -> torch.Tensor:
    if shape is not None:
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
