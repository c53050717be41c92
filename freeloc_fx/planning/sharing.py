"""Which plans cannot run on ranks that share out a model's tokens, as far as a plan tells: known before any call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freeloc_fx.errors import CaptureError

if TYPE_CHECKING:
    from freeloc_fx.graph.records import AttentionSite

    from .plan import Plan

__all__ = ["check_shared", "why_unshared"]


def why_unshared(site: AttentionSite) -> str:
    """Say why an attention cannot work on a share of its tokens.

    Args:
        site: a video self-attention of the unsharded model.

    Returns:
        A clause; empty for one that can.
    """
    if site.padded:
        return "the number of its tokens depends on data, since padded text is left out"
    if site.mask is not None:
        return f"padding is hidden by a mask over all {site.key_shape[2]} tokens, which no rank's share takes"
    if site.order:
        return "its frames stand among words or sound, which ranks would have to put in order first"
    if any(site.beside):
        return f"{sum(site.beside)} of its keys are tokens that no query stands at, of which no rank has a share"
    return ""


def check_shared(plan: Plan, ranks: int) -> None:
    """Refuse a plan whose attentions cannot be shared out by tokens.

    Args:
        plan: of the unsharded model.
        ranks: that are to share.

    Raises:
        CaptureError: names the first attention that cannot.
    """
    for site in plan.sites:
        if site.unshared:
            raise CaptureError(
                f"{site.path}: {site.unshared}; expected FSDP or tensor parallelism for this model, found its tokens "
                f"shared out over {ranks} ranks"
            )
    for site in plan.sites:
        if site.heads < ranks:
            raise CaptureError(
                f"{site.path}: expected at least one head a rank, found {site.heads} heads for {ranks} ranks"
            )
