"""Put the profile's measured sensitivities on the sites, where a plan and `inspect` read them."""

from __future__ import annotations

import torch.fx as fx

from freeloc_fx.meta import sites, write
from freeloc_fx.pipeline import PassContext

__all__ = ["annotate_sensitivity"]


def annotate_sensitivity(graph: fx.Graph, context: PassContext) -> int:
    """Write `sensitivity` on every video site for which the profile has one."""
    count = 0
    known = context.profile.sensitivities or {}
    for node, site in sites(graph):
        if site.kind == "video" and site.layer in known:
            write(node, sensitivity=known[site.layer])
            count += 1
    return count
