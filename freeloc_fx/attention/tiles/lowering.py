"""The lowering `tiles`: long attention in one C++ kernel for CPU.

How it works: `tile_kernel.cpp` goes through the visible pairs of latent frames once, with an online softmax. A tile is
16 or 32 consecutive query rows of one latent frame (or of the text); it turns its own queries to their remapped
distance from each key frame, so that no key is ever turned or stored a second time.

When it is chosen: "auto" takes it everywhere but on CUDA, unless `calls` was measured to be clearly quicker (see
`attention.quickest`). Where the kernel cannot be built, on other devices and for
other dtypes than float32 and bfloat16, the same attention runs as `calls`, which takes two to three times as long where
frames are small. `engine` says which it is and why, and logs it once.

What it costs: arithmetic in proportion to the visible pairs: in float32, or for bfloat16 in products of bfloat16 with
float32 sums where the processor is faster at those (AMX, an EPYC's AVX-512 BF16; see `kernel.gain`). Memory beyond q,
k, v and the output is less than two megabytes a thread, whatever the length. The first attention of a process may
compile the kernel, a few seconds.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache

import torch

from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.calls.lowering import calls
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.text import valid_keys, video_span
from freeloc_fx.method.spec import AttentionSpec

from . import kernel
from .spans import Spans, make_spans

__all__ = ["engine", "known_spans", "tiles"]


_log = logging.getLogger(__name__)


known_spans = Cache(64)
"""Spec -> its tables. Bounded, and decides nothing about results: tables that are not there are made again."""


_KERNEL_DTYPES = (torch.float32, torch.bfloat16)


@lru_cache(32)
def engine(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """How `tiles` runs there.

    The answer is kept for the process: a build that failed is not tried again until the process ends, so that a missing
    compiler costs one attempt and not one for each attention.

    Args:
        device: of q, k and v.
        dtype: of q, k and v.

    Returns:
        ("kernel", "") or ("calls", why not the kernel).
    """
    if device.type != "cpu":
        name, reason = "calls", f"the kernel is for CPU, found {device}"
    elif dtype not in _KERNEL_DTYPES:
        name, reason = "calls", f"the kernel takes float32 and bfloat16, found {dtype}"
    else:
        try:
            kernel.load()
        except OSError as error:
            name, reason = "calls", f"the kernel could not be built: {error}"
        else:
            name, reason = "kernel", ""
    if reason:
        _log.warning("long attention in tiles runs as SDPA calls, which are slower: %s", reason)
    else:
        _log.info("long attention in tiles runs as one C++ kernel")
    return name, reason


def tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a long attention in tiles, or as `calls` where the kernel cannot (see `engine`).

    Args:
        q: (batch, heads, tokens, head_dim), floating point, already rotated by the model's RoPE.
        k: as q.
        v: as q.
        spec: the strategy, grid and RoPE.
        scale: factor on q k; None for 1 / sqrt(head_dim). The strategy's temperature multiplies it.
        key_mask: the model's padding mask, see `text.valid_keys`; None for none.

    Returns:
        (batch, heads, tokens, head_dim) in q's dtype, tokens before heads in memory.

    Raises:
        CaptureError: a key mask that is no padding of text, see `text.valid_keys`.
        MemoryError: the kernel got no memory or no threads.
    """
    if engine(q.device, q.dtype)[0] == "calls":
        alone = calls if spec.grid.of_one_size else reference  # which takes frames of any size, slowly
        return alone(q, k, v, spec, scale, key_mask)
    batch, heads, length, dim = q.shape
    tables: Spans = known_spans.get(spec, lambda: make_spans(spec))
    text = valid_keys(key_mask, batch, spec.grid)
    valid = None
    if text is not None:
        valid = torch.ones(batch, length, dtype=torch.uint8)
        first, span = spec.grid.text_first, video_span(spec.grid)
        valid[:, :first], valid[:, span.stop :] = text[:, :first], text[:, first:]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    scale = (1 / math.sqrt(dim) if scale is None else scale) * spec.strategy.temperature
    kernel.launch(q, k, v, out, tables, scale, valid)
    return out
