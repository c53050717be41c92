"""Arguments of attention calls, and putting another call in their place."""

from __future__ import annotations

from typing import Any

import torch.fx as fx

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


def erase_unused(graph: fx.Graph, node: Any) -> None:
    """Take out a mask that nobody reads any more, and what only it read: it may be tokens x tokens large."""
    if not isinstance(node, fx.Node) or node.users or node.op not in ("call_function", "call_method") or is_write(node):
        return
    read = node.all_input_nodes
    graph.erase_node(node)
    for source in read:
        erase_unused(graph, source)
