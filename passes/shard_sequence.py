"""Exchange tokens for heads around each attention whose tokens are shared out over ranks (Ulysses).

    before:  scaled_dot_product_attention(q, k, v)                on this rank's tokens alone
    after:   q, k, v -> all_to_all -> all tokens of some heads
             scaled_dot_product_attention(q, k, v)                a whole attention, planned or not
             result -> all_to_all -> this rank's tokens of all heads

Where a joint model's text is shared out, too, or lies whole on every rank, the exchange puts the sequence into the
order of the unsharded model; what enters a block as one sequence is shared out as one. Keys and values of another
sequence (text whose tokens are shared out) are gathered.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import torch.fx as fx

from freeloc_fx.attention.exchange import gather_along, heads_to_tokens, tokens_to_heads
from freeloc_fx.compat import set_example_value, source_name
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.calls import ARGUMENTS, arguments
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.flow import flow
from freeloc_fx.graph.inserted import insert
from freeloc_fx.graph.records import AttentionSite, sites, write
from freeloc_fx.graph.shapes import shape_of, value_of
from freeloc_fx.graph.sharding import Adopted
from freeloc_fx.graph.slices import ancestors
from freeloc_fx.method.shards import Layout, layout_of

__all__ = ["shard_sequence"]


_NAME = re.compile(r"^L\['(\w+)'\]$")
"""How Dynamo spells an argument of what it has captured."""


def shard_sequence(graph: fx.Graph, capture: Capture, *, adopted: Adopted) -> int:
    """Insert the collectives.

    Args:
        graph: changed in place; records of exchanged attentions then describe all tokens of this rank's heads.
        capture: not read.
        adopted: the unsharded view.

    Returns:
        The number of attentions around which something is exchanged or gathered.

    Raises:
        CaptureError: an attention holds neither all tokens nor this rank's share of them, or cannot be shared out.
    """
    count = 0
    seen: dict[str, int] = {}
    for node, site in sites(graph):
        place = seen[site.path] = seen.get(site.path, -1) + 1
        whole = adopted.site(site.path, place)
        if whole is None or len(site.query_shape) != 4 or len(whole.query_shape) != 4:
            continue
        here, there = ((one.query_shape[2], one.key_shape[2]) for one in (site, whole))
        if here == there or (site.kind != "video" and here[1] == there[1]):
            continue  # nothing is shared out, or queries alone, which need no others
        if site.padded or whole.padded:
            raise _refused(site, adopted, "the number of its tokens depends on data (padded text is left out)")
        if there[0] == there[1] and here[0] == here[1]:
            _exchange(graph, node, site, whole, adopted)
        else:
            _gather(graph, node, site, whole, adopted)
        count += 1
    return count


def _refused(site: AttentionSite, adopted: Adopted, why: str) -> CaptureError:
    shards = adopted.shards
    return CaptureError(f"{site.path} on rank {shards.rank} of {shards.ranks}: {why}")


def _exchange(graph: fx.Graph, node: fx.Node, site: AttentionSite, whole: AttentionSite, adopted: Adopted) -> None:
    """A self-attention: all tokens of this rank's heads, and back."""
    shards, heads = adopted.shards, site.query_shape[1]
    layout = _layout(node, site, whole, adopted)
    if heads < shards.ranks:
        raise _refused(site, adopted, f"expected a head a rank, found {heads} heads")
    own = shards.part(heads)
    given = arguments(node)
    for name in ARGUMENTS[:3]:
        shape = shape_of(given[name]) or site.query_shape
        there = partial(tokens_to_heads, layout=layout, shape=shape, group=adopted.group)
        given[name] = insert(graph, node, there, given[name], node)
    mask = given.get("attn_mask")
    if isinstance(mask, fx.Node):
        given["attn_mask"] = _mask_of_heads(graph, node, mask, site, layout, own)
    _read(node, given)
    batch, count, tokens, dim = site.query_shape[0], own.stop - own.start, layout.tokens, site.query_shape[3]
    back = partial(heads_to_tokens, layout=layout, shape=(batch, count, tokens, dim), heads=heads, group=adopted.group)
    after, users = node.next, list(node.users)
    _resize(node, (batch, count, tokens, dim))
    result = insert(graph, after, back, node, node)
    for user in users:
        user.replace_input_with(node, result)
    shape = (batch, count, tokens, dim)
    rope = None if site.rope is None else site.rope.of_heads(own)
    write(node, replace(site, query_shape=shape, key_shape=shape, rope=rope))


def _layout(node: fx.Node, site: AttentionSite, whole: AttentionSite, adopted: Adopted) -> Layout:
    """Where the tokens of a self-attention lie."""
    grid, tokens = whole.grid, whole.query_shape[2]
    stretches = [0, tokens, 0] if grid is None else [grid.text_first, grid.video, grid.text_last]
    if grid is not None and grid.text:
        entering = _entering(arguments(node)["value"])
        sizes = {size for _, size in entering}
        own = [adopted.shards.sizes(n)[adopted.shards.rank] for n in stretches]
        # Text may lie whole on every rank.
        words = zip(stretches[::2], own[::2], strict=True)
        apart = own[1] in sizes and all(not n or {n, share} & sizes for n, share in words)
        if any(name in adopted.at_blocks and size == site.query_shape[2] for name, size in entering):
            stretches = [0, tokens, 0]  # as one, which is shared out where it enters
        elif not apart:
            raise _refused(
                site,
                adopted,
                f"{grid.text} tokens of text and {grid.video} of video reach its block as one sequence, and nothing "
                "says how that is shared out; expected a plan that shares out what the blocks are given",
            )
    layout = layout_of(adopted.shards, stretches, 1, site.query_shape[2])
    if layout is None:
        shares = [adopted.shards.sizes(n)[adopted.shards.rank] for n in stretches if n]
        raise _refused(
            site,
            adopted,
            f"expected its share of {tokens} tokens ({' + '.join(map(str, shares))} of "
            f"{' + '.join(str(n) for n in stretches if n)}), found {site.query_shape[2]}",
        )
    return layout


def _entering(value: fx.Node) -> list[tuple[str, int]]:
    """Name and number of tokens of what a block is given and the values of an attention are made of.

    Tables of positions turn queries and keys alone.
    """
    seen = ancestors(flow(value.graph), [value])
    given = [(node, shape_of(node) or ()) for node in seen if node.op == "placeholder"]
    return [(_NAME.sub(r"\1", source_name(node) or node.name), shape[1]) for node, shape in given if len(shape) == 3]


def _mask_of_heads(
    graph: fx.Graph, node: fx.Node, mask: fx.Node, site: AttentionSite, layout: Layout, own: slice
) -> fx.Node:
    """A mask of all keys, for this rank's heads; shared out masks are refused, as the model would read them wrongly."""
    shape = shape_of(mask) or ()
    if not shape or shape[-1] != layout.tokens or (len(shape) > 1 and shape[-2] not in (1, layout.tokens)):
        raise CaptureError(
            f"{site.path}: expected a mask over {layout.tokens} keys, found {shape}: it is shared out as the tokens are"
        )
    if len(shape) == 4 and shape[1] == site.query_shape[1] > 1:
        return insert(graph, node, lambda x: x.narrow(1, own.start, own.stop - own.start), mask, node)
    return mask


def _gather(graph: fx.Graph, node: fx.Node, site: AttentionSite, whole: AttentionSite, adopted: Adopted) -> None:
    """Another sequence's keys and values: all of them, on every rank."""
    shards, tokens = adopted.shards, whole.key_shape[2]
    if site.key_shape[2] != shards.sizes(tokens)[shards.rank]:
        raise _refused(site, adopted, f"expected its share of {tokens} keys, found {site.key_shape[2]}")
    given = arguments(node)
    for name, axis in (("key", 2), ("value", 2), ("attn_mask", -1)):
        one = given.get(name)
        if not isinstance(one, fx.Node):
            continue
        shape = shape_of(one) or ()
        axis %= len(shape)
        if shape[axis] not in (1, tokens):
            every = partial(gather_along, shards=shards, tokens=tokens, shape=shape, axis=axis, group=adopted.group)
            given[name] = insert(graph, node, every, one, node)
    _read(node, given)
    batch, heads, _, dim = site.key_shape
    write(node, replace(site, key_shape=(batch, heads, tokens, dim)))


def _read(node: fx.Node, given: dict[str, Any]) -> None:
    """Let an attention call read other tensors, each passed as it was."""
    node.args = tuple(given[name] for name, _ in zip(ARGUMENTS, node.args, strict=False))
    node.kwargs = {name: given[name] for name in node.kwargs}


def _resize(node: fx.Node, shape: tuple[int, ...]) -> None:
    """What an attention gives has another shape now."""
    value = value_of(node)
    set_example_value(node, value.new_empty(()).expand(shape))
