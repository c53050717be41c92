"""Put back the model's own calls where nothing came in the place of what stood for them.

    before:  scaled_dot_product_attention(q.transpose(1, 2), ...).transpose(1, 2)     and, read by nobody, the call
    after:   flash_attn._flash_attn_forward(q, k, v, 0.0, s, causal=False, ...)[0]

What a strategy replaced, a recorder watches or an exchange of tokens changed stays as it is now, and the call goes.
"""

from __future__ import annotations

import torch.fx as fx

from freeloc_fx.graph.calls import arguments, erase_unused
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.kernels import DIRECT
from freeloc_fx.graph.operations import VIEWS
from freeloc_fx.graph.records import StandIn, stand_in

__all__ = ["restore_attention"]


def restore_attention(graph: fx.Graph, capture: Capture) -> int:
    """Act on every attention that stands for another call.

    Args:
        graph: changed in place; what is restored has no record any more.
        capture: not read.

    Returns:
        The number of calls that are the model's own again.
    """
    count = 0
    for node in list(graph.nodes):
        made = stand_in(node)
        if made is None:
            continue
        if node.target in DIRECT and _reads(node) == made.operands:
            made.result.replace_all_uses_with(made.value)
            erase_unused(graph, made.result)
            count += 1
        else:
            _drop(graph, made)
    return count


def _reads(node: fx.Node) -> tuple[fx.Node, ...]:
    given = arguments(node)
    found = [given.get(name) for name in ("query", "key", "value", "attn_mask")]
    return tuple(x for x in found if isinstance(x, fx.Node))


def _drop(graph: fx.Graph, made: StandIn) -> None:
    """Take out a call that something else was put in place of, and what only it read."""
    for user in list(made.call.users):
        if user in made.call.users:
            _erase_unread(graph, user)
    erase_unused(graph, made.call)


def _erase_unread(graph: fx.Graph, node: fx.Node) -> None:
    """Take out another result of the call that goes nowhere, with the shapes that it was given on the way."""
    for user in list(node.users):
        if user in node.users and user.target in VIEWS:
            _erase_unread(graph, user)
    if not node.users:
        graph.erase_node(node)
