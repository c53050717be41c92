"""What `freeloc inspect --ranks` says of several GPUs."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from torch import nn

from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.evaluation.sharing import exchanged_bytes, halo_bytes, rank_memory
from freeloc_fx.planning.plan import Plan

__all__ = ["shares", "shares_table"]


def shares(model: nn.Module, plan: Plan, ranks: int) -> dict[str, Any]:
    """Count what ranks would exchange and hold in one denoising step of one sample, in bfloat16.

    Args:
        model: whose sizes count; it needs no weights.
        plan: of the model at the length in question.
        ranks: how many.

    Returns:
        JSON data: bytes, and the ways of sharing with what a rank then holds.
    """
    blocks = layer_table(model)
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
    return {
        "count": ranks,
        "layers": len(layers),
        "exchanged_bytes_a_layer": max(layers),
        "exchanged_bytes_a_step": sum(layers),
        "halo_bytes_a_layer": max(halos),
        "held": ways,
    }


def shares_table(counted: dict[str, Any]) -> Table:
    """Make a table of what `shares` has counted.

    Args:
        counted: by `shares`.

    Returns:
        The table, a row for each way of sharing.
    """
    sent, step = (counted[key] / 1e9 for key in ("exchanged_bytes_a_layer", "exchanged_bytes_a_step"))
    table = Table(
        title=f"{counted['count']} ranks, bfloat16, Ulysses: each sends {sent:.3g} GB a layer and {step:.3g} GB a step",
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
