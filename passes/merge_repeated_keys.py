"""Let attention to text count what its padding repeats, in the layers whose own attention was made cheap.

    unfused:    scaled_dot_product_attention(query=q, key=k, value=v, scale=s)          # 512 keys, 493 of them alike
    rewritten:  freeloc_fx.attention_over_text(q, k, v, s)

Only on the CPU: how many keys repeat is known when they are, and asking a GPU for it would make every layer wait. Only
beside a rewritten attention: a layer that nothing changes computes bit for bit what it did. Not where the reference
runs, which is literal.
"""

from __future__ import annotations

import torch
import torch.fx as fx

import freeloc_fx.attention.repeated  # noqa: F401  (registers the operator)
from freeloc_fx.attention import op
from freeloc_fx.match import UNKNOWN
from freeloc_fx.meta import sites
from freeloc_fx.pipeline import PassContext

from .find_attention import arguments, replace_call

__all__ = ["merge_repeated_keys"]

LEAST_KEYS = 64
"""Below, there is too little to save."""


def merge_repeated_keys(graph: fx.Graph, context: PassContext) -> int:
    """Act on every unmasked attention to other tokens in a changed layer; returns their number."""
    assert context.plan is not None, "merge_repeated_keys runs after planning"
    if context.device.type != "cpu" or op.choose(context.attention, context.device) == "reference":
        return 0
    changed = {site.layer for site in context.plan.sites if not site.strategy.changes_nothing}
    count = 0
    for node, site in sites(graph):
        if site.kind != "cross" or site.layer not in changed or not _plain(node, site.key_shape):
            continue
        given = arguments(node)
        target = torch.ops.freeloc_fx.attention_over_text.default
        qkv = (given["query"], given["key"], given["value"])
        replace_call(graph, node, target, (*qkv, site.scale, context.verify))
        count += 1
    return count


def _plain(node: fx.Node, key_shape: tuple[int, ...]) -> bool:
    """No mask, no dropout, not causal, heads of one size and enough keys."""
    given = arguments(node)
    fancy = any(given.get(name) for name in ("is_causal", "enable_gqa", "dropout_p"))
    return given.get("attn_mask") is None and not fancy and UNKNOWN not in key_shape and key_shape[2] >= LEAST_KEYS
