"""Find every softmax attention call, say what kind it is and which layer it belongs to."""

from __future__ import annotations

from collections.abc import Collection

import torch.fx as fx

from freeloc_fx.graph.calls import ARGUMENTS, arguments
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.held import Held
from freeloc_fx.graph.kernels import DIRECT, KernelCall, is_kernel, kernel_call, kernel_name
from freeloc_fx.graph.paths import module_path
from freeloc_fx.graph.records import AttentionSite, stand_in, stood_for, write
from freeloc_fx.graph.shapes import UNKNOWN, bounded_shape, shape_of

__all__ = ["find_attention"]


_ITS_OWN = " is an attention kernel of its own, where scaled_dot_product_attention was expected"
_CHOSEN = "set_attention_backend('native') gives that in diffusers, and elsewhere the switch that chose this kernel"
_BUILT_IN = (
    "where you chose that backend, set_attention_backend('native') gives that; where the model did, it has a block "
    "mask of its own that no other backend takes, and this attention stays as it is"
)


def _advice(node: fx.Node, held: Held) -> str:
    name, call = kernel_name(node), kernel_call(node, held.value)
    if isinstance(call, KernelCall):
        logits, query = None if call.sink is None else shape_of(call.sink), shape_of(call.query) or ()
        axis = 2 if call.layout == "bshd" else 1
        unknown = "its sizes, or where its samples begin, are not known or not those of one"
        other = f"its softmax counts learned logits {logits}, expected one a head"
        call = unknown if logits in (None, query[axis : axis + 1]) else other
    return f"{name}{_ITS_OWN} ({call}); {_BUILT_IN if 'flex' in name else _CHOSEN}"


def _is_attention(node: fx.Node) -> bool:
    return node.target in DIRECT or is_kernel(node)


def _block(path: str, paths: Collection[str]) -> str:
    """What a module path has up to the first number in which it differs from another one: "dit.stack.3" of
    "dit.stack.3.sa", "block3" of "block3.sa". Where it differs in none, up to its first number, or all of it."""
    names = path.split(".")
    for end, name in enumerate(names, 1):
        stem, before = name.rstrip("0123456789"), names[: end - 1]
        beside = {
            other[end - 1] for each in paths if (other := each.split("."))[: end - 1] == before and len(other) >= end
        }
        if stem != name and any(each != name and each.rstrip("0123456789") == stem for each in beside):
            return ".".join(names[:end])
    return ".".join(names[: next((end for end, name in enumerate(names, 1) if name.isdigit()), len(names))])


def find_attention(graph: fx.Graph, capture: Capture) -> int:
    """Put an AttentionSite on every scaled_dot_product_attention call.

    A call is "cross" where q and k count different tokens, "other" with a reason where it cannot be a video
    self-attention; what is left is "video" until later passes have looked at its mask, its RoPE and its token grid.

    Args:
        graph: gets the records.
        capture: tells a module path's layer.

    Returns:
        The number of attention calls, of any kind.
    """
    found = 0
    held = Held(graph, capture.inputs)
    paths = {module_path(node) for node in graph.nodes if node.op == "call_function" and _is_attention(node)}
    first: dict[str, int] = {}  # block -> its place among them: called again, or another attention of it, is one layer

    def place(node: fx.Node) -> tuple[str, int]:
        inside = module_path(node)
        path = ".".join(p for p in (capture.prefix, inside) if p) or f"call_{found}"
        return path, capture.layer_of(path, first.setdefault(_block(inside or path, paths), len(first)))

    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if stood_for(node):
            continue
        if node.target not in DIRECT:
            if is_kernel(node):
                path, layer = place(node)
                write(node, AttentionSite(path, layer, "other", (), (), reason=_advice(node, held)))
                found += 1
            continue
        given = arguments(node)
        query, key, value = (given[name] for name in ARGUMENTS[:3])
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
        q_shape, k_shape, v_shape = (bounded_shape(n) or () for n in (query, key, value))
        path, layer = place(node)
        found += 1
        kind, reason = "video", ""
        if len(q_shape) != 4 or len(k_shape) != 4:
            kind, reason = "other", f"expected 4-D q and k, found {q_shape} and {k_shape}"
        elif UNKNOWN in (*q_shape, *k_shape):
            kind, reason = "other", f"the sizes depend on data: q {q_shape}, k {k_shape}, {UNKNOWN} for unknown"
        elif q_shape[2] != k_shape[2]:
            kind, reason = "cross", f"{q_shape[2]} query tokens attend to {k_shape[2]} other tokens"
        elif q_shape[1] != k_shape[1] or k_shape != v_shape:
            kind, reason = "other", f"grouped or unequal heads: q {q_shape}, k {k_shape}, v {v_shape}"
        elif given.get("is_causal"):
            kind, reason = "other", "causal attention: the model is autoregressive"
        scale, standing = given.get("scale"), stand_in(node)
        write(
            node,
            AttentionSite(
                path=path,
                layer=layer,
                kind=kind,  # type: ignore[arg-type]
                query_shape=q_shape,
                key_shape=k_shape,
                scale=float(scale) if isinstance(scale, (int, float)) else None,
                reason=reason,
                beside=(0, 0) if standing is None else standing.beside,
                sinks=(0, 0) if standing is None else standing.sinks,
                padded=shape_of(query) != q_shape,
            ),
        )
    return found
