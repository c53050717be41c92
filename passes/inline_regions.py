"""Put regions that Dynamo traced once and stamped out back into one flat graph, each under its own module path.

before:  invoke_subgraph(subgraph_0, ..., weights of blocks.0)   invoke_subgraph(subgraph_0, ..., weights of blocks.1)
after:   the operations of subgraph_0 on the weights of blocks.0, then those on the weights of blocks.1
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from freeloc_fx.compat import STACK, is_region_call, module_stack
from freeloc_fx.errors import StampError
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.paths import ROOT, dotted_path, module_at, module_path

__all__ = ["inline_regions"]


def inline_regions(graph: fx.Graph, capture: Capture, *, root: nn.Module, model: nn.Module | None) -> int:
    """Replace every call of a stamped region by the region's operations.

    Args:
        graph: changed in place.
        capture: holds the weights that the calls are given.
        root: holds the regions' graphs under the names that the calls use.
        model: what was captured, to tell whose the weights are.

    Returns:
        The number of calls replaced.

    Raises:
        StampError: a region got weights of another block than the one it was called for, it cannot be told which block
            that is, or it got other inputs than it takes.
    """
    regions = [n for n in graph.nodes if is_region_call(n)]
    owners = _Owners(model, capture) if regions else None
    for call in regions:
        assert owners is not None
        owners.check(call)
        _inline(graph, call, root)
    return len(regions)


class _Owners:
    """Whose weights a region is given, told by the tensors themselves.

    torch 2.13 was seen to stamp out one block with another's weights, and nothing else says so. Names do not tell: a
    block may be reachable by several, or by one that is spelled in a way of its own.
    """

    def __init__(self, model: nn.Module | None, capture: Capture) -> None:
        self.model, self.capture = model, capture
        self.blocks = {path: block for path in capture.layers if (block := module_at(model, path)) is not None}
        self.known: dict[int, list[nn.Module]] = {}
        for block in {id(block): block for block in self.blocks.values()}.values():
            for tensor in (*block.parameters(), *block.buffers()):
                self.known.setdefault(id(tensor), []).append(block)

    def check(self, call: fx.Node) -> None:
        """Refuse a call that was given a tensor of blocks other than the one it is called for."""
        path = module_path(call)
        called = module_at(self.model, path)
        if called is None or not any(called is block for block in self.blocks.values()):
            raise StampError(
                f"{path or call.name}: expected the path of a transformer block, found none of the model's"
            )
        for given in call.args[2:]:
            value = self.capture.inputs.get(given) if isinstance(given, fx.Node) else None
            owners = self.known.get(id(value), []) if isinstance(value, torch.Tensor) else []
            if owners and not any(called is owner for owner in owners):
                other = next(place for place, block in self.blocks.items() if block is owners[0])
                raise StampError(f"{path}: expected its own weights, found {given} of {other}")


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
        stacks = [s for n in body.nodes if n.op != "placeholder" and (s := module_stack(n))]
        self.there = dict(module_stack(call))
        depth = len(self.there)
        # The first module inside the region stands at the same depth as the last one outside: it is the block.
        self.first = dotted_path(list(stacks[0].values())[depth - 1][0]) if stacks and depth else ""
        self.now = dotted_path(list(self.there.values())[-1][0]) if depth else ""
        self.outer = depth

    def meta(self, node: fx.Node) -> dict[str, Any]:
        meta, stack = dict(node.meta), module_stack(node)
        if stack and self.outer:
            inner = list(stack.items())[self.outer :]
            meta[STACK] = {**self.there, **{key: (self._path(p), *rest) for key, (p, *rest) in inner}}
        return meta

    def _path(self, spelled: Any) -> str:
        path = dotted_path(spelled)
        inside = path == self.first or path.startswith(f"{self.first}.")
        return f"{ROOT}.{self.now}{path[len(self.first) :]}" if inside else str(spelled)
