"""Let each frame attend to its own text where the text axis holds several, one after the other.

    unfused:    scaled_dot_product_attention(q, k, v, attn_mask=m)     # k and v: the tokens of all texts
    rewritten:  freeloc_fx.scheduled_attention(q, k, v, weights, starts, None, m, False, False)

What a frame sees is decided by a table of (frame, text) that is an input of the graph. Where texts attend to themselves
before they meet the video, each is kept to itself.
"""

from __future__ import annotations

from typing import Any

import torch.fx as fx

from freeloc_fx.attention import scheduled
from freeloc_fx.errors import TimelineError
from freeloc_fx.graph.calls import arguments, replace_call
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import AttentionSite, sites, write
from freeloc_fx.graph.table_inputs import TableInputs
from freeloc_fx.method.grid import TokenGrid

__all__ = ["schedule_text"]


def schedule_text(graph: fx.Graph, capture: Capture, *, tokens: int, exact: bool, verify: bool) -> int:
    """Act on every attention to the text axis.

    Args:
        graph: changed in place.
        capture: says on which device the attention runs.
        tokens: of the text axis, all texts together.
        exact: the operators take the table literally.
        verify: the operators compare themselves with that.

    Returns:
        The number of attentions in which the frames see their texts.

    Raises:
        TimelineError: there is none, or one in which texts cannot be kept apart; the message names it.
    """
    found = sites(graph)
    grid = next((site.grid for _, site in found if site.kind == "video" and site.grid is not None), None)
    if grid is None:
        raise TimelineError("timeline: no video self-attention says which tokens are a frame's")
    tables = TableInputs(graph, capture.device)
    count = 0
    for node, site in found:
        if len(site.query_shape) != 4 or len(site.key_shape) != 4:
            continue
        queries, keys = site.query_shape[2], site.key_shape[2]
        if site.kind == "cross" and keys == tokens and queries == grid.video:
            _check_plain(node, site)
            _to_texts(graph, node, site, tables, grid, exact, verify)
            count += 1
        elif site.kind == "video" and site.grid is not None and site.grid.text:
            raise TimelineError(
                f"timeline: {site.path} is one attention over the clip's {site.grid.video} tokens and {site.grid.text} "
                "of text, so the texts change with the frames from layer to layer and are not kept apart there; "
                "expected a model whose frames attend to text in attentions of their own, as Wan's and LTX's do"
            )
        elif site.kind != "cross" and queries == keys == tokens and (site.grid is None or site.grid.video != tokens):
            if site.rope is not None:
                raise TimelineError(
                    f"timeline: {site.path} is self-attention of the text with positions that run on from one text to "
                    "the next; expected a model whose texts can lie one after the other"
                )
            _check_plain(node, site)
            _within_texts(graph, node, site, tables, grid)
    if not count:
        reasons = "\n".join(f"  {site.path}: {site.query_shape} to {site.key_shape}" for _, site in found)
        raise TimelineError(
            f"timeline: no attention of the clip's {grid.video} tokens to the {tokens} tokens of its texts was found; "
            f"what was found instead:\n{reasons}"
        )
    return count


def _check_plain(node: fx.Node, site: AttentionSite) -> None:
    """Refuse an attention with options that no operator here knows."""
    given = arguments(node)
    fancy = [name for name in ("is_causal", "enable_gqa", "dropout_p") if given.get(name)]
    if fancy or site.padded:
        why = f"is called with {', '.join(fancy)}" if fancy else "has as many tokens as data says"
        raise TimelineError(f"timeline: {site.path} {why}, so that texts cannot be told apart in it")


def _to_texts(
    graph: fx.Graph, node: fx.Node, site: AttentionSite, tables: TableInputs, grid: TokenGrid, exact: bool, verify: bool
) -> None:
    given = arguments(node)
    qkv = (given["query"], given["key"], given["value"])
    weights, starts = tables.schedule("weights", grid.frames), tables.schedule("starts", grid.frames)
    rest: tuple[Any, ...] = (weights, starts, site.scale, given.get("attn_mask"), exact, verify)
    new = replace_call(graph, node, scheduled.OPERATOR, (*qkv, *rest))
    write(new, kind="other", reason="each frame attends to its own text")


def _within_texts(graph: fx.Graph, node: fx.Node, site: AttentionSite, tables: TableInputs, grid: TokenGrid) -> None:
    given = arguments(node)
    qkv = (given["query"], given["key"], given["value"])
    starts = tables.schedule("starts", grid.frames)
    new = replace_call(graph, node, scheduled.WITHIN, (*qkv, starts, site.scale, given.get("attn_mask")))
    write(new, kind="other", reason="each text attends to itself")
