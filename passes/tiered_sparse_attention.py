"""Replace each attention by FlexAttention with block masks, one call for each place where its keys stand.

    before:  freeloc_fx.vrpr_rotary(q, ...)   freeloc_fx.vrpr_rotary(k, ...)   and so on, see `reencode_rotary`
             scaled_dot_product_attention(query=q, key=k, value=v)

    after:   near = flex_attention(q, k, v, block mask of the near tier)
             freeloc_fx.merge_attention(near)
             middle = flex_attention(vrpr_rotary(q), vrpr_rotary(k), v, block mask of the middle tier, by version)
             freeloc_fx.merge_attention(middle, near)
             far = flex_attention(vrpr_rotary(q), vrpr_rotary(k), v, block mask of the far tier, by version)
             freeloc_fx.merge_attention(far, near and middle)

At most three calls for VRPR, with TSA or without; one, and nothing to merge, for what turns nothing (TSA, window). The
versions of the queries are heads that share one key head, and the block mask, which is an input of the graph, says head
by head which pairs each is right for. A decay of scores is a score function. A mixture's strategies stand side by side.

The nodes are those of `attend`, which calls the public `flex_attention`; Dynamo captures it once for each form, and its
graph is copied in.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.fx as fx
from torch import nn

from freeloc_fx.attention import checked
from freeloc_fx.attention.flex import rotary
from freeloc_fx.attention.flex.attend import attend, needed
from freeloc_fx.attention.flex.tables import read_tables
from freeloc_fx.attention.registry import Specs
from freeloc_fx.graph.calls import arguments, erase_unused
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import Operands, operands, record, sites, write
from freeloc_fx.graph.shapes import value_of
from freeloc_fx.graph.splice import CapturedFunctions, Like, splice
from freeloc_fx.graph.table_inputs import TableInputs, table_of

__all__ = ["tiered_sparse_attention"]


def tiered_sparse_attention(
    graph: fx.Graph, capture: Capture, *, root: nn.Module, functions: CapturedFunctions, verify: bool, specs: Specs
) -> int:
    """Act on every attention for which `reencode_rotary` has made operands.

    Args:
        graph: changed in place.
        capture: says on which device the attention runs.
        root: gets the mask and score functions.
        functions: what was captured before.
        verify: attentions compare themselves with the reference.
        specs: what the graph names is added to them.

    Returns:
        The number of attention calls replaced.
    """
    tables = TableInputs(graph, capture.device)
    count = 0
    for node, _ in sites(graph):
        made = operands(node)
        if made is not None:
            _replace(graph, node, made, tables, root, functions, verify, specs)
            count += 1
    return count


def _replace(
    graph: fx.Graph,
    node: fx.Node,
    made: Operands,
    tables: TableInputs,
    root: nn.Module,
    functions: CapturedFunctions,
    verify: bool,
    specs: Specs,
) -> None:
    form, site = made.site.form, record(node)
    assert site is not None
    given = {name: made.nodes[name] for name in needed(form)}
    given |= {name: tables(made.site, name) for name in read_tables(made.site, tables.device)}
    likes = {name: _like(made, name, x, value_of(node).dtype, tables.device) for name, x in given.items()}
    if made.valid is not None and any(call.padded for member in form.members for call in member.calls):
        given["valid"] = made.valid
        likes["valid"] = ((site.query_shape[0], site.query_shape[2]), torch.bool, tables.device)
    captured = functions.get(form, partial(attend, form), likes)
    out = splice(graph, node, captured, given, root)
    mask = arguments(node).get("attn_mask")
    with graph.inserting_before(node):
        if verify:
            key = specs.add(made.site.spec)
            whole = [_whole(graph, made, which) for which in ("q", "k", "v")]
            out = graph.call_function(checked.OPERATOR, (out, *whole, key, "flex", site.scale, made.valid))
        if made.length is not None:
            out = graph.call_function(torch.narrow, (out, 2, 0, made.length))
    out.meta = {key: value for key, value in node.meta.items() if operands(node) is not value}
    write(out, site)
    node.replace_all_uses_with(out)
    graph.erase_node(node)
    _move_to_first_use(graph, made)
    erase_unused(graph, mask)


def _like(made: Operands, name: str, node: fx.Node, dtype: torch.dtype, device: torch.device) -> Like:
    """What an input of the captured function looks like."""
    if (table := table_of(node)) is not None:
        value = table.value(0, device)
        return tuple(value.shape), value.dtype, device
    which, group, *rotation = name.split(".")
    grid, heads = made.site.spec.grid, made.site.form.groups[int(group)]
    shape: tuple[int, ...] = (made.site.shape[0], heads, grid.sequence, made.site.spec.rope.head_dim)
    if rotation:
        versions = len(made.site.rotations[int(rotation[0])].turn)
        shape = (*shape[:2], versions, *shape[2:])
    assert which in ("q", "k", "v")
    return shape, dtype, device


def _whole(graph: fx.Graph, made: Operands, which: str) -> fx.Node:
    """All heads of q, k or v, as they were."""
    parts = [made.nodes[f"{which}.{group}"] for group in range(len(made.site.form.groups))]
    return parts[0] if len(parts) == 1 else graph.call_function(torch.cat, (parts, 1))


def _move_to_first_use(graph: fx.Graph, made: Operands) -> None:
    """Let each rotary node stand where it is first read, so that no two tiers' copies are held at once."""
    for node in made.nodes.values():
        if node.target is rotary.OPERATOR:
            order = {other: place for place, other in enumerate(graph.nodes)}
            min(node.users, key=order.__getitem__).prepend(node)
    if len(made.site.form.groups) > 1:
        for node in made.nodes.values():  # parts that are only read turned have been read
            if node.target is torch.narrow and not node.users:
                graph.erase_node(node)
