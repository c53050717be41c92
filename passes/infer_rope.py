"""Read off how RoPE turns q and k on each video self-attention, from the graph and by running a stretch of it."""

from __future__ import annotations

from typing import Any

import networkx as nx
import torch
import torch.fx as fx

from freeloc_fx import rope
from freeloc_fx.match import MatchFailure, Slice, ancestors, flow, linear_slice, run_nodes, shape_of
from freeloc_fx.meta import AttentionSite, RopeLayout, TokenGrid, sites, write
from freeloc_fx.pipeline import PassContext

from .find_attention import arguments

__all__ = ["infer_rope"]

Found = tuple[RopeLayout, TokenGrid]


def infer_rope(graph: fx.Graph, context: PassContext) -> int:
    """Write `rope` and `grid` on sites where q and k are turned alike; demote the others to "other" with a reason.

    The stretch of graph from the last norm or projection to the attention's q is linear in q. It is run in float32 on
    random inputs that are equal at every token, and what comes out is a rotation of channel pairs per token. Sites
    whose stretches do the same arithmetic on the same tables share one measurement.
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
            part = linear_slice(view, operand)
            signature = part.signature(view)
            if signature not in known:
                known[signature] = _measure(view, part, site, context)
            results.append(known[signature])
        q, k = results
        if isinstance(q, MatchFailure) or isinstance(k, MatchFailure):
            failure = q if isinstance(q, MatchFailure) else k
            write(node, kind="other", reason=str(failure))
        elif q != k:
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
    shape = shape_of(part.start)
    if shape is None:
        return MatchFailure(f"expected a tensor at {part.start.name}", name)
    places = [axis for axis, size in enumerate(shape) if size == tokens]
    if not places or places[0] == 0:
        return MatchFailure(f"no axis of {part.start.name} {shape} holds the {tokens} tokens", name)
    channels = [axis for axis in range(1, len(shape)) if axis != places[0]]
    count = 1
    for axis in channels:
        count *= shape[axis]
    if count != heads * dim:
        return MatchFailure(f"{part.start.name} {shape} holds {count} channels, expected {heads} heads of {dim}", name)
    try:
        outside = _outside(view, part, context)
    except LookupError as error:
        return MatchFailure(f"a position table needs {error}, which the capture does not hold", name)
    inputs = rope.probes(count)
    layout = [1] * len(shape)
    for axis in channels:
        layout[axis] = shape[axis]
    half = any(
        isinstance(t, torch.Tensor) and t.dtype in (torch.float16, torch.bfloat16) and t.is_floating_point()
        for t in outside.values()
    )
    tolerance = 3e-2 if half else 1e-4
    device = next((t.device for t in outside.values() if isinstance(t, torch.Tensor)), torch.device("cpu"))

    def run(probe: torch.Tensor) -> torch.Tensor:
        fed = probe.reshape(layout).expand(shape).contiguous().to(device)
        result = run_nodes(part.nodes, {**outside, part.start: fed})[part.end]
        if tuple(result.shape) != site.query_shape:
            raise ValueError(f"expected {site.query_shape}, found {tuple(result.shape)}")
        return result[0].float().cpu()

    try:
        with torch.no_grad():
            rotations = rope.measure_heads(inputs.reshape(rope.PROBES, heads, dim), lambda i: run(inputs[i]), tolerance)
    except Exception as error:  # any operation of the user's model may fail on a probe; the site is then not usable
        return MatchFailure(f"running {part.start.name} -> {name} on a probe failed: {error}", name)
    if isinstance(rotations, MatchFailure):
        return MatchFailure(rotations.reason, name)
    found = rope.temporal(rotations, dim, tolerance)
    return MatchFailure(found.reason, name) if isinstance(found, MatchFailure) else found


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
