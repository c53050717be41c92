"""Put regions that Dynamo traced once and stamped out back into one flat graph, each under its own module path."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from freeloc_fx.meta import dotted_path
from freeloc_fx.passes.find_attention import module_path
from freeloc_fx.trace_once import CALLED_THROUGH, StampError

__all__ = ["inline_regions"]


def inline_regions(graph: fx.Graph, root: nn.Module, blocks: Collection[str]) -> int:
    """Replace every call of a stamped region by the region's operations.

    Args:
        graph: changed in place. root: holds the regions' graphs under the names that the calls use. blocks: module
            paths of the transformer blocks.

    Returns: the number of calls replaced.

    Raises:
        StampError: a region got weights of another block than the one it was called for, or other inputs than it takes.
    """
    regions = [n for n in graph.nodes if n.target is torch.ops.higher_order.invoke_subgraph]
    for call in regions:
        _check_weights(call, blocks)
        _inline(graph, call, root)
    for node in graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            plain = {key: (str(path).replace(CALLED_THROUGH, ""), *rest) for key, (path, *rest) in stack.items()}
            node.meta["nn_module_stack"] = plain
    return len(regions)


def _check_weights(call: fx.Node, blocks: Collection[str]) -> None:
    """torch 2.13 was seen to stamp out Kandinsky5's second block with the first one's weights; nothing else says so."""
    known = set(blocks)
    path = module_path(call)
    for given in call.args[2:]:
        source = getattr(given, "_dynamo_source", None)
        if source is None:
            continue
        names = dotted_path(source.name).split(".")
        owner = next((p for n in range(1, len(names) + 1) if (p := ".".join(names[:n])) in known), None)
        if owner is not None and not f"{path}.".startswith(f"{owner}."):
            raise StampError(f"{path}: expected its own weights, found {given} of {owner}")


def _inline(graph: fx.Graph, call: fx.Node, root: nn.Module) -> None:
    holder, _, *given = call.args
    assert isinstance(holder, fx.Node)
    module = getattr(root, str(holder.target))
    body: fx.Graph = module.graph
    places = [n for n in body.nodes if n.op == "placeholder"]
    if len(places) != len(given):
        raise StampError(f"region {holder.target}: expected {len(places)} inputs, found {len(given)}")
    moved = _Moved(call, body)
    copies: dict[fx.Node, Any] = dict(zip(places, given, strict=True))
    results: Any = ()
    with graph.inserting_before(call):
        for node in body.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                results = fx.node.map_arg(node.args[0], copies.__getitem__)
                continue
            if node.op == "get_attr":
                name = f"{holder.target}_{node.target}".replace(".", "_")
                setattr(root, name, operator.attrgetter(str(node.target))(module))
                copies[node] = graph.get_attr(name)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta = moved.meta(node)
    for user in list(call.users):
        if user.target is not operator.getitem:
            raise StampError(f"region {holder.target}: expected its results one by one, found {user.target}")
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(call)
    if not holder.users:
        graph.erase_node(holder)


class _Moved:
    """Metadata of a region's operations as if it had been traced where it is called."""

    def __init__(self, call: fx.Node, body: fx.Graph) -> None:
        stacks = [s for n in body.nodes if n.op != "placeholder" and (s := n.meta.get("nn_module_stack"))]
        self.there = dict(call.meta.get("nn_module_stack") or {})
        depth = len(self.there)
        # The first module inside the region stands at the same depth as the last one outside: it is the block.
        self.first = str(list(stacks[0].values())[depth - 1][0]) if stacks and depth else ""
        self.now = str(list(self.there.values())[-1][0]) if depth else ""
        self.outer = depth

    def meta(self, node: fx.Node) -> dict[str, Any]:
        meta = dict(node.meta)
        stack = meta.get("nn_module_stack")
        if stack and self.outer:
            inner = list(stack.items())[self.outer :]
            meta["nn_module_stack"] = {**self.there, **{key: (self._path(p), *rest) for key, (p, *rest) in inner}}
        return meta

    def _path(self, spelled: Any) -> str:
        path = str(spelled)
        return self.now + path[len(self.first) :] if path.startswith(self.first) else path
