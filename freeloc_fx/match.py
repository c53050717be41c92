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
import torch.nn.functional as F
import torch.utils._pytree as pytree

from . import hooks as hooks  # registers the operator that stands for a hooked leaf

__all__ = ["UNKNOWN", "MatchFailure", "Slice", "ancestors", "between", "bounded_shape", "flow", "is_write"]
__all__ += ["linear_slice", "run_nodes", "shape_of"]


@dataclass(frozen=True)
class MatchFailure:
    """Why something was not found, and at which node."""

    reason: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}" if self.node else self.reason


UNKNOWN = -1
"""In a shape: a size that is only known when the graph runs (the length of what torch.nonzero found)."""


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape recorded by Dynamo, UNKNOWN where a size depends on data; None for nodes that are not tensors."""
    value = node.meta.get("example_value", node.meta.get("val"))
    return tuple(map(_known, value.shape)) if isinstance(value, torch.Tensor) else None


def bounded_shape(node: fx.Node) -> tuple[int, ...] | None:
    """`shape_of` with the largest size there may be where a size depends on data: what indexing picks from."""
    shape = shape_of(node)
    if shape is None or UNKNOWN not in shape:
        return shape
    axis = shape.index(UNKNOWN)
    if node.target in (torch.cat, torch.concat):
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        sizes = [(bounded_shape(n) or shape)[axis] for n in parts]
        bound = UNKNOWN if UNKNOWN in sizes else sum(sizes)
    else:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        before = bounded_shape(source) if source is not None else None
        same = node.target is operator.getitem or node.target in ("contiguous", "to", "float", "type_as", "clone")
        bound = before[axis] if same and before is not None and len(before) == len(shape) else UNKNOWN
    return tuple(bound if n == UNKNOWN and place == axis else n for place, n in enumerate(shape))


def _known(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else UNKNOWN


def _size(node: fx.Node) -> int | None:
    shape = shape_of(node)
    return None if shape is None or UNKNOWN in shape else math.prod(shape)


def flow(graph: fx.Graph) -> nx.DiGraph:
    """Data flow with in-place writes resolved: an edge a -> b where b reads what a computed or wrote.

    Node attributes: `order` is the position in execution order; `value` is equal for nodes that compute the same thing;
    `activation` is true of what depends on a learned projection, a nonlinearity or the model's hidden states (so never
    of a position table); `weight` is the number of axes of the learned parameter behind a node, None for others;
    `touched` is true of an activation that has met a table since the last operation that is not linear.
    """
    result = nx.DiGraph()
    base: dict[fx.Node, fx.Node] = {}  # view -> the tensor whose memory it may share
    writer: dict[fx.Node, fx.Node] = {}  # tensor -> the last node that wrote into it, directly or through a view
    numbers: dict[object, int] = {}
    value: dict[fx.Node, int] = {}
    for order, node in enumerate(graph.nodes):
        names = {n: (value[n], value[writer[base[n]]]) if base[n] in writer else value[n] for n in node.all_input_nodes}
        spelled = (node.op, str(node.target), _spell(node.args, names), _spell(node.kwargs, names))
        pure = node.op in ("call_function", "call_method") and not any(w in spelled[1] for w in ("rand", "dropout"))
        value[node] = numbers.setdefault(spelled if pure else node, len(numbers))
        source = node.args[0] if node.args and (node.target in _VIEWS or _written(node)) else None
        base[node] = base[source] if isinstance(source, fx.Node) else node
        result.add_node(node, order=order, value=value[node], base=base[node])
        for read in node.all_input_nodes:
            result.add_edge(read, node)
            if base[read] in writer:
                result.add_edge(writer[base[read]], node)
        target = _written(node)
        if target is not None:
            writer[base[target]] = node
        _characterise(result, node)
    return result


def _characterise(graph: nx.DiGraph, node: fx.Node) -> None:
    """Set `activation`, `weight` and `touched` from the node's predecessors."""
    here = graph.nodes[node]
    # The second tensor of these only lends its type or shape.
    lent = node.args[1] if node.op == "call_method" and node.target in _LENDING and len(node.args) > 1 else None
    before = [n for n in graph.predecessors(node) if n is not lent]
    here["activation"] = (
        node.target in _ACTIVATIONS
        or (node.op == "placeholder" and "hidden_states" in node.name and _is_floating(node))
        or any(graph.nodes[n]["activation"] for n in before)
    )
    here["weight"] = None
    if node.op in ("placeholder", "get_attr"):
        if "_parameters_" in node.name or isinstance(node.meta.get("example_value"), torch.nn.Parameter):
            here["weight"] = len(shape_of(node) or ())
    elif _is_linear(node) and not here["activation"]:
        axes = [graph.nodes[n]["weight"] for n in before]
        here["weight"] = None if not axes or None in axes else max(axes)
    here["touched"] = bool(
        here["activation"]
        and not _starts(graph, node)
        and any(graph.nodes[n]["touched"] or (not graph.nodes[n]["activation"] and shape_of(n)) for n in before)
    )


_VIEWS = {
    "unflatten", "flatten", "view", "reshape", "permute", "transpose", "unbind", "chunk", "split", "unsqueeze",
    "squeeze", "expand", "select", "movedim", "split_with_sizes", "view_as", "narrow", "swapaxes", "contiguous", "to",
    "float", "type_as", "type", operator.getitem, torch.unbind, torch.chunk, torch.split, torch.reshape, torch.flatten,
    torch.unflatten, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze, torch.view_as_complex,
    torch.view_as_real, torch.select, torch.movedim, torch.narrow,
}  # fmt: skip


def _spell(arguments: Any, names: Mapping[fx.Node, object]) -> str:
    return str(fx.node.map_arg(arguments, lambda n: names[n]))  # type: ignore[arg-type, return-value]


def is_write(node: fx.Node) -> bool:
    """Whether a node writes into a tensor that others may read."""
    return _written(node) is not None


def _written(node: fx.Node) -> fx.Node | None:
    """The tensor that a node writes in place."""
    if node.op == "call_function" and node.target is operator.setitem:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.op == "call_method" and isinstance(node.target, str):
        inplace = node.target.endswith("_") and not node.target.endswith("__")
        return node.args[0] if inplace and isinstance(node.args[0], fx.Node) else None
    return None


# Layout changes and elementwise arithmetic: what RoPE is made of in every spelling. A node outside this set (a norm, a
# projection) ends the search, so a slice is linear in its sources.
_METHODS = {
    "unflatten", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "unbind", "chunk", "split",
    "float", "to", "type_as", "type", "unsqueeze", "squeeze", "mul", "add", "sub", "neg", "expand", "clone",
    "new_empty", "select", "movedim", "double", "half", "bfloat16", "mul_", "add_", "sub_", "copy_", "split_with_sizes",
    "view_as", "expand_as", "reshape_as", "new_zeros", "sum", "repeat_interleave", "narrow", "div", "swapaxes", "roll",
    "index_select", "matmul", "addcmul", "addcmul_",
}  # fmt: skip
_FUNCTIONS: set[Callable[..., Any]] = {
    operator.mul, operator.add, operator.sub, operator.neg, operator.getitem, operator.setitem, operator.imul,
    operator.iadd, operator.isub, torch.mul, torch.add, torch.sub, torch.neg, torch.cat, torch.concat, torch.stack,
    torch.empty_like, torch.zeros_like, torch.unbind, torch.chunk, torch.split, torch.reshape, torch.flatten,
    torch.unflatten, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze, torch.view_as_complex,
    torch.view_as_real, torch.select, torch.movedim, torch.clone, torch.sum, torch.narrow, torch.div, operator.truediv,
    torch.index_select, torch.matmul, operator.matmul, torch.einsum, torch.roll, torch.addcmul, torch.repeat_interleave,
}  # fmt: skip
_PRODUCTS = {
    "mul", "mul_", "div", operator.mul, operator.imul, operator.truediv, torch.mul, torch.div,
}  # fmt: skip
_SUMS_OF_PRODUCTS = {"addcmul", "addcmul_", torch.addcmul}
_SUMS = {"add", "add_", "sub", "sub_", operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub}
_MATRIX_PRODUCTS = {"matmul", torch.matmul, operator.matmul, torch.einsum}
_LENDING = {"type_as", "view_as", "expand_as", "reshape_as"}
_ACTIVATIONS: set[Any] = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, F.silu, F.gelu, F.relu,
    F.softmax, torch.softmax, F.layer_norm, torch.layer_norm, F.group_norm, F.rms_norm, torch.rms_norm, torch.addmm,
    F.scaled_dot_product_attention, torch.ops.freeloc_fx.leaf_call.default,
}  # fmt: skip


def _is_linear(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS


def _starts(graph: nx.DiGraph, node: fx.Node) -> bool:
    """Whether an activation begins a stretch of RoPE: a norm or a projection, also one spelled out in arithmetic."""
    if not _is_linear(node):
        return True
    read = node.all_input_nodes
    weights = [axes for n in read if (axes := graph.nodes[n]["weight"]) is not None]
    moving = [n for n in read if _operand(graph, node, n, "activation")]
    if node.target in _MATRIX_PRODUCTS:
        return len(moving) > 1 or bool(weights)
    if node.target in _SUMS_OF_PRODUCTS:
        return all(_operand(graph, node, n, "activation") for n in node.args[1:3] if isinstance(n, fx.Node))
    if node.target in _PRODUCTS:  # by another activation (a norm's factor, a gate), or by the norm's own weight
        return len(moving) > 1 or any(axes <= 1 for axes in weights)
    if node.target in _SUMS:  # a bias, or an adapter's part of a projection
        touched = any(_operand(graph, node, n, "touched") for n in moving)
        return any(axes <= 1 for axes in weights) or (len(moving) > 1 and not touched)
    return False


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("example_value")
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _operand(graph: nx.DiGraph, node: fx.Node, operand: fx.Node, name: str) -> bool:
    """An attribute of what `node` reads as `operand`, or of what was written into it before."""
    base = graph.nodes[operand]["base"]
    writers = [n for n in graph.predecessors(node) if _written(n) and graph.nodes[n]["base"] is base]
    return any(graph.nodes[n][name] for n in (operand, *writers))


@dataclass(frozen=True)
class Slice:
    """The nodes strictly after `starts` that lead to `end`, in execution order, and what they read from outside.

    starts: the largest first; a joint attention has one for video and may have another for text.
    """

    starts: tuple[fx.Node, ...]
    end: fx.Node
    nodes: tuple[fx.Node, ...]
    outside: tuple[fx.Node, ...]

    @property
    def start(self) -> fx.Node:
        return self.starts[0]

    @property
    def written(self) -> frozenset[fx.Node]:
        """Tensors that the stretch writes in place."""
        return frozenset(target for node in self.nodes if (target := _written(node)) is not None)

    def signature(self, graph: nx.DiGraph) -> tuple[object, ...]:
        """Equal for slices that do the same arithmetic on the same values from outside (so the same RoPE)."""
        names: dict[fx.Node, object] = {node: f"value {graph.nodes[node]['value']}" for node in self.outside}
        names |= {node: f"start {index}" for index, node in enumerate(self.starts)}
        names |= {node: index for index, node in enumerate(self.nodes)}
        steps = tuple((n.op, str(n.target), _spell(n.args, names), _spell(n.kwargs, names)) for n in self.nodes)
        return (tuple(map(shape_of, self.starts)), steps)


def ancestors(graph: nx.DiGraph, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes and everything they depend on, in execution order."""
    found: set[fx.Node] = set()
    for node in nodes:
        found.add(node)
        found |= nx.ancestors(graph, node)
    return sorted(found, key=lambda n: graph.nodes[n]["order"])


def between(graph: nx.DiGraph, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes after `start` on the ways to `end`, in execution order."""
    inside = (nx.descendants(graph, start) & nx.ancestors(graph, end)) | {end}
    return sorted(inside, key=lambda n: graph.nodes[n]["order"])


def linear_slice(graph: nx.DiGraph, end: fx.Node, reader: fx.Node | None = None) -> Slice:
    """The longest stretch of layout changes and elementwise arithmetic that ends in `end`.

    It begins at norms and projections: one, or several where streams are joined. Position tables enter from outside.

    Args:
        reader: who reads `end`; writes into `end` before that belong to the stretch.
    """
    order = nx.get_node_attributes(graph, "order")
    base = nx.get_node_attributes(graph, "base")
    writes = [n for n in graph.predecessors(reader) if _written(n) and base[n] is base[end]] if reader else []
    whole = _size(end)
    body, starts = set(), set()
    stack = [*writes, end]
    while stack:
        node = stack.pop()
        if node in body or node in starts or not graph.nodes[node]["activation"]:
            continue
        # One piece of a fused projection, as large as the end, is a projection of its own.
        piece = (
            node.target is operator.getitem
            and whole == _size(node) is not None
            and all(shape_of(n) is None for n in node.all_input_nodes)
            and not graph.nodes[node]["touched"]
        )
        if _starts(graph, node) or piece:
            starts.add(node)
        else:
            body.add(node)
            stack.extend(graph.predecessors(node))
    nodes = tuple(sorted(body, key=order.__getitem__))
    outside = {p for node in nodes for p in node.all_input_nodes if p not in body and p not in starts}
    first = sorted(starts, key=lambda n: (-(_size(n) or 0), order[n])) or [end]
    return Slice(tuple(first), end, nodes, tuple(sorted(outside, key=order.__getitem__)))


_HALF = (torch.float16, torch.bfloat16)


def run_nodes(
    nodes: Iterable[fx.Node],
    known: Mapping[fx.Node, Any],
    widen: bool = False,
    replace: Mapping[int, int] | None = None,
    keep: Iterable[fx.Node] | None = None,
) -> dict[fx.Node, Any]:
    """Execute nodes in order, given the values of everything they read from outside; returns all values.

    widen: casts to half precision become casts to float32. replace: integers among the arguments to change. keep: drop
    all other values once they have been read.
    """
    values = dict(known)
    nodes = list(nodes)
    last = {} if keep is None else {read: n for n in nodes for read in n.all_input_nodes}
    kept = set(keep or ())
    for node in nodes:
        if node in values:
            continue
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        if replace:
            args, kwargs = (pytree.tree_map_only(int, lambda n: replace.get(n, n), a) for a in (args, kwargs))
        if widen:
            if node.op == "call_method" and node.target in ("half", "bfloat16"):
                values[node] = args[0].float()
                continue  # what it read lives on in the result where it was float32 already
            args = tuple(torch.float32 if _casts((a,)) else a for a in args) if _casts(args) else args
            kwargs = {k: torch.float32 if _casts((v,)) else v for k, v in kwargs.items()}
        if node.op == "call_function":
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
        elif node.op == "call_method":
            assert isinstance(node.target, str)
            values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            raise KeyError(f"{node.name}: a {node.op} node has no value here")
        for read in node.all_input_nodes:
            if last.get(read) is node and read not in kept:
                del values[read]
    return values


def _casts(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(a, torch.dtype) and a in _HALF for a in arguments)
