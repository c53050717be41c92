"""What a rank knows of the model without the sharding, when it captures its own share of the tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from freeloc_fx.method.shards import Shards

from .records import AttentionSite

__all__ = ["Adopted", "by_path"]


@dataclass(frozen=True)
class Adopted:
    """The unsharded view of one call, and the ranks that share it.

    Args:
        sites: module path -> the attentions of that module in execution order, as the unsharded view has them.
        shards: the ranks.
        group: name of their process group.
        at_blocks: arguments of blocks, by name, that are tokens with channels and shared out where they enter: what
            enters as one sequence of text and video is then shared out as one.
    """

    sites: Mapping[str, tuple[AttentionSite, ...]]
    shards: Shards
    group: str
    at_blocks: frozenset[str] = frozenset()

    def site(self, path: str, place: int) -> AttentionSite | None:
        """Give the attention of a module that is called in its place there.

        Args:
            path: module path.
            place: how many attentions of that module come before it.
        """
        found = self.sites.get(path, ())
        return found[place] if place < len(found) else None


def by_path(sites: Iterable[AttentionSite]) -> dict[str, tuple[AttentionSite, ...]]:
    """Sort sites by their module; what belongs to one graph alone, nodes of masks, is left out.

    Args:
        sites: in execution order.
    """
    found: dict[str, tuple[AttentionSite, ...]] = {}
    for site in sites:
        found[site.path] = (*found.get(site.path, ()), replace(site, mask=None))
    return found
