"""Give a learned logit of each head to the key that stands for it, where an attention is rewritten.

    before:  scaled_dot_product_attention(q, k, v)                           the last key and value are 0
    after:   wide = scaled_dot_product_attention(cat(q, c), cat(k, 0 and the logits), cat(v, 0), scale=s)
             narrow(wide, -1, 0, head_dim)

A softmax that counts a logit beside its scores is one over a key more, of that score for every query and of value 0.
The score is the product of a few channels more of q and of k, so that every lowering and strategy computes it; a
temperature multiplies it as it does all scores. See `unify_attention`, which puts the key there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch.fx as fx

from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.calls import arguments
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.inserted import insert, insert_attention
from freeloc_fx.graph.records import AttentionSite, record, sites, stand_in, write
from freeloc_fx.method.logits import MORE, factor, with_logits, with_units, with_zeros
from freeloc_fx.planning.plan import Plan

__all__ = ["carry_sinks", "sinks_to_carry"]


def sinks_to_carry(graph: fx.Graph, plan: Plan, observed: bool = False) -> list[tuple[fx.Node, AttentionSite]]:
    """The attentions whose key has to be given its logit, with their records.

    Args:
        graph: with records.
        plan: a strategy for each site.
        observed: whether sites are watched, and not those alone that a strategy changes.
    """
    found = []
    for node, site in sites(graph):
        planned, made = plan.site(site.path) if site.kind == "video" else None, stand_in(node)
        if planned is None or made is None or made.logits is None:
            continue
        if observed or not planned.strategy.changes_nothing:
            found.append((node, site))
    return found


def carry_sinks(graph: fx.Graph, capture: Capture, *, plan: Plan, observed: bool = False) -> int:
    """Act on every attention with learned logits that is rewritten, or watched.

    Args:
        graph: changed in place.
        capture: not read.
        plan: a strategy for each site.
        observed: see `sinks_to_carry`.

    Returns:
        The number of attentions.
    """
    found = sinks_to_carry(graph, plan, observed)
    for node, site in found:
        _widen(graph, node, site)
    return len(found)


def _widen(graph: fx.Graph, node: fx.Node, site: AttentionSite) -> None:
    made, given = stand_in(node), arguments(node)
    assert made is not None and made.logits is not None
    dim = site.query_shape[3]
    scale = factor(dim, site.scale)
    if not scale:
        raise CaptureError(f"{site.path}: its scores are multiplied by {scale}, which leaves its logits no channel")
    q = insert(graph, node, partial(with_units, scale=scale), given["query"], node)
    k = insert(graph, node, partial(with_logits, scale=scale), (given["key"], made.logits), node)
    v = insert(graph, node, with_zeros, given["value"], node)
    rest = {key: value for key, value in given.items() if key not in ("query", "key", "value")}
    wide = insert_attention(graph, node, q, k, v, {**rest, "scale": scale})
    out = insert(graph, node, lambda x: x.narrow(3, 0, dim), wide, node)
    meta = {key: value for key, value in node.meta.items() if key not in wide.meta}
    wide.meta.update(meta)
    node.replace_all_uses_with(out)
    graph.erase_node(node)
    shapes = {f"{name}_shape": (*getattr(site, f"{name}_shape")[:3], dim + MORE) for name in ("query", "key")}
    rope = None if site.rope is None else replace(site.rope, head_dim=dim + MORE)
    assert record(wide) is site
    write(wide, site, **shapes, scale=scale, rope=rope)
