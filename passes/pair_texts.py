"""Say in q and k which pairs of video and text see each other, where both are one sequence and texts change with time.

    before:  scaled_dot_product_attention(q, k, v, attn_mask=m)
    after:   wide = scaled_dot_product_attention(cat(q, text_queries), cat(k, text_keys), cat(v, 0), attn_mask=m)
             narrow(wide, -1, 0, head_dim)

The bias of every pair of tokens comes from one table of (frame, text): log of the frame's share of the text, hidden
where it has none, and hidden between texts. It is the product of a few channels more of q and of k, which are inputs of
the graph, so that every lowering and strategy computes it, and nothing of the size tokens x tokens is there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.fx as fx

from freeloc_fx.compat import STACK, set_example_value
from freeloc_fx.errors import TimelineError
from freeloc_fx.graph.calls import arguments
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import AttentionSite, sites, write
from freeloc_fx.graph.shapes import shape_of, value_of
from freeloc_fx.graph.table_inputs import PairInput, TableInputs
from freeloc_fx.method.strategy import Strategy
from freeloc_fx.method.timeline import TextForm, check_clip_alone, pair_form
from freeloc_fx.planning.plan import Plan

__all__ = ["pair_texts"]


SIDES: tuple[tuple[str, Literal["queries", "keys"]], ...] = (("query", "queries"), ("key", "keys"))
"""Argument of an attention -> which channels it gets."""


def pair_texts(graph: fx.Graph, capture: Capture, *, form: TextForm, plan: Plan) -> int:
    """Act on every attention over video and text together.

    Args:
        graph: changed in place.
        capture: says on which device the attention runs.
        form: of the texts.
        plan: a strategy for each site.

    Returns:
        The number of attentions whose q and k got channels.

    Raises:
        TimelineError: the text of one is not the texts, or further frames stand beside the clip; the message names it.
    """
    tables = TableInputs(graph, capture.device)
    seen: dict[str, int] = {}
    count = 0
    for node, site in sites(graph):
        if site.kind != "video" or site.grid is None or not site.grid.text:
            continue
        check_clip_alone(site.grid.frames, len(site.grid.further))
        if site.grid.text != form.tokens or site.grid.text_first * site.grid.text_last:
            raise TimelineError(
                f"timeline: {site.path} is one attention over the clip and {site.grid.text_first} + "
                f"{site.grid.text_last} tokens of text, expected the {form.tokens} of all texts on one side of it"
            )
        if any(site.beside):
            raise TimelineError(f"timeline: {site.path} has its text among keys that no query stands at")
        row = None
        if site.query_shape[0] < form.rows:  # a model that runs row by row
            row = seen[site.path] = seen.get(site.path, -1) + 1
        planned = plan.site(site.path)
        _add(graph, node, site, tables, form, row, Strategy() if planned is None else planned.strategy)
        count += 1
    return count


def _add(
    graph: fx.Graph,
    node: fx.Node,
    site: AttentionSite,
    tables: TableInputs,
    form: TextForm,
    row: int | None,
    strategy: Strategy,
) -> None:
    grid, dim = site.grid, site.query_shape[3]
    assert grid is not None
    more, scale = pair_form(dim, form.texts, site.scale)
    given = arguments(node)
    new: dict[str, Any] = {}
    first = node.prev
    with graph.inserting_before(node):
        for name, which in SIDES:
            x = given[name]
            table = PairInput(
                which, grid.frames, grid.tokens, bool(grid.text_first), scale, more, value_of(x).dtype, row, strategy
            )
            channels = tables.pairs(table)
            if site.padded:
                channels = graph.call_function(torch.narrow, (channels, 2, 0, graph.call_method("size", (x, 2))))
            channels = graph.call_method("expand", (channels, site.query_shape[0], site.query_shape[1], -1, -1))
            new[name] = graph.call_function(torch.cat, ([x, channels], -1))
        # As wide as q and k, which the kernels want.
        zeros = graph.call_function(torch.zeros_like, (channels,), {"dtype": value_of(given["value"]).dtype})
        new["value"] = graph.call_function(torch.cat, ([given["value"], zeros], -1))
        for name, made in new.items():
            _look_like(made, given[name], more)
        rest = {key: value for key, value in given.items() if key not in new} | {"scale": scale}
        wide = graph.call_function(node.target, (), {**new, **rest})  # type: ignore[arg-type]
        wide.meta = dict(node.meta)
        _look_like(wide, node, more)
        out = graph.call_function(torch.narrow, (wide, 3, 0, dim))
    out.meta = {STACK: node.meta[STACK]} if STACK in node.meta else {}
    set_example_value(out, value_of(node))
    while (first := first.next) is not wide:  # what is new counts as made in the attention's own module
        if STACK in node.meta:
            first.meta[STACK] = node.meta[STACK]
    node.replace_all_uses_with(out)
    graph.erase_node(node)
    shape = (*site.query_shape[:3], dim + more)
    rope = None if site.rope is None else replace(site.rope, head_dim=dim + more)
    write(
        wide, site, query_shape=shape, key_shape=(*site.key_shape[:3], dim + more), scale=scale, rope=rope, texts=True
    )


def _look_like(node: fx.Node, other: fx.Node, more: int) -> None:
    """Record what a node gives: as another, of more channels."""
    like, shape = value_of(other), shape_of(other)
    if like is not None and shape is not None and all(isinstance(n, int) for n in like.shape):
        set_example_value(node, like.new_empty(()).expand(*shape[:3], shape[3] + more))
