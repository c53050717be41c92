"""Views of a captured graph: what flows from where, and the stretch of graph between two nodes.

A graph from Dynamo holds in-place writes (`out[..., 0::2] = ...`), so reading `node.args` is not enough: whoever reads
`out` after the write depends on the write. `flow` makes that explicit as a networkx graph, read-only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
import torch.fx as fx

__all__ = ["MatchFailure", "Slice", "ancestors", "flow", "linear_slice", "run_nodes", "shape_of"]


@dataclass(frozen=True)
class MatchFailure:
    """Why something was not found, and at which node."""

    reason: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}" if self.node else self.reason


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape recorded by Dynamo, None for nodes that are not tensors."""
    value = node.meta.get("example_value", node.meta.get("val"))
    return tuple(int(n) for n in value.shape) if isinstance(value, torch.Tensor) else None


def _size(node: fx.Node) -> int | None:
    shape = shape_of(node)
    return None if shape is None else math.prod(shape)


def flow(graph: fx.Graph) -> nx.DiGraph:
    """Data flow with in-place writes resolved: an edge a -> b where b reads what a computed or wrote.

    Node attribute `order` is the position in execution order; `value` is equal for nodes that compute the same thing.
    """
    result = nx.DiGraph()
    writer: dict[fx.Node, fx.Node] = {}  # tensor -> the last node that wrote into it
    numbers: dict[object, int] = {}
    value: dict[fx.Node, int] = {}
    for order, node in enumerate(graph.nodes):
        spelled = (node.op, str(node.target), _spell(node.args, value), _spell(node.kwargs, value))
        pure = node.op in ("call_function", "call_method") and not any(w in spelled[1] for w in ("rand", "dropout"))
        value[node] = numbers.setdefault(spelled if pure else node, len(numbers))
        result.add_node(node, order=order, value=value[node])
        for source in node.all_input_nodes:
            result.add_edge(writer.get(source, source), node)
            if source in writer:
                result.add_edge(source, node)
        target = _written(node)
        if target is not None:
            writer[target] = node
            value[target] = value[node]  # who reads the tensor from here on reads what was written
    return result


def _spell(arguments: Any, names: Mapping[fx.Node, object]) -> str:
    return str(fx.node.map_arg(arguments, lambda n: names[n]))  # type: ignore[arg-type, return-value]


def _written(node: fx.Node) -> fx.Node | None:
    """The tensor that a node writes in place."""
    if node.op == "call_function" and node.target is operator.setitem:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.op == "call_method" and isinstance(node.target, str):
        inplace = node.target.endswith("_") and not node.target.endswith("__")
        return node.args[0] if inplace and isinstance(node.args[0], fx.Node) else None
    return None


# Layout changes and elementwise arithmetic: what RoPE is made of in every spelling. A node outside this set (a norm, a
# projection) ends the search, so a slice is linear in its start.
_METHODS = {
    "unflatten", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "unbind", "chunk", "split",
    "float", "to", "type_as", "type", "unsqueeze", "squeeze", "mul", "add", "sub", "neg", "expand", "clone",
    "new_empty", "select", "movedim", "double", "half", "bfloat16", "mul_", "add_", "sub_", "copy_", "split_with_sizes",
    "view_as",
}  # fmt: skip
_FUNCTIONS: set[Callable[..., Any]] = {
    operator.mul, operator.add, operator.sub, operator.neg, operator.getitem, operator.setitem, operator.imul,
    operator.iadd, operator.isub, torch.mul, torch.add, torch.sub, torch.neg, torch.cat, torch.concat, torch.stack,
    torch.empty_like, torch.zeros_like, torch.unbind, torch.chunk, torch.split, torch.reshape, torch.flatten,
    torch.unflatten, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze, torch.view_as_complex,
    torch.view_as_real, torch.select, torch.movedim, torch.clone,
}  # fmt: skip


def _is_linear(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS


@dataclass(frozen=True)
class Slice:
    """The nodes strictly after `start` that lead to `end`, in execution order, and what they read from outside."""

    start: fx.Node
    end: fx.Node
    nodes: tuple[fx.Node, ...]
    outside: tuple[fx.Node, ...]

    def signature(self, graph: nx.DiGraph) -> tuple[object, ...]:
        """Equal for slices that do the same arithmetic on the same values from outside (so the same RoPE)."""
        names: dict[fx.Node, object] = {node: f"value {graph.nodes[node]['value']}" for node in self.outside}
        names[self.start] = "start"
        names |= {node: index for index, node in enumerate(self.nodes)}
        steps = tuple((n.op, str(n.target), _spell(n.args, names), _spell(n.kwargs, names)) for n in self.nodes)
        return (shape_of(self.start), steps)


def ancestors(graph: nx.DiGraph, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes and everything they depend on, in execution order."""
    found: set[fx.Node] = set()
    for node in nodes:
        found.add(node)
        found |= nx.ancestors(graph, node)
    return sorted(found, key=lambda n: graph.nodes[n]["order"])


def linear_slice(graph: nx.DiGraph, end: fx.Node) -> Slice:
    """The longest stretch of layout changes and elementwise arithmetic that ends in `end` and has one source.

    The source is a dominator: every path from the model's activations to `end` passes through it. Position tables enter
    from outside.
    """
    order = nx.get_node_attributes(graph, "order")
    # Grow backwards through linear operations; what stops the growth is a candidate source or a position table.
    body = {end} if _is_linear(end) else set()
    frontier = set()
    stack = [end]
    while stack:
        node = stack.pop()
        if not _is_linear(node):
            frontier.add(node)
            continue
        body.add(node)
        stack.extend(p for p in graph.predecessors(node) if p not in body and p not in frontier)
    if not body:
        return Slice(end, end, (), ())
    # Position tables are also built from linear operations, so `body` holds part of them: the source is the closest
    # node through which everything that depends on a non-linear operation (norm, projection) reaches the end.
    sources = [n for n in frontier if n.op not in ("placeholder", "get_attr", "output")]
    # A position table may be computed after the projection; it is told by its size, since it serves every head.
    size = _size(end)
    if size is not None:
        sources = [n for n in sources if (found := _size(n)) is None or (found and found % size == 0)] or sources
    if not sources:
        return Slice(end, end, (), ())
    source = max(sources, key=lambda n: order[n])
    return _between(graph, source, end)


def _between(graph: nx.DiGraph, start: fx.Node, end: fx.Node) -> Slice:
    order = nx.get_node_attributes(graph, "order")
    inside = (nx.descendants(graph, start) & nx.ancestors(graph, end)) | {end}
    # An allocation such as empty_like(q) that is written later belongs to the slice as well.
    inside |= {n for node in inside for n in node.all_input_nodes if n.target is torch.empty_like}
    nodes = tuple(sorted(inside, key=order.__getitem__))
    outside = {p for node in nodes for p in node.all_input_nodes if p not in inside and p is not start}
    return Slice(start, end, nodes, tuple(sorted(outside, key=order.__getitem__)))


def run_nodes(nodes: Iterable[fx.Node], known: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Execute nodes in order, given the values of everything they read from outside; returns all values."""
    values = dict(known)
    for node in nodes:
        if node in values:
            continue
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_function":
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
        elif node.op == "call_method":
            assert isinstance(node.target, str)
            values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            raise KeyError(f"{node.name}: a {node.op} node has no value here")
    return values
