"""Which lowering "auto" runs on a CPU: `tiles`, or `calls` where they are measured to be clearly quicker.

    vrpr+tsa@81x30x52 in bfloat16, 2 of 12 heads: tiles 0.31 s, calls 0.58 s: tiles

Which it is depends on the processor, on how torch was built and on the shape. Each class of attentions is measured
once, where it first runs, on as many heads as there are threads; the backend of the transformed model keeps what was
found. Outside of a transformed model nothing is kept, so nothing is measured either, nor where a sequence is short.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from freeloc_fx.method.spec import AttentionSpec

from .running import running
from .tiles.lowering import engine

__all__ = ["LEAST", "quickest"]


_log = logging.getLogger(__name__)


_RUNS = 2
"""Timed runs of each, in turn; the quicker one counts."""


_CLEARLY = 0.8
"""`calls` has to take at most this part of the time of `tiles`: chance must not decide between two that are alike,
since results of the two differ by rounding."""

LEAST = 4096
"""Tokens of the shortest sequence that is measured: of shorter ones a timing says little, and gains less."""


def quickest(
    run: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None,
    key_mask: torch.Tensor | None,
) -> str:
    """Choose the lowering of one attention.

    Args:
        run: runs a lowering by name, see `op.run`.
        q: (batch, heads, tokens, head_dim), floating point.
        k: as q.
        v: as q.
        spec: what the attention computes.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        key_mask: the model's key-padding mask.

    Returns:
        "flex" on CUDA; elsewhere "tiles" or "calls".
    """
    if q.device.type == "cuda":
        return "flex"
    known = running().choices
    if known is None or q.shape[2] < LEAST or engine(q.device, q.dtype)[0] == "calls" or not spec.grid.of_one_size:
        return "tiles"
    # A profile that follows steps has a spec for each step, which differ in numbers that no time depends on.
    kind, threads = spec.key.partition("#")[0], torch.get_num_threads()
    what = (kind, tuple(q.shape), q.dtype, threads, key_mask is None)
    if what not in known:
        heads = slice(0, min(q.shape[1], threads))
        few = replace(spec, rope=spec.rope.of_heads(heads))
        q, k, v = (x[:, heads] for x in (q, k, v))
        found: dict[str, float] = {}
        for turn in range(_RUNS + 1):
            for name in ("tiles", "calls"):
                started = time.perf_counter()
                run(name, q, k, v, few, scale, key_mask)
                if turn:  # the first makes tables
                    found[name] = min(found.get(name, float("inf")), time.perf_counter() - started)
        known[what] = "calls" if found["calls"] <= _CLEARLY * found["tiles"] else "tiles"
        _log.info(
            "%s in %s, %d of %d heads: tiles %.2g s, calls %.2g s: %s",
            *(kind, str(q.dtype).removeprefix("torch."), q.shape[1], what[1][1]),
            *(found["tiles"], found["calls"], known[what]),
        )
    return known[what]
