"""Put the profile's measured sensitivities on the sites, where a plan and `inspect` read them."""

from __future__ import annotations

from collections.abc import Mapping

import torch.fx as fx

from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import sites, write
from freeloc_fx.method.sensitivity import Sensitivity

__all__ = ["annotate_sensitivity"]


def annotate_sensitivity(graph: fx.Graph, capture: Capture, *, sensitivities: Mapping[int, Sensitivity]) -> int:
    """Write `sensitivity` on every video site for which the profile has one.

    Args:
        graph: gets the records.
        capture: not read.
        sensitivities: layer index -> what was measured.

    Returns:
        The number of sites written to.
    """
    count = 0
    for node, site in sites(graph):
        if site.kind == "video" and site.layer in sensitivities:
            write(node, sensitivity=sensitivities[site.layer])
            count += 1
    return count
