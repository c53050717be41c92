"""Arguments of attention calls, and putting another call in their place."""

from __future__ import annotations

from typing import Any

import torch.fx as fx

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
