"""Read off how RoPE turns q and k on each video self-attention, from the graph and by running a stretch of it."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import torch
import torch.fx as fx

from freeloc_fx import rope
from freeloc_fx.match import UNKNOWN, MatchFailure, Slice, ancestors, flow, linear_slice, run_nodes, shape_of
from freeloc_fx.meta import AttentionSite, RopeLayout, TokenGrid, sites, write
from freeloc_fx.pipeline import PassContext

from .find_attention import arguments

__all__ = ["infer_rope"]

Found = tuple[RopeLayout, TokenGrid]


def infer_rope(graph: fx.Graph, context: PassContext) -> int:
    """Write `rope` and `grid` on sites where q and k are turned alike; demote the others to "other" with a reason.

    The stretch of graph from the norms or projections to the attention's q is linear in what they give. It is run in
    float32 on random inputs that are equal at every token, and what comes out is a rotation of channel pairs per token.
    Sites whose stretches do the same arithmetic on the same tables share one measurement.
    """
    video = [(node, site) for node, site in sites(graph) if site.kind == "video"]
    if not video:
        return 0
    view = flow(graph)
    known: dict[object, Found | MatchFailure] = {}
    found = 0
    for node, site in video:
        given = arguments(node)
        results = []
        for name in ("query", "key"):
            operand = given[name]
            assert isinstance(operand, fx.Node)
            part = linear_slice(view, operand, node)
            signature = part.signature(view)
            if signature not in known:
                known[signature] = _measure(view, part, site, context)
            results.append(known[signature])
        q, k = results
        if isinstance(q, MatchFailure) or isinstance(k, MatchFailure):
            failure = q if isinstance(q, MatchFailure) else k
            write(node, kind="other", reason=str(failure))
        elif not rope.alike(q[0], k[0]) or q[1] != k[1]:
            write(node, kind="other", reason="q and k are rotated differently")
        else:
            write(node, rope=q[0], grid=q[1])
            found += 1
    return found


def _measure(view: nx.DiGraph, part: Slice, site: AttentionSite, context: PassContext) -> Found | MatchFailure:
    name = part.end.name
    _, heads, tokens, dim = site.query_shape
    if not part.nodes:
        return MatchFailure("nothing but a norm or a projection stands before the attention: no RoPE", name)
    layouts = []
    for start in part.starts:
        layout = _channels(start, heads * dim)
        if isinstance(layout, MatchFailure):
            return MatchFailure(layout.reason, name)
        layouts.append(layout)
    try:
        outside = _outside(view, part, context)
    except LookupError as error:
        return MatchFailure(f"a position table needs {error}, which the capture does not hold", name)
    inputs = rope.probes(heads * dim)
    half = any(isinstance(t, torch.Tensor) and t.dtype in (torch.float16, torch.bfloat16) for t in outside.values())
    tolerance = 3e-2 if half else 1e-4
    device = next((t.device for t in outside.values() if isinstance(t, torch.Tensor)), torch.device("cpu"))
    written = part.written

    def run(probe: torch.Tensor) -> torch.Tensor:
        values = {n: t.clone() if n in written and isinstance(t, torch.Tensor) else t for n, t in outside.items()}
        for start, layout in zip(part.starts, layouts, strict=True):
            shape = shape_of(start)
            assert shape is not None
            values[start] = probe.reshape(layout).expand(shape).contiguous().to(device)
        result = run_nodes(part.nodes, values, widen=True, keep=(part.end,))[part.end]
        expected = (result.shape[0], heads, tokens, dim)
        if tuple(result.shape) != expected and not (site.padded and result.shape[2] < tokens):
            raise ValueError(f"expected {expected}, found {tuple(result.shape)}")
        padding = result.new_zeros(heads, tokens - result.shape[2], dim)
        # What data-dependent indexing may leave out is text, which is not turned.
        padding = padding + probe.reshape(heads, 1, dim).to(padding)
        return torch.cat([result[0], padding], 1).float().cpu()

    try:
        with torch.no_grad():
            rotations = rope.measure_heads(inputs.reshape(rope.PROBES, heads, dim), lambda i: run(inputs[i]), tolerance)
            if isinstance(rotations, MatchFailure):
                return MatchFailure(rotations.reason, name)
            found = rope.temporal(rotations, dim, tolerance)
    except Exception as error:  # any operation of the user's model may fail on a probe; the site is then not usable
        return MatchFailure(f"running {part.start.name} -> {name} on a probe failed: {error}", name)
    return MatchFailure(found.reason, name) if isinstance(found, MatchFailure) else found


def _channels(start: fx.Node, count: int) -> list[int] | MatchFailure:
    """The shape in which `count` channels lie at a source, with 1 for its batch and its tokens."""
    shape = shape_of(start)
    if shape is None or UNKNOWN in shape or len(shape) < 3:
        return MatchFailure(f"expected a tensor of batch, tokens and channels at {start.name}, found {shape}")
    for axis in range(1, len(shape)):
        layout = [1, *(size if place != axis else 1 for place, size in enumerate(shape) if place)]
        if math.prod(layout) == count:
            return layout
    return MatchFailure(f"{start.name} {shape} does not hold the attention's {count} channels beside its tokens")


def _outside(view: nx.DiGraph, part: Slice, context: PassContext) -> dict[fx.Node, Any]:
    """Values of everything the stretch reads from outside: position tables, computed from the capture's real inputs."""
    key = part.outside
    if key not in context.tables:
        nodes = ancestors(view, part.outside)
        inputs = context.inputs
        missing = [n.name for n in nodes if n.op in ("placeholder", "get_attr") and n not in inputs]
        if missing:
            raise LookupError(", ".join(missing))
        with torch.no_grad():
            values = run_nodes(nodes, {n: inputs[n] for n in nodes if n in inputs})
        context.tables[key] = {n: values[n] for n in part.outside}
    return context.tables[key]
