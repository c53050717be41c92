"""Views of a captured graph: data flow with in-place writes, linear slices, running a part."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import networkx as nx
import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from models import captured, wan, wan_inputs

from freeloc_fx.errors import MatchFailure
from freeloc_fx.graph.calls import arguments
from freeloc_fx.graph.execute import run_nodes, set_aside
from freeloc_fx.graph.flow import flow
from freeloc_fx.graph.records import sites
from freeloc_fx.graph.shapes import shape_of
from freeloc_fx.graph.slices import ancestors, between, linear_slice
from freeloc_fx.passes.find_attention import find_attention


def traced(function: Callable[..., object], *inputs: torch.Tensor) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The graph that Dynamo captures, and its nodes by name; placeholders by the name of their argument."""
    graphs: list[fx.Graph] = []

    def keep(gm: fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(gm.graph)
        return gm.forward

    torch.compile(function, backend=keep, fullgraph=True, dynamic=False)(*inputs)
    (graph,) = graphs
    return graph, {re.sub(r"^l_(\w+)_$", r"\1", node.name): node for node in graph.nodes}


X, TABLE = torch.randn(3, 8), torch.randn(4)


def writes_in_place(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    y = F.silu(x)
    out = torch.empty_like(y)
    out[..., 0::2] = y[..., 0::2] * table
    out[..., 1::2] = y[..., 1::2] + table
    return out * 2


def test_a_reader_depends_on_the_last_write() -> None:
    graph, names = traced(writes_in_place, X, TABLE)
    view = flow(graph)
    assert isinstance(view, nx.DiGraph) and nx.is_directed_acyclic_graph(view)
    set_first, set_second = names["setitem"], names["setitem_1"]
    assert view.has_edge(set_second, names["mul_1"]), "the product reads what was written last"
    assert view.has_edge(set_first, set_second)
    assert names["table"] in nx.ancestors(view, names["mul_1"])


def test_a_method_that_writes_in_place_counts_as_a_write() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = F.silu(x)
        z.add_(y)
        return z * 2

    graph, names = traced(function, X, X)
    assert flow(graph).has_edge(names["add_"], names["mul"])


def test_the_view_leaves_the_graph_alone() -> None:
    graph, _ = traced(writes_in_place, X, TABLE)
    before = str(graph)
    linear_slice(flow(graph), list(graph.nodes)[-2])
    assert str(graph) == before


def test_ancestors_come_in_execution_order() -> None:
    graph, names = traced(writes_in_place, X, TABLE)
    view = flow(graph)
    found = ancestors(view, [names["mul_1"]])
    order = list(graph.nodes)
    assert found == sorted(found, key=order.index)
    assert names["x"] in found and names["setitem"] in found
    assert names["output"] not in found


def test_a_slice_holds_the_writes_and_the_allocation() -> None:
    graph, names = traced(writes_in_place, X, TABLE)
    part = linear_slice(flow(graph), names["mul_1"])
    assert part.start is names["y"]
    assert {names["out"], names["setitem"], names["setitem_1"], names["mul_1"]} <= set(part.nodes)
    assert part.outside == (names["table"],)


def test_running_a_slice_gives_what_the_function_gives() -> None:
    graph, names = traced(writes_in_place, X, TABLE)
    part = linear_slice(flow(graph), names["mul_1"])
    values = run_nodes(part.nodes, {part.start: F.silu(X), names["table"]: TABLE})
    assert torch.equal(values[part.end], writes_in_place(X, TABLE))  # type: ignore[arg-type]


def test_what_does_no_linear_arithmetic_gives_an_empty_slice() -> None:
    graph, names = traced(lambda x: F.silu(x), X)
    part = linear_slice(flow(graph), names["silu"])
    assert part.nodes == () and part.start is part.end


def test_a_table_computed_after_the_projection_is_not_taken_for_the_source() -> None:
    def function(x: torch.Tensor, weight: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        q = F.linear(x, weight)
        return q * torch.cos(place)

    graph, names = traced(function, torch.randn(2, 5, 8), torch.randn(8, 8), torch.randn(5, 1))
    part = linear_slice(flow(graph), names["mul"])
    assert part.start is names["q"]
    assert part.outside == (names["cos"],)


def test_slices_of_wan_start_at_the_norm_and_share_a_signature() -> None:
    graph, capture = captured(wan(num_layers=2), wan_inputs(4))
    find_attention(graph, capture)
    view = flow(graph)
    parts = []
    for node, site in sites(graph):
        if site.kind == "video":
            parts += [linear_slice(view, arguments(node)[name]) for name in ("query", "key")]  # type: ignore[arg-type]
    assert len(parts) == 4
    assert len({part.signature(view) for part in parts}) == 1
    assert all("norm" in str(part.start.target) for part in parts)
    assert shape_of(parts[0].end) == (1, 2, 16, 12)


def test_slices_with_other_tables_differ() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, r = F.silu(x), F.relu(x), F.gelu(x)
        return q * y[0], k * y[0], r * y[1]

    graph, names = traced(function, X, X)
    view = flow(graph)
    first, same, unlike = (linear_slice(view, names[name]).signature(view) for name in ("mul", "mul_1", "mul_2"))
    assert first == same
    assert first != unlike


def test_what_is_read_before_and_after_a_write_differs() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        table = torch.zeros_like(y)
        one = F.silu(x) * table[0]
        table[0] = y[0]
        two = F.relu(x) * table[0]
        return one, two

    graph, names = traced(function, X, X)
    view = flow(graph)
    assert linear_slice(view, names["one"]).signature(view) != linear_slice(view, names["two"]).signature(view)


def test_a_failure_names_the_node() -> None:
    assert str(MatchFailure("no such axis", "mul_3")) == "mul_3: no such axis"
    assert str(MatchFailure("no such axis")) == "no such axis"


# Streams that are joined, views that are written


def test_streams_that_are_joined_have_a_source_each() -> None:
    def function(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        video, text = F.silu(x), F.gelu(y)
        return torch.cat([video * table, text], dim=0)

    graph, names = traced(function, torch.randn(5, 4), torch.randn(2, 4), torch.randn(5, 1))
    part = linear_slice(flow(graph), names["cat"])
    assert part.starts == (names["video"], names["text"]), "the larger first"
    assert part.outside == (names["table"],)


def test_a_write_through_a_view_reaches_the_tensor() -> None:
    def function(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        out = F.silu(x) * table
        half = out[..., :4]
        half.addcmul_(table[:4], table[:4])
        return out.reshape(-1)

    graph, names = traced(function, X, torch.randn(8))
    part = linear_slice(flow(graph), names["reshape"])
    assert names["addcmul_"] in part.nodes
    ones = {node: torch.ones(shape_of(node) or ()) for node in part.outside}
    values = run_nodes(part.nodes, {part.start: F.silu(X), **ones})
    assert values[part.end].reshape(3, 8)[:, :4].allclose(F.silu(X)[:, :4] + 1)


def test_a_norm_written_out_ends_the_search() -> None:
    def function(x: torch.Tensor, w: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, w)
        normed = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True))
        return normed * table

    graph, names = traced(function, X, torch.randn(8, 8), torch.randn(8))
    part = linear_slice(flow(graph), names["mul_1"])
    assert part.starts == (names["normed"],)


def test_a_piece_of_a_fused_projection_is_a_source() -> None:
    def function(x: torch.Tensor, w: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        q, _, _ = F.linear(x, w).chunk(3, dim=-1)
        first, second = q.chunk(2, dim=-1)
        return torch.cat([first * table, second * table], -1)

    graph, names = traced(function, X, torch.randn(24, 8), torch.randn(4))
    part = linear_slice(flow(graph), names["cat"])
    assert [shape_of(n) for n in part.starts] == [(3, 8)]


def test_values_that_nobody_reads_again_are_dropped() -> None:
    graph, names = traced(writes_in_place, X, TABLE)
    part = linear_slice(flow(graph), names["mul_1"])
    given = {part.start: F.silu(X), names["table"]: TABLE}
    values = run_nodes(part.nodes, given, keep=(part.end,))
    assert names["out"] not in values
    assert torch.equal(values[part.end], run_nodes(part.nodes, given)[part.end])


def test_casts_to_half_precision_can_be_widened() -> None:
    graph, names = traced(lambda x: F.silu(x).to(torch.bfloat16) * 3, X)
    nodes = between(flow(graph), names["silu"], names["mul"])
    assert run_nodes(nodes, {names["silu"]: X})[names["mul"]].dtype == torch.bfloat16
    wide = run_nodes(nodes, {names["silu"]: X}, widen=True)[names["mul"]]
    assert torch.equal(wide, X * 3)


def test_an_error_that_is_set_aside_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "freeloc_fx"):
        set_aside(ValueError("no such axis"), "scale is not known")
    assert caplog.messages == ["scale is not known: ValueError: no such axis"]
