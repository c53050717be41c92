"""Arguments of attention calls, and putting another call in their place."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F

from .flow import is_write

ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def arguments(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by name, however they were passed."""
    return dict(zip(ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)


def replace_call(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Put a call of `target` in place of an attention call; Dynamo's metadata and the site's record move over."""
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new


def pad_tokens(
    graph: fx.Graph, given: Sequence[fx.Node], tokens: int, device: torch.device
) -> tuple[list[fx.Node], fx.Node, fx.Node]:
    """Pad tensors whose number of tokens depends on data to all that there may be.

    Args:
        graph: gets the nodes, where it is inserting.
        given: (batch, heads, tokens that there are, head_dim) each.
        tokens: that there may be.
        device: where they lie.

    Returns:
        The padded tensors; bool (1, 1, 1, tokens), which tokens there are; and how many.
    """
    length = graph.call_method("size", (given[0], 2))
    missing = graph.call_function(operator.sub, (tokens, length))
    padded = [graph.call_function(F.pad, (x, (0, 0, 0, missing))) for x in given]
    places = graph.call_function(torch.arange, (tokens,), {"device": device})
    mask = graph.call_method("view", (graph.call_function(operator.lt, (places, length)), 1, 1, 1, tokens))
    return padded, mask, length


def erase_unused(graph: fx.Graph, node: Any) -> None:
    """Take out a mask that nobody reads any more, and what only it read: it may be tokens x tokens large."""
    waiting, erased = [node], set()
    while waiting:
        one = waiting.pop()
        computed = isinstance(one, fx.Node) and one.op in ("call_function", "call_method") and not is_write(one)
        if not computed or one.users or one in erased:
            continue
        read = one.all_input_nodes
        graph.erase_node(one)
        erased.add(one)
        waiting.extend(read)
