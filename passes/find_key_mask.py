"""Find the per-key padding mask behind each attention's mask, without evaluating what is made of it.

A model that pads its text hides the padding from every query. Some pass the mask as it is, [batch, 1, 1, tokens]; some
expand it to tokens x tokens first, which at video lengths no machine could hold.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import torch
import torch.fx as fx

from freeloc_fx.graph.calls import arguments
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.execute import run_nodes
from freeloc_fx.graph.flow import flow
from freeloc_fx.graph.records import sites, write
from freeloc_fx.graph.shapes import shape_of, value_of
from freeloc_fx.graph.slices import ancestors, between
from freeloc_fx.method import key_masks as masks

__all__ = ["find_key_mask"]


_NONE = (
    "the model passes an attention mask that is more than padding of single keys, as an autoregressive, causal or "
    "windowed model does"
)


def find_key_mask(graph: fx.Graph, capture: Capture) -> int:
    """Write `mask` on video sites with a mask; demote those whose mask no per-key mask explains.

    Args:
        graph: its records change.
        capture: not read.

    Returns:
        The number of masks that were explained.
    """
    masked = [
        (node, site, mask)
        for node, site in sites(graph)
        if site.kind == "video" and (mask := arguments(node).get("attn_mask")) is not None
    ]
    if not masked:
        return 0
    view = flow(graph)
    found = 0
    for node, site, mask in masked:
        batch, _, tokens, _ = site.query_shape
        source = _per_key(view, mask, batch, tokens) if isinstance(mask, fx.Node) else None
        if source is None:
            shape = shape_of(mask) if isinstance(mask, fx.Node) else None
            write(node, kind="other", reason=f"{_NONE}: found {shape}, expected ({batch}, 1, 1, {tokens})")
        else:
            write(node, mask=source)
            found += 1
    return found


def _per_key(view: nx.DiGraph, mask: fx.Node, batch: int, tokens: int) -> fx.Node | None:
    """The mask itself, or the closest ancestor that is per key and determines what valid queries see."""
    shape = shape_of(mask)
    if masks.is_per_key(shape, batch, tokens) and (len(shape or ()) == 4 or (shape or ())[:-1] in ((), (1,), (1, 1))):
        return mask  # of fewer axes the attention itself takes the first for heads or queries
    for node in reversed(ancestors(view, [mask])):
        value = value_of(node)
        if (
            masks.is_per_key(shape_of(node), batch, tokens)
            and value is not None
            and _explains(view, node, mask, tokens)
        ):
            return node
    return None


def _explains(view: nx.DiGraph, source: fx.Node, mask: fx.Node, tokens: int) -> bool:
    """Run what lies between on short masks: the number of tokens is replaced in every argument."""
    nodes = between(view, source, mask)
    if any(shape_of(p) is not None for n in nodes for p in n.all_input_nodes if p is not source and p not in nodes):
        return False
    shape = shape_of(source)
    assert shape is not None
    dtype = value_of(source).dtype

    def expand(short: torch.Tensor) -> Any:
        return run_nodes(nodes, {source: short}, replace={tokens: short.shape[-1]})[mask]

    return masks.explains(expand, (*shape[:-1], masks.SHORT), dtype)
