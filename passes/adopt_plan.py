"""Take over a plan that was made of the unsharded view of the model, site by site, by module path.

Ranks of context parallelism capture the model on their own share of the tokens: neither RoPE nor the token grid can be
read off there. Both, and each site's strategy, come from a capture of the same call without the sharding.
"""

from __future__ import annotations

import torch.fx as fx

from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import AttentionSite, sites, write
from freeloc_fx.graph.sharding import Adopted

__all__ = ["adopt_plan"]


def adopt_plan(graph: fx.Graph, capture: Capture, *, adopted: Adopted) -> int:
    """Write what the unsharded view says about each site: its kind, its RoPE, its grid.

    Args:
        graph: its records change.
        capture: not read.
        adopted: the unsharded view.

    Returns:
        The number of video sites that were adopted.

    Raises:
        CaptureError: a site is not one of the unsharded view, or has other heads or channels there.
    """
    found = 0
    seen: dict[str, int] = {}
    for node, site in sites(graph):
        place = seen[site.path] = seen.get(site.path, -1) + 1
        known = adopted.site(site.path, place)
        if known is None:
            raise CaptureError(
                f"{site.path}: attention {place + 1} of this module stands in the graph of rank "
                f"{adopted.shards.rank}, where the unsharded model has {place} of them"
            )
        _check(site, known, adopted)
        write(node, kind=known.kind, reason=known.reason, rope=known.rope, grid=known.grid)
        found += known.kind == "video"
    return found


def _check(site: AttentionSite, known: AttentionSite, adopted: Adopted) -> None:
    """Refuse a site that is not the planned one; how its tokens are shared out is told by `shard_sequence`."""
    if not site.query_shape and not known.query_shape:
        return
    wanted, there = (
        tuple(shape[n] for shape in (one.query_shape, one.key_shape) for n in (0, 1, 3) if len(shape) == 4)
        for one in (known, site)
    )
    if wanted != there:
        raise CaptureError(
            f"{site.path} on rank {adopted.shards.rank} of {adopted.shards.ranks}: expected batch, heads and head_dim "
            f"of q {known.query_shape} and k {known.key_shape}, found q {site.query_shape} and k {site.key_shape}"
        )
