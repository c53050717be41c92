"""Views of a captured graph: what flows from where, and the stretch of graph between two nodes.

A graph from Dynamo holds in-place writes (`out[..., 0::2] = ...`), so reading `node.args` is not enough: whoever reads
`out` after the write depends on the write. `flow` makes that explicit as a networkx graph, read-only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import networkx as nx
import torch
import torch.fx as fx

from .operations import (
    ACTIVATIONS,
    MATRIX_PRODUCTS,
    OPERATORS,
    PRODUCTS,
    SUMS,
    SUMS_OF_PRODUCTS,
    VIEWS,
    is_linear,
    lent_operand,
    written_tensors,
)
from .shapes import UNKNOWN, shape_of, value_of

__all__ = ["element_count", "flow", "is_write", "reads_elsewhere", "spelled", "starts_rope"]


def element_count(node: fx.Node) -> int | None:
    shape = shape_of(node)
    return None if shape is None or UNKNOWN in shape else math.prod(shape)


def reads_elsewhere(graph: fx.Graph, inputs: Mapping[fx.Node, Any], query: fx.Node, key: fx.Node) -> bool:
    """Whether a key knows nothing of some input of the model that its query knows, as text does of the latents.

    Args:
        graph: that both stand in.
        inputs: values of its placeholders; parameters are no inputs of the model.
        query: what is attended from.
        key: what is attended to.
    """
    bits: dict[fx.Node, int] = {}
    for number, node in enumerate(graph.nodes):
        bits[node] = 0
        for read in node.all_input_nodes:
            bits[node] |= bits[read]
        value = inputs.get(node)
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
            bits[node] = 1 << number
    return bool(bits[query] & ~bits[key])


def flow(graph: fx.Graph) -> nx.DiGraph:
    """Data flow with in-place writes resolved: an edge a -> b where b reads what a computed or wrote.

    Node attributes: `order` is the position in execution order; `writes` are the tensors whose memory it writes into;
    `value` is equal for nodes that compute the same thing; `activation` is true of what depends on a learned
    projection, a nonlinearity or the model's hidden states (so never of a position table); `weight` is the number of
    axes of the learned parameter behind a node, None for others; `touched` is true of an activation that has met a
    table since the last operation that is not linear.
    """
    result = nx.DiGraph()
    base: dict[fx.Node, fx.Node] = {}  # view -> the tensor whose memory it may share
    writer: dict[fx.Node, fx.Node] = {}  # tensor -> the last node that wrote into it, directly or through a view
    numbers: dict[object, int] = {}
    value: dict[fx.Node, int] = {}
    for order, node in enumerate(graph.nodes):
        names = {n: (value[n], value[writer[base[n]]]) if base[n] in writer else value[n] for n in node.all_input_nodes}
        text = (node.op, str(node.target), spelled(node.args, names), spelled(node.kwargs, names))
        pure = node.op in ("call_function", "call_method") and not any(w in text[1] for w in ("rand", "dropout"))
        value[node] = numbers.setdefault(text if pure else node, len(numbers))
        written = written_tensors(node)
        source = node.args[0] if node.args and (node.target in VIEWS or written) else None
        base[node] = base[source] if isinstance(source, fx.Node) else node
        targets = frozenset(base[one] for one in written)
        result.add_node(node, order=order, value=value[node], base=base[node], writes=targets)
        for read in node.all_input_nodes:
            result.add_edge(read, node)
            if base[read] in writer:
                result.add_edge(writer[base[read]], node)
        writer |= dict.fromkeys(targets, node)
        _characterise(result, node)
    return result


def _characterise(graph: nx.DiGraph, node: fx.Node) -> None:
    """Set `activation`, `weight` and `touched` from the node's predecessors."""
    here = graph.nodes[node]
    before = [n for n in graph.predecessors(node) if n is not lent_operand(node)]
    here["activation"] = (
        node.target in ACTIVATIONS
        or (node.op == "placeholder" and "hidden_states" in node.name and _is_floating(node))
        or any(graph.nodes[n]["activation"] for n in before)
    )
    here["weight"] = None
    if node.op in ("placeholder", "get_attr"):
        if "_parameters_" in node.name or isinstance(value_of(node), torch.nn.Parameter):
            here["weight"] = len(shape_of(node) or ())
    elif is_linear(node) and not here["activation"]:
        axes = [graph.nodes[n]["weight"] for n in before]
        here["weight"] = None if not axes or None in axes else max(axes)
    here["touched"] = bool(
        here["activation"]
        and not starts_rope(graph, node)
        and any(graph.nodes[n]["touched"] or (not graph.nodes[n]["activation"] and shape_of(n)) for n in before)
    )


def spelled(arguments: Any, names: Mapping[fx.Node, object]) -> str:
    """A node's arguments as text, with names in place of nodes.

    Args:
        arguments: a structure of nodes and plain values.
        names: of every node in it.
    """
    return str(fx.node.map_arg(arguments, lambda n: names[n]))  # type: ignore[arg-type, return-value]


def is_write(node: fx.Node) -> bool:
    """Whether a node writes into a tensor that others may read."""
    return bool(written_tensors(node))


def starts_rope(graph: nx.DiGraph, node: fx.Node) -> bool:
    """Whether an activation begins a stretch of RoPE: a norm or a projection, also one spelled out in arithmetic.

    Args:
        graph: the data flow that the node is in.
        node: whose result depends on the model's input.
    """
    if not is_linear(node):
        return True
    read = node.all_input_nodes
    weights = [axes for n in read if (axes := graph.nodes[n]["weight"]) is not None]
    moving = [n for n in read if _operand(graph, node, n, "activation")]
    if isinstance(node.target, OPERATORS):  # of a learned vector: a norm
        return any(axes <= 1 for axes in weights)
    if node.target in MATRIX_PRODUCTS:
        return len(moving) > 1 or bool(weights)
    if node.target in SUMS_OF_PRODUCTS:
        return all(_operand(graph, node, n, "activation") for n in node.args[1:3] if isinstance(n, fx.Node))
    if node.target in PRODUCTS:  # by another activation (a norm's factor, a gate), or by the norm's own weight
        return len(moving) > 1 or any(axes <= 1 for axes in weights)
    if node.target in SUMS:  # a bias, or an adapter's part of a projection
        touched = any(_operand(graph, node, n, "touched") for n in moving)
        return any(axes <= 1 for axes in weights) or (len(moving) > 1 and not touched)
    return False


def _is_floating(node: fx.Node) -> bool:
    value = value_of(node)
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _operand(graph: nx.DiGraph, node: fx.Node, operand: fx.Node, name: str) -> bool:
    """An attribute of what `node` reads as `operand`, or of what was written into it before."""
    base = graph.nodes[operand]["base"]
    writers = [n for n in graph.predecessors(node) if base in graph.nodes[n]["writes"]]
    return any(graph.nodes[n][name] for n in (operand, *writers))
