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

from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import torch
import torch.fx as fx
from torch import nn

from freeloc_fx.attention import checked
from freeloc_fx.attention.flex import rotary
from freeloc_fx.attention.flex.attend import attend, joined, needed, operand
from freeloc_fx.attention.flex.tables import read_tables
from freeloc_fx.attention.registry import Specs
from freeloc_fx.compat import STACK
from freeloc_fx.graph.calls import arguments, erase_unused
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.flex_calls import FLEX
from freeloc_fx.graph.inserted import insert
from freeloc_fx.graph.records import Operands, operands, record, sites, write, write_call
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
    parts = []
    for group in range(len(form.groups)):
        known = set(graph.nodes)
        parts.append(_spliced(graph, node, made, group, tables, root, functions))
        _move_to_first_use(graph, made.groups[group])
        own = {turned for turned in made.groups[group].values() if turned.target is rotary.OPERATOR}
        if len(form.groups) * form.calls > 1:  # one call alone is compiled with what stands around it
            _mark([one for one in graph.nodes if one not in known or one in own], site.path, group)
    mask = arguments(node).get("attn_mask")
    before = node.prev
    out = insert(graph, node, lambda *given: joined(given), parts, node)
    with graph.inserting_before(node):
        if verify:
            key = specs.add(made.site.spec)
            whole = [_whole(graph, made, which) for which in ("q", "k", "v")]
            out = graph.call_function(checked.OPERATOR, (out, *whole, key, "flex", site.scale, made.valid))
        if made.length is not None:
            out = graph.call_function(torch.narrow, (out, 2, 0, made.length))
    while (before := before.next) is not node:  # what is new counts as made in the attention's own module
        if STACK in node.meta:
            before.meta[STACK] = node.meta[STACK]
    out.meta = {key: value for key, value in node.meta.items() if operands(node) is not value}
    write(out, site)
    node.replace_all_uses_with(out)
    graph.erase_node(node)
    if len(parts) > 1:
        _split_alone(graph, made, site.path)
    erase_unused(graph, mask)


def _spliced(
    graph: fx.Graph,
    node: fx.Node,
    made: Operands,
    group: int,
    tables: TableInputs,
    root: nn.Module,
    functions: CapturedFunctions,
) -> fx.Node:
    """One group of heads. Groups of one size are the same code."""
    form, site = made.site.form, record(node)
    assert site is not None
    dtype = value_of(node).dtype
    given = {name: made.groups[group][name] for name in needed(form)}
    given |= {name: tables(made.site, name) for name in read_tables(made.site, tables.device)}
    likes = {name: _like(made, name, x, form.groups[group], dtype, tables.device) for name, x in given.items()}
    if made.valid is not None and any(call.padded for member in form.members for call in member.calls):
        given["valid"] = made.valid
        likes["valid"] = ((site.query_shape[0], site.query_shape[2]), torch.bool, tables.device)
    captured = functions.get((form, form.groups[group]), partial(attend, form), likes)
    return splice(graph, node, captured, given, root)


def _mark(region: list[fx.Node], path: str, group: int) -> None:
    """Say which nodes of a group of heads belong to which FlexAttention call: a call begins, after the one before it,
    with the first node that it reads."""
    order = {node: place for place, node in enumerate(region)}
    calls = [node for node in region if node.target is FLEX]
    starts = [0]
    for earlier, call in pairwise(calls):
        read, stack = {call}, [call]
        while stack:
            new = {source for source in stack.pop().all_input_nodes if order.get(source, -1) > order[earlier]} - read
            read |= new
            stack.extend(new)
        starts.append(min(order[node] for node in read))
    for number, (first, last) in enumerate(pairwise([*starts, len(region)])):
        for node in region[first:last]:
            write_call(node, f"{path}/{group}/{number}")


def _split_alone(graph: fx.Graph, made: Operands, path: str) -> None:
    """Groups of heads are views, which nobody needs to compile; their place differs, so they would not be alike."""
    views = {node for nodes in made.groups for node in nodes.values() if node.target is torch.narrow}
    first = next(node for node in graph.nodes if node in views)
    for node in [node for node in graph.nodes if node in views]:
        if node is not first:
            first.append(node)
            first = node
        write_call(node, path, compiled=False)


def _like(made: Operands, name: str, node: fx.Node, heads: int, dtype: torch.dtype, device: torch.device) -> Like:
    """What an input of the captured function looks like."""
    if (table := table_of(node)) is not None:
        value = table.value(0, device)
        return tuple(value.shape), value.dtype, device
    which, *rotation = name.split(".")
    shape: tuple[int, ...] = (made.site.shape[0], heads, made.site.spec.grid.sequence, made.site.spec.rope.head_dim)
    if rotation:
        versions = len(made.site.rotations[int(rotation[0])].turn)
        shape = (*shape[:2], versions, *shape[2:])
    assert which in ("q", "k", "v")
    return shape, dtype, device


def _whole(graph: fx.Graph, made: Operands, which: str) -> fx.Node:
    """All heads of q, k or v, as they were."""
    parts = [nodes[operand(which)] for nodes in made.groups]
    return parts[0] if len(parts) == 1 else graph.call_function(torch.cat, (parts, 1))


def _move_to_first_use(graph: fx.Graph, nodes: Mapping[str, fx.Node]) -> None:
    """Let each rotary node stand where it is first read, so that no two calls' copies are held at once."""
    for node in nodes.values():
        if node.target is rotary.OPERATOR:
            order = {other: place for place, other in enumerate(graph.nodes)}
            min(node.users, key=order.__getitem__).prepend(node)
