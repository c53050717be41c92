"""The stretch of graph between two nodes."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
import torch.fx as fx

from .flow import element_count, spelled, starts_rope
from .operations import VIEWS, lent_operand, written_tensors
from .shapes import shape_of

__all__ = ["Slice", "ancestors", "between", "linear_slice"]


@dataclass(frozen=True)
class Slice:
    """The nodes strictly after `starts` that lead to `end`, in execution order, and what they read from outside.

    Args:
        starts: the largest first; a joint attention has one for video and may have another for text.
        end: the last of the nodes.
        nodes: those of the slice.
        outside: what they read that is neither among them nor among the starts.
        lent: what is neither and only lends its dtype, shape or device.
    """

    starts: tuple[fx.Node, ...]
    end: fx.Node
    nodes: tuple[fx.Node, ...]
    outside: tuple[fx.Node, ...]
    lent: tuple[fx.Node, ...] = ()

    @property
    def start(self) -> fx.Node:
        return self.starts[0]

    @property
    def written(self) -> frozenset[fx.Node]:
        """Tensors that the stretch writes in place."""
        return frozenset(target for node in self.nodes for target in written_tensors(node))

    def signature(self, graph: nx.DiGraph) -> tuple[object, ...]:
        """Equal for slices that do the same arithmetic on the same values from outside (so the same RoPE)."""
        names: dict[fx.Node, object] = {node: f"value {graph.nodes[node]['value']}" for node in self.outside}
        names |= {node: f"lent {shape_of(node)}" for node in self.lent}
        names |= {node: f"start {index}" for index, node in enumerate(self.starts)}
        names |= {node: index for index, node in enumerate(self.nodes)}
        steps = tuple((n.op, str(n.target), spelled(n.args, names), spelled(n.kwargs, names)) for n in self.nodes)
        return (tuple(map(shape_of, self.starts)), steps)


def ancestors(graph: nx.DiGraph, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes and everything they depend on, in execution order.

    Args:
        graph: the data flow.
        nodes: to begin with.
    """
    found: set[fx.Node] = set()
    for node in nodes:
        found.add(node)
        found |= nx.ancestors(graph, node)
    return sorted(found, key=lambda n: graph.nodes[n]["order"])


def between(graph: nx.DiGraph, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes after `start` on the ways to `end`, in execution order.

    Args:
        graph: the data flow.
        start: left out.
        end: the last of them.
    """
    inside = (nx.descendants(graph, start) & nx.ancestors(graph, end)) | {end}
    return sorted(inside, key=lambda n: graph.nodes[n]["order"])


def _of_projection(graph: nx.DiGraph, node: fx.Node) -> bool:
    """Whether nothing but views lies between a node and a norm or projection."""
    while not starts_rope(graph, node):
        source = node.args[0] if node.args and node.target in VIEWS else None
        if not isinstance(source, fx.Node):
            return False
        node = source
    return True


def _search(
    graph: nx.DiGraph, ends: Iterable[fx.Node], whole: int | None, normed: frozenset[fx.Node]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes of a stretch, and its sources, `normed` among them as far as the stretch reads them."""
    body, starts = set(), set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node in body or node in starts or not graph.nodes[node]["activation"]:
            continue
        # One piece of a fused projection, as large as the end, is a projection of its own.
        piece = (
            node.target is operator.getitem
            and whole == element_count(node) is not None
            and all(shape_of(n) is None for n in node.all_input_nodes)
            and not graph.nodes[node]["touched"]
            and _of_projection(graph, node)
        )
        if node in normed or starts_rope(graph, node) or piece:
            starts.add(node)
        else:
            body.add(node)
            stack.extend(n for n in graph.predecessors(node) if n is not lent_operand(node))
    return body, starts - {n for n in starts if normed and shape_of(n) is None}


def linear_slice(graph: nx.DiGraph, end: fx.Node, reader: fx.Node | None = None) -> Slice:
    """The longest stretch of layout changes and elementwise arithmetic that ends in `end`.

    It begins at norms and projections: one, or several where streams are joined. Position tables enter from outside.

    Args:
        graph: the data flow.
        end: the last node of the stretch.
        reader: who reads `end`; writes into `end` before that belong to the stretch.
    """
    order = nx.get_node_attributes(graph, "order")
    base = graph.nodes[end]["base"]
    writes = [n for n in graph.predecessors(reader) if base in graph.nodes[n]["writes"]] if reader else []
    body, starts = _search(graph, [*writes, end], element_count(end), frozenset())
    # A norm that writes its result in place gives no tensor of its own: what it has written is the source.
    if normed := frozenset(one for node in starts if shape_of(node) is None for one in written_tensors(node)):
        body, starts = _search(graph, [*writes, end], element_count(end), normed)
    nodes = tuple(sorted(body, key=order.__getitem__))
    inside = body | starts
    lent = {p for node in nodes if (p := lent_operand(node)) is not None and p not in inside}
    outside = {p for node in nodes for p in node.all_input_nodes if p not in inside and p is not lent_operand(node)}
    first = sorted(starts, key=lambda n: (-(element_count(n) or 0), order[n])) or [end]
    in_order = (tuple(sorted(some, key=order.__getitem__)) for some in (outside, lent - outside))
    return Slice(tuple(first), end, nodes, *in_order)
