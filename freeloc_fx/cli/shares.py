"""What `freeloc inspect --ranks` says of several GPUs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich import box
from rich.table import Table
from torch import nn

from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.compiler.capture.parallel import can_exchange
from freeloc_fx.errors import CaptureError, ModelError
from freeloc_fx.evaluation.sharing import exchanged_bytes, halo_bytes, rank_memory
from freeloc_fx.generation.parallel import check_sharing_plan
from freeloc_fx.method.shards import diffusers_takes
from freeloc_fx.planning.plan import Plan
from freeloc_fx.planning.sharing import check_shared

__all__ = ["shares", "shares_notes", "shares_table"]


def shares(model: nn.Module, plan: Plan, ranks: int) -> dict[str, Any]:
    """Count what ranks would exchange and hold in one denoising step of one sample, in bfloat16.

    Args:
        model: whose sizes count; it needs no weights.
        plan: of the model at the length in question.
        ranks: how many.

    Returns:
        JSON data: bytes, and the ways of sharing with what a rank then holds. "refused" is what a call on such ranks is
        refused with, and nothing is counted then of tokens that are shared out; "by_hand" what `freeloc generate
        --parallel ulysses` is refused with, where ranks that are given a plan for sharing out the tokens can run.
    """
    blocks = layer_table(model)
    refused, by_hand = _refused(model, plan, ranks, blocks), _without_plan(model, ranks)
    layers = [exchanged_bytes(site.grid.sequence, site.heads, site.head_dim, ranks) for site in plan.sites]
    halos = [halo_bytes(site.spec(), site.heads, ranks) for site in plan.sites]
    ways = {}
    for name, count, tokens, weights, chunks in (
        ("one GPU", 1, False, "held", 1),
        ("one GPU, weights offloaded", 1, False, "offload", 1),
        ("ulysses", ranks, True, "held", 1),
        ("fsdp", ranks, False, "fsdp", 1),
        ("ulysses and fsdp", ranks, True, "fsdp", 1),
        ("ulysses and fsdp, feed-forward in 8 chunks", ranks, True, "fsdp", 8),
    ):
        if tokens and refused is not None:
            continue
        held = rank_memory(
            plan,
            model,
            blocks,
            count,
            share_tokens=tokens,
            share_weights=weights == "fsdp",
            offload=weights == "offload",
            feed_forward_chunks=chunks,
        )
        ways[name] = {
            "weights": held.weights, "attention": held.attention, "feed_forward": held.feed_forward, "peak": held.peak,
        }  # fmt: skip
    found: dict[str, Any] = {"count": ranks, "layers": len(layers), "refused": refused, "by_hand": by_hand}
    if refused is None:
        found |= {
            "exchanged_bytes_a_layer": max(layers),
            "exchanged_bytes_a_step": sum(layers),
            "halo_bytes_a_layer": max(halos),
        }
    return found | {"held": ways}


def _refused(model: nn.Module, plan: Plan, ranks: int, blocks: Collection[str]) -> str | None:
    """What a call on ranks that share out its tokens is refused with; None where it runs.

    Within the trained length diffusers' own processors exchange the tokens, where they do that, and nobody is refused.
    """
    taken = all(diffusers_takes(site.heads, ranks, anything=True) for site in plan.sites)
    if not plan.rewritten and taken and can_exchange(model, blocks):
        return None
    try:
        check_shared(plan, ranks)
    except CaptureError as why:
        return str(why)
    return None


def _without_plan(model: nn.Module, ranks: int) -> str | None:
    """What sharing out a pipeline's tokens is refused with; None where diffusers knows how."""
    try:
        check_sharing_plan(model, ranks)
    except ModelError as why:
        return str(why)
    return None


def shares_notes(counted: dict[str, Any]) -> list[str]:
    """Say what is refused of what `shares` has looked at.

    Args:
        counted: by `shares`.

    Returns:
        Lines, none where nothing is.
    """
    if counted["refused"] is not None:
        return [f"{counted['count']} ranks that share out the tokens (Ulysses) are refused: {counted['refused']}"]
    if counted["by_hand"] is not None:
        return [
            f"freeloc generate --parallel ulysses is refused: {counted['by_hand']}. The figures are for a cp_plan of "
            "your own, given to enable_parallelism"
        ]
    return []


def shares_table(counted: dict[str, Any]) -> Table:
    """Make a table of what `shares` has counted.

    Args:
        counted: by `shares`.

    Returns:
        The table, a row for each way of sharing.
    """
    title = f"{counted['count']} ranks, bfloat16"
    if counted["refused"] is None:
        sent, step = (counted[key] / 1e9 for key in ("exchanged_bytes_a_layer", "exchanged_bytes_a_step"))
        title += f", Ulysses: each sends {sent:.3g} GB a layer and {step:.3g} GB a step"
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in ("GB a rank", "weights", "attention", "feed-forward", "peak"):
        table.add_column(heading, justify="left" if heading == "GB a rank" else "right")
    for name, held in counted["held"].items():
        cells = (held[key] for key in ("weights", "attention", "feed_forward", "peak"))
        table.add_row(name, *(f"{cell / 1e9:.2f}" for cell in cells))
    return table
