"""Let each frame attend to its own text where the text axis holds several, one after the other.

    unfused:    scaled_dot_product_attention(q, k, v, attn_mask=m)     # k and v: the tokens of all texts
    rewritten:  freeloc_fx.scheduled_attention(q, k, v, weights, starts, None, m, False, False)

What a frame sees is decided by a table of (frame, text) that is an input of the graph. Where texts attend to themselves
before they meet the video, each is kept to itself. Attentions over video and text together are those of `pair_texts`.
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
from freeloc_fx.method.timeline import TextForm, check_clip_alone

__all__ = ["schedule_text"]


def schedule_text(graph: fx.Graph, capture: Capture, *, form: TextForm, exact: bool, verify: bool) -> int:
    """Act on every attention to the text axis, and on every one of the text axis to itself.

    Args:
        graph: changed in place.
        capture: says on which device the attention runs.
        form: of the texts.
        exact: the operators take the table literally.
        verify: the operators compare themselves with that.

    Returns:
        The number of attentions in which the frames see their texts, those over video and text together among them.

    Raises:
        TimelineError: there is none, or one in which texts cannot be kept apart; the message names it.
    """
    found = sites(graph)
    grid = next((site.grid for _, site in found if site.kind == "video" and site.grid is not None), None)
    if grid is None:
        raise TimelineError("timeline: no video self-attention says which tokens are a frame's")
    check_clip_alone(grid.frames, len(grid.further))
    tables = TableInputs(graph, capture.device)
    count = 0
    for node, site in found:
        if site.kind == "video":
            count += site.texts
            continue
        if len(site.query_shape) != 4 or len(site.key_shape) != 4:
            continue
        queries, keys = site.query_shape[2], site.key_shape[2]
        if queries == grid.video and keys == form.tokens:
            _check_plain(node, site, form)
            _to_texts(graph, node, site, tables, grid, exact, verify)
            count += 1
        elif queries == keys == form.tokens:
            _check_plain(node, site, form)
            _within_texts(graph, node, site, tables, grid)
        elif _mixes(queries, keys, grid.video, form.tokens):
            why = f": {site.reason}" if site.kind == "other" else ""
            raise TimelineError(
                f"timeline: {site.path} is an attention of {queries} tokens to {keys}{why}; the texts cannot be kept "
                f"apart in it, expected the clip's {grid.video} tokens to see the {form.tokens} of its texts"
            )
    if not count:
        reasons = "\n".join(f"  {site.path}: {site.query_shape} to {site.key_shape}" for _, site in found)
        raise TimelineError(
            f"timeline: no attention of the clip's {grid.video} tokens to the {form.tokens} tokens of its texts was "
            f"found; what was found instead:\n{reasons}"
        )
    return count


def _mixes(queries: int, keys: int, video: int, text: int) -> bool:
    """Whether an attention may bring texts together, or to frames that do not see them, by how many tokens it has.

    A single query makes one vector for the whole clip, which is a mean of all texts in any case.
    """
    if queries == 1 or queries == keys == video:
        return False
    return keys >= video + text or (queries == video and keys > text) or keys == text or queries == text


def _check_plain(node: fx.Node, site: AttentionSite, form: TextForm) -> None:
    """Refuse an attention with options that no operator here knows."""
    given = arguments(node)
    fancy = [name for name in ("is_causal", "enable_gqa", "dropout_p") if given.get(name)]
    if form.rows:
        raise TimelineError(
            f"timeline: {site.path} attends to texts whose places differ between the rows of a batch; expected videos "
            "and negative prompts in calls of their own"
        )
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
