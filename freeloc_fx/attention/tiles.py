"""Long attention in tiles of frames: work = visible pairs. The default on CPU.

On a CPU one C++ kernel (`tile_kernel.cpp`) goes through the visible pairs of frames once. Where it cannot be built, on
other devices and for other dtypes the same pairs are a few scaled_dot_product_attention calls (`calls`), which take two
to three times as long where frames are small. `engine` says which it is and why; the choice is logged once.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache

import torch

from . import kernel
from .calls import calls
from .spans import Spans, make_spans
from .spec import AttentionSpec, Cache
from .text import valid_keys, video_span

__all__ = ["engine", "tiles"]

_log = logging.getLogger(__name__)
_spans = Cache(64)
_KERNEL_DTYPES = (torch.float32, torch.bfloat16)


@lru_cache(32)
def engine(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """How `tiles` runs there: ("kernel", "") or ("calls", why not the kernel)."""
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
    """Same contract as `reference`, arithmetic in float32.

    Memory beyond q, k, v and the output: a few hundred kilobytes a thread, whatever the length.
    """
    if engine(q.device, q.dtype)[0] == "calls":
        return calls(q, k, v, spec, scale, key_mask)
    batch, heads, length, dim = q.shape
    tables: Spans = _spans.get(spec, lambda: make_spans(spec))
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
