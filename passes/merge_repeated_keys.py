"""Let attention to text count what its padding repeats, in the layers whose own attention was made cheap.

    unfused:    scaled_dot_product_attention(query=q, key=k, value=v, scale=s)          # 512 keys, 493 of them alike
    rewritten:  freeloc_fx.attention_over_text(q, k, v, s)

Only on the CPU: how many keys repeat is known when they are, and asking a GPU for it would make every layer wait. Only
beside a rewritten attention: a layer that nothing changes computes bit for bit what it did. Not where the reference
runs, which is literal.
"""

from __future__ import annotations

import torch.fx as fx

from freeloc_fx.attention import op, repeated
from freeloc_fx.graph.calls import arguments, replace_call
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import sites
from freeloc_fx.graph.shapes import UNKNOWN
from freeloc_fx.planning.plan import Plan

__all__ = ["merge_repeated_keys"]


LEAST_KEYS = 64
"""Below, there is too little to save."""


def merge_repeated_keys(graph: fx.Graph, capture: Capture, *, plan: Plan, attention: str, verify: bool) -> int:
    """Act on every unmasked attention to other tokens in a changed layer.

    Args:
        graph: changed in place.
        capture: says on which device the attention runs.
        plan: names the changed layers.
        attention: "auto" or a lowering's name.
        verify: the operator compares itself with the plain attention.

    Returns:
        The number of calls replaced.
    """
    if capture.device.type != "cpu" or op.choose(attention, capture.device) == "reference":
        return 0
    changed = {site.layer for site in plan.sites if not site.strategy.changes_nothing}
    count = 0
    for node, site in sites(graph):
        if site.kind != "cross" or site.layer not in changed or not _plain(node, site.key_shape):
            continue
        given = arguments(node)
        target = repeated.OPERATOR
        qkv = (given["query"], given["key"], given["value"])
        replace_call(graph, node, target, (*qkv, site.scale, verify))
        count += 1
    return count


def _plain(node: fx.Node, key_shape: tuple[int, ...]) -> bool:
    """No mask, no dropout, not causal, heads of one size and enough keys."""
    given = arguments(node)
    fancy = any(given.get(name) for name in ("is_causal", "enable_gqa", "dropout_p"))
    return given.get("attn_mask") is None and not fancy and UNKNOWN not in key_shape and key_shape[2] >= LEAST_KEYS
