"""What long attention costs, counted or measured: blocks of its block masks, and bytes allocated while it runs.

Used by `freeloc bench` and by the scripts in bench/.
"""

from __future__ import annotations

import math
import os
import time
import tracemalloc
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from freeloc_fx.attention.flex.block_mask import Block, block_states
from freeloc_fx.attention.flex.calls import call_levels, flex_calls
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.attention.flex.site import describe_site
from freeloc_fx.attention.flex.tables import masks
from freeloc_fx.method.build import build
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import NONE

__all__ = ["MaskBlocks", "count_blocks", "make_spec", "mask_cost", "peak_bytes", "wan_rope"]


TRAINED = 21
"""Latent frames of 81 video frames, what Wan was trained on."""


def wan_rope(dim: int) -> RopeLayout:
    """Wan's temporal channels: what the spatial axes leave of head_dim, theta 1e4, interleaved.

    Args:
        dim: head_dim.

    Returns:
        The layout, one row of frequencies for all heads.
    """
    pairs = (dim - 4 * (dim // 6)) // 2
    omega = tuple(float(1e4 ** (-p / pairs)) for p in range(pairs))
    return RopeLayout(dim, tuple(range(0, 2 * pairs, 2)), tuple(range(1, 2 * pairs, 2)), (omega,))


def make_spec(
    strategy: str, extension: int, height: int, width: int, dim: int = 128, text: int = 0, trained: int = TRAINED
) -> AttentionSpec:
    """The spec of a strategy at `extension` times the trained length, its settings solved.

    Args:
        strategy: its name.
        extension: how many times the trained length.
        height: tokens of a latent frame from top to bottom.
        width: tokens of a latent frame from left to right.
        dim: head_dim.
        text: joint text tokens after the video.
        trained: latent frames of the trained length.

    Returns:
        The spec, with Wan's RoPE.
    """
    frames = extension * (trained - 1) + 1
    made = build(strategy, Geometry(trained, frames, height, width))
    return AttentionSpec(made, TokenGrid(frames, height, width, text_last=text), wan_rope(dim))


@dataclass(frozen=True)
class MaskBlocks:
    """Blocks of query tokens by key tokens that FlexAttention computes, over all calls that a layer makes.

    Args:
        full: blocks computed without the mask function.
        partial: blocks computed with the mask function.
        dense: blocks of one call over the whole sequence.
        calls: calls of FlexAttention.
        rows: query tokens over all calls, each as often as it has versions.
        area: token pairs in the computed blocks, without what reaches beyond the end of the sequence.
    """

    full: int
    partial: int
    dense: int
    calls: int
    rows: int
    area: int

    @property
    def empty(self) -> int:
        """Blocks of one dense call that are not computed; below 0 where several calls compute a block twice."""
        return self.dense - self.full - self.partial


def count_blocks(spec: AttentionSpec, block: Block = 128) -> MaskBlocks:
    """Count what `flex` computes for the video tokens of one head, as its block masks would say.

    Args:
        spec: the strategy, grid and RoPE.
        block: tokens of a query and of a key block, or one number for both.

    Returns:
        The counts, made without building the masks.
    """
    height, width = (block, block) if isinstance(block, int) else block
    n, frames = spec.grid.tokens, spec.grid.frames
    stripe = spec.strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    # Rows of query frames whose tokens fill whole blocks, so that no block is cut and no table is large.
    step = height // math.gcd(height, n)
    step *= max(1, 32 // step)
    full = partial = rows = area = calls = 0
    last = frames * n - (math.ceil(frames * n / width) - 1) * width
    for call in flex_calls(spec):
        tables = call_levels(spec, call)[:, :frames, :frames]
        if (tables == NONE).all():  # text alone
            continue
        calls += 1
        rows += len(tables) * frames * n
        for first in range(0, frames, step):
            for levels in tables[:, first : first + step]:
                if call.dense:  # no mask: every block is computed without one
                    some = every = np.ones((math.ceil(len(levels) * n / height), math.ceil(frames * n / width)), bool)
                else:
                    some, every = block_states(levels, stripe, n, n, (height, width))
                full += int(every.sum())
                partial += int((some & ~every).sum())
                tall = np.full(len(some), height)
                tall[-1] = len(levels) * n - (len(some) - 1) * height
                wide = np.full(some.shape[1], width)
                wide[-1] = last
                area += int(tall @ (some.astype(np.int64) @ wide))
    dense = math.ceil(frames * n / height) * math.ceil(frames * n / width)
    return MaskBlocks(full, partial, dense, calls, rows, area)


def mask_cost(spec: AttentionSpec, block: Block = 128, runs: int = 3) -> tuple[float, int]:
    """Measure what it costs to build the block masks of one layer.

    Args:
        spec: the strategy, grid and RoPE.
        block: tokens of a query and of a key block, or one number for both.
        runs: how often to build them; the quickest counts.

    Returns:
        Seconds of this thread, and the most bytes that were allocated at once.
    """
    stripe = spec.strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    shape = (1, 1, spec.grid.sequence, spec.rope.head_dim)
    site = describe_site(spec, shape, torch.bfloat16, options=FlexOptions(block=block))
    calls = [call for call in flex_calls(spec) if not call.dense]

    def make() -> list[Any]:
        return [masks(site, spec, call, stripe) for call in calls]

    seconds = []
    for _ in range(runs):
        started = time.thread_time()
        make()
        seconds.append(time.thread_time() - started)
    tracemalloc.start()  # torch.from_numpy shares numpy's memory, which it sees
    try:
        kept = make()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del kept
    return min(seconds), peak


def peak_bytes(run: Callable[[], Any], device: torch.device | str = "cpu", apart: Collection[str] = ()) -> int:
    """Measure the most bytes that were allocated at once while something ran, beyond what was allocated before it.

    On CPU every allocation and release of torch's allocator is recorded by the profiler, buffers inside kernels
    included; on CUDA the allocator's own peak counts.

    Args:
        run: what to measure; what it returns counts.
        device: where it runs.
        apart: names of operations, as torch's profiler spells them, whose scratch is left out, on CPU only: what such
            an operation has allocated and released again when it returns is its own, and what it returns counts. How
            much scratch torch's attention takes differs between processors.

    Returns:
        Bytes.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del result
        return int(peak)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch 2.13's profiler prints when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    events: Any = profile.profiler
    changes: list[tuple[int, int, int]] = []  # when, bytes, operations apart that begin (1) or end (-1)
    for event in events.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            changes.append((event.start_ns(), event.nbytes(), 0))
        elif event.name() in apart:
            changes += [(event.start_ns(), 0, 1), (event.end_ns(), 0, -1)]
    live = peak = inside = 0
    for _, size, bound in sorted(changes, key=lambda change: change[0]):
        live += size
        inside += bound
        if not inside:
            peak = max(peak, live)
    return peak
