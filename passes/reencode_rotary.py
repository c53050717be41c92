"""Put rotary nodes in front of q and k: copies that stand at the latent frames where the strategy wants them.

    before:  scaled_dot_product_attention(query=q, key=k, value=v)
    after:   freeloc_fx.vrpr_rotary(q, cos, sin, segment, partner)   the queries of VRPR's middle tier, four versions
             freeloc_fx.vrpr_rotary(k, cos, sin, segment, partner)   its keys
             ...                                                     the far tier
             scaled_dot_product_attention(query=q, key=k, value=v)   as it was, and a record of the nodes above

q and k arrive rotated by the model's own RoPE; the nodes turn them from there, so the RoPE nodes stay as they are
whatever their spelling. Strategies that change RoPE's frequencies are one rotary node more for q and one for k, or
angles in those that are there. Where nothing turns (TSA, window) there is no node. The tables are inputs of the graph.
`tiered_sparse_attention` reads the record.

Where the number of text tokens depends on data, q, k and v are padded to all that there may be, and the padding is
hidden by a key mask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.attention.flex import rotary, valid
from freeloc_fx.attention.flex.attend import operand, wanted
from freeloc_fx.attention.flex.backends import check_backend
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.attention.flex.site import Site, check_site, describe_site
from freeloc_fx.compat import STACK, fake_mode, set_example_value
from freeloc_fx.graph.calls import arguments, pad_tokens
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import AttentionSite, Operands, sites, write_operands
from freeloc_fx.graph.shapes import value_of
from freeloc_fx.graph.table_inputs import TableInputs
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.planning.plan import Plan

__all__ = ["reencode_rotary"]


def reencode_rotary(graph: fx.Graph, capture: Capture, *, plan: Plan, options: FlexOptions) -> int:
    """Act on the plan.

    Args:
        graph: changed in place.
        capture: says on which device the attention runs.
        plan: a strategy for each site.
        options: choices about FlexAttention.

    Returns:
        The number of attention calls for which operands were made.
    """
    tables = TableInputs(graph, capture.device)
    count = 0
    for node, site in sites(graph):
        planned = plan.site(site.path) if site.kind == "video" else None
        if planned is None or planned.strategy.changes_nothing:
            continue
        assert site.rope is not None and site.grid is not None
        spec = AttentionSpec(planned.strategy, site.grid, site.rope)
        check_site(site.path, spec, site.query_shape, capture.device, options)
        before = node.prev
        with graph.inserting_before(node):
            write_operands(node, _operands(graph, node, site, spec, tables, options))
        while (before := before.next) is not node:  # what is new counts as made in the attention's own module
            if STACK in node.meta:
                before.meta[STACK] = node.meta[STACK]
        count += 1
    return count


def _operands(
    graph: fx.Graph,
    node: fx.Node,
    site: AttentionSite,
    spec: AttentionSpec,
    tables: TableInputs,
    options: FlexOptions,
) -> Operands:
    """The nodes that make q, k and v of every call, in front of an attention."""
    given = arguments(node)
    whole: dict[str, Any] = {which: given[name] for which, name in (("q", "query"), ("k", "key"), ("v", "value"))}
    batch, heads, tokens, _ = site.query_shape
    mask, length = site.mask, None
    if site.padded:
        padded, mask, length = pad_tokens(graph, list(whole.values()), tokens, tables.device)
        whole = dict(zip(whole, padded, strict=True))
    dtype = value_of(node).dtype
    # Under autocast attention runs in a dtype of its own, which what follows was captured with.
    for which, x in whole.items():
        if value_of(x) is None or value_of(x).dtype != dtype:
            whole[which] = _valued(graph.call_method("to", (x, dtype)), x, partial(torch.Tensor.to, dtype=dtype))
    check_backend(options, tables.device, dtype, site.query_shape[3])
    made = describe_site(
        spec,
        site.query_shape,
        dtype,
        scale=site.scale,
        padded=mask is not None and bool(spec.grid.text),
        options=options.on(tables.device),
    )
    visible = None
    if mask is not None and spec.grid.text:
        grid = spec.grid
        visible = graph.call_function(valid.OPERATOR, (mask, batch, tokens, grid.text_first, grid.video))
        with fake_mode():
            set_example_value(visible, torch.empty(batch, tokens, dtype=torch.bool, device=tables.device))
    groups: list[dict[str, fx.Node]] = []
    first = 0
    for count in made.form.groups:
        nodes: dict[str, fx.Node] = {}
        part = (first, first + count)
        for which, x in whole.items():
            same = count == heads
            part_of = partial(torch.narrow, dim=1, start=first, length=count)
            nodes[operand(which)] = (
                x if same else _valued(graph.call_function(torch.narrow, (x, 1, first, count)), x, part_of)
            )
        for which, number in wanted(made.form):
            nodes[operand(which, number)] = _rotary(graph, nodes[operand(which)], made, number, part, tables)
        groups.append(nodes)
        first += count
    return Operands(made, tuple(groups), visible, length)


def _valued(node: fx.Node, of: fx.Node, function: Callable[[torch.Tensor], torch.Tensor]) -> fx.Node:
    """Say what a new node gives: the function of what another one does, where that is known."""
    if isinstance(value := value_of(of), torch.Tensor):
        with fake_mode(), torch.no_grad():
            set_example_value(node, function(value))
    return node


def _rotary(
    graph: fx.Graph, x: fx.Node, made: Site, number: int, part: tuple[int, int], tables: TableInputs
) -> fx.Node:
    """One rotary node, of one group of heads."""
    rates = made.rotations[number].rope.omega
    heads = part if len(rates) > 1 and len(made.form.groups) > 1 else None
    angles = [tables(made, f"{name}.{number}", heads) for name in ("cos", "sin")]
    node = graph.call_function(rotary.OPERATOR, (x, *angles, tables(made, "segment"), tables(made, "partner")))
    versions = len(made.rotations[number].turn)
    return _valued(node, x, lambda value: value.unsqueeze(2).expand(-1, -1, versions, -1, -1))
