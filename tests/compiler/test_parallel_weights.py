"""Transformed models whose weights are shared out over ranks, moved about, or spread over devices, on two ranks."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from models import DiT, latents, wan
from ranks import context_parallel, of_first, on_ranks
from slow import slow
from transformed import ALL, distance, run

import freeloc_fx
from freeloc_fx import Profile, plans, transform
from freeloc_fx.errors import CaptureError

PLAIN: dict[str, Any] = {"backend": "eager", "attention": "tiles"}
CPU = torch.device("cpu")


WAYS = ((True, True, False),)
"""(blocks, root, before transform); FSDP2 takes over the class of what it shards."""
OTHER_WAYS = ((True, False, False), (False, True, False), (False, True, True), (True, True, True))


def fsdp(model: Any, blocks: bool, root: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks if blocks else ():
        fully_shard(block, mesh=mesh)
    if root:
        fully_shard(model, mesh=mesh)


def sharded(rank: int, ways: tuple[tuple[bool, bool, bool], ...]) -> dict[str, Any]:
    """Every way of sharding, before and after transform; in one of them tokens are shared out, too."""
    torch.set_grad_enabled(False)
    expected, found = of_first(rank, lambda: run(transform(wan(), ALL, **PLAIN))), {}
    for blocks, root, before in ways:
        model, ulysses = wan(), blocks and root
        if before:
            if ulysses:
                context_parallel(model, ulysses_degree=2)
            fsdp(model, blocks, root)
        changed = transform(model, ALL, **PLAIN)
        if not before:
            if ulysses:
                context_parallel(changed, ulysses_degree=2)
            fsdp(changed, blocks, root)
        first = next(iter(changed.blocks[0].parameters()))
        found[f"{blocks} {root} {before}"] = (
            distance(run(changed), expected),
            plans(changed)[0].rewritten,
            type(first).__name__,
            freeloc_fx.plan(model, ALL, frames=7, height=4, width=4).rewritten,
        )
    return found


def tensor_parallel(rank: int, before: bool) -> tuple[float, int]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.set_grad_enabled(False)
    profile = Profile(trained_frames=5, layers="vrpr+tsa")
    model, given = DiT(heads=4), latents(12)
    expected = of_first(rank, lambda: transform(model, profile, **PLAIN)(given))
    mesh = init_device_mesh("cpu", (2,))

    def share(one: Any) -> None:
        styles = {name: ColwiseParallel() for name in ("to_q", "to_k", "to_v")} | {"to_out": RowwiseParallel()}
        for block in one.blocks:
            parallelize_module(block.attention, mesh, styles)
            block.attention.heads //= 2
            block.attention.grouped //= 2

    if before:
        share(model)
    changed = transform(model, profile, **PLAIN)
    if not before:
        share(changed)
    return distance(changed(given), expected), plans(changed)[0].sites[0].heads


def offloaded(rank: int) -> dict[str, float]:
    torch.set_grad_enabled(False)
    expected, found = of_first(rank, lambda: run(transform(wan(), ALL, **PLAIN))), {}
    for kind, before in (("block_level", True), ("leaf_level", False)):
        model = wan()
        options: dict[str, Any] = {"onload_device": CPU, "offload_device": CPU, "offload_type": kind}
        if kind == "block_level":
            options["num_blocks_per_group"] = 1
        if before:
            model.enable_group_offload(**options)
            context_parallel(model, ulysses_degree=2)
        changed = transform(model, ALL, **PLAIN)
        if not before:
            changed.enable_group_offload(**options)
            context_parallel(changed, ulysses_degree=2)
        found[f"{kind} {before}"] = distance(run(changed), expected)
    return found


def mapped(rank: int, before: bool) -> str:
    from accelerate import dispatch_model

    model = wan()
    parts = [name for name, _ in model.named_children() if name != "blocks"]
    places: dict[str, Any] = dict.fromkeys([*parts, "blocks.1", "scale_shift_table"], "cpu") | {"blocks.0": "disk"}

    def spread(one: Any) -> Any:
        return dispatch_model(one, places, main_device="cpu", offload_dir=tempfile.mkdtemp())

    changed = transform(spread(model) if before else model, ALL, **PLAIN)
    try:
        run(changed if before else spread(changed))
    except CaptureError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("ways", [WAYS, slow(OTHER_WAYS)], ids=["default", "other"])
def test_fsdp_of_blocks_and_root_in_both_orders(ways: tuple[tuple[bool, bool, bool], ...]) -> None:
    for found in on_ranks(sharded, 2, ways):
        assert len(found) == len(ways)
        for name, (away, rewritten, kind, planned) in found.items():
            assert away <= 1e-5, name
            assert (rewritten, kind, planned) == (2, "DTensor", 2), name


def test_tensor_parallel_in_both_orders() -> None:
    for before in (True, False):
        for away, heads in on_ranks(tensor_parallel, 2, before):
            assert away <= 1e-5
            assert heads == 2, "each rank has its own heads"


def test_group_offload_in_both_orders() -> None:
    for found in on_ranks(offloaded, 2):
        assert len(found) == 2 and max(found.values()) <= 1e-5, found


@pytest.mark.slow
def test_a_map_over_devices_is_refused() -> None:
    for before in (True, False):
        for said in on_ranks(mapped, 2, before):
            assert "device_map spreads its modules over cpu, disk" in said
