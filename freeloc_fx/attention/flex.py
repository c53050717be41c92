"""Long attention on FlexAttention: one compiled call a band, block masks built from frame intervals.

The default on CUDA. A band (see `bands`) is one rotated q, one rotated k and a BlockMask; full blocks carry no mask
function. Several bands merge by float32 log-sum-exp. torch 2.13 cannot compile the log-sum-exp on CPU, so there a
strategy of more than one band runs uncompiled (said once by a warning) and is meant for checking only.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from ..rope import rotate
from ..visibility import FULL, NONE, STRIPE
from .bands import SpecBand, spec_bands
from .spec import AttentionSpec, Cache

__all__ = ["block_mask", "flex"]

log = logging.getLogger("freeloc_fx.attention")

BLOCK = 128
RECOMPILE_LIMIT = 512
"""Each shape of a band compiles once; beyond Dynamo's default of 8 it would silently run uncompiled."""

_bands = Cache(64)
_masks = Cache(64)
_compiled: dict[bool, Callable[..., Any]] = {}


def _fragments(frames: int, n: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut a sequence of frames at block and frame boundaries: (block, frame, first token, end token) of each piece."""
    length = frames * n
    cuts = np.unique(np.concatenate([np.arange(0, length, block), np.arange(0, length, n), [length]]))
    start, end = cuts[:-1], cuts[1:]
    frame = start // n
    return start // block, frame, start - frame * n, end - frame * n


def _blocks(levels: np.ndarray, stripe: np.ndarray, n: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(any, all) visible for every pair of blocks, bool (query blocks, key blocks); padding beyond the end is not
    visible.

    Work is (blocks + frames)^2, never tokens^2: a piece of one frame sees a piece of another fully, by its corner of
    the stripe mask's summed-area table, or not.
    """
    qb, qf, q0, q1 = _fragments(levels.shape[0], n, block)
    kb, kf, k0, k1 = _fragments(levels.shape[1], n, block)
    level = levels[qf[:, None], kf[None, :]]
    some, every = level == FULL, level == FULL
    if (level == STRIPE).any():
        table = np.zeros((n + 1, n + 1), np.int64)
        table[1:, 1:] = stripe.cumsum(0).cumsum(1)
        count = table[q1[:, None], k1] - table[q0[:, None], k1] - table[q1[:, None], k0] + table[q0[:, None], k0]
        area = (q1 - q0)[:, None] * (k1 - k0)[None]
        some |= (level == STRIPE) & (count > 0)
        every |= (level == STRIPE) & (count == area)
    q_edges = np.flatnonzero(np.diff(qb, prepend=-1))
    k_edges = np.flatnonzero(np.diff(kb, prepend=-1))
    some = np.logical_or.reduceat(np.logical_or.reduceat(some, q_edges, 0), k_edges, 1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(every, q_edges, 0), k_edges, 1)
    if levels.shape[0] * n % block:
        every[-1] = False
    if levels.shape[1] * n % block:
        every[:, -1] = False
    return some, every


def _ordered(blocks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """FlexAttention's form of a bool table: (count per row, column indices with the True ones first)."""
    count = blocks.sum(1).astype(np.int32)
    index = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(count)[None, None], torch.from_numpy(index)[None, None]


def block_mask(
    levels: np.ndarray, stripe: np.ndarray, n: int, device: torch.device | str = "cpu", block: int = BLOCK
) -> BlockMask:
    """BlockMask of frame-level visibility, built without looking at pairs of tokens.

    Args:
        levels: int8 (query frames, key frames). stripe: bool (n, n), what STRIPE lets a token see. n: tokens a frame.

    Returns: the same blocks as `create_block_mask` on the token-level mask function.
    """
    some, every = _blocks(levels, stripe, n, block)
    partial_count, partial_index = _ordered(some & ~every)
    full_count, full_index = _ordered(every)
    level_table = torch.from_numpy(levels.astype(np.int8)).to(device)
    stripe_table = torch.from_numpy(np.ascontiguousarray(stripe)).to(device)

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        level = level_table[q // n, k // n]
        return (level == FULL) | ((level == STRIPE) & stripe_table[q % n, k % n])

    return BlockMask.from_kv_blocks(
        partial_count.to(device),
        partial_index.to(device),
        full_count.to(device),
        full_index.to(device),
        BLOCK_SIZE=(block, block),
        mask_mod=visible,
        seq_lengths=(levels.shape[0] * n, levels.shape[1] * n),
    )


def _call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask | None, scale: float) -> torch.Tensor:
    result: torch.Tensor = flex_attention(q, k, v, block_mask=mask, scale=scale)
    return result


def _call_lse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, aux = flex_attention(q, k, v, block_mask=mask, scale=scale, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


def _compile(lse: bool) -> Callable[..., Any]:
    if lse not in _compiled:
        _compiled[lse] = torch.compile(_call_lse if lse else _call, fullgraph=True, dynamic=False)
    return _compiled[lse]


def _mask(spec: AttentionSpec, index: int, band: SpecBand, device: torch.device) -> BlockMask | None:
    if (band.levels == FULL).all():
        return None

    def build() -> BlockMask:
        stripe = spec.strategy.visibility.stripe(spec.grid.height, spec.grid.width)
        return block_mask(band.levels, stripe, spec.grid.tokens, device)

    return _masks.get((spec, index, device), build)


def _turn(x: torch.Tensor, turn: np.ndarray | None, spec: AttentionSpec) -> torch.Tensor:
    """Rotate (batch, heads, frames, tokens, head_dim)."""
    if turn is None:
        return x
    return rotate(x, spec.rope, *spec.rotation(turn, x.device, torch.float32))


def flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, scale: float | None = None
) -> torch.Tensor:
    """Same contract as `reference`.

    Raises:
        ValueError: head_dim below 16 on CUDA, which FlexAttention does not support.
    """
    if q.device.type == "cuda" and q.shape[-1] < 16:
        raise ValueError(f"flex: expected head_dim >= 16 on CUDA, found {q.shape[-1]}; use attention='tiles'")
    frames, n = spec.grid.frames, spec.grid.tokens
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * spec.strategy.temperature
    bands = _bands.get(spec, lambda: spec_bands(spec))
    merge = len(bands) > 1
    compiled = not (merge and q.device.type == "cpu")
    if not compiled:
        _say_uncompiled(spec.strategy.name)
    call: Callable[..., Any] = _compile(merge) if compiled else _call_lse
    qf, kf = q.unflatten(2, (frames, n)), k.unflatten(2, (frames, n))
    v = v.contiguous()
    if not merge:
        band = bands[0]
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True):
            rows = _turn(qf[:, :, band.rows], band.query_turn, spec).flatten(2, 3).contiguous()
            keys = _turn(kf, band.key_turn, spec).flatten(2, 3).contiguous()
            result: torch.Tensor = call(rows, keys, v, _mask(spec, 0, band, q.device), scale)
            return result
    total = torch.zeros(qf.shape, device=q.device, dtype=torch.float32)
    norm = torch.full(qf.shape[:-1], float("-inf"), device=q.device, dtype=torch.float32)
    with (
        warnings.catch_warnings(),
        torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True),
    ):
        if not compiled:
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        for index, band in enumerate(bands):
            rows = _turn(qf[:, :, band.rows], band.query_turn, spec).flatten(2, 3).contiguous()
            keys = _turn(kf, band.key_turn, spec).flatten(2, 3).contiguous()
            out, lse = call(rows, keys, v, _mask(spec, index, band, q.device), scale)
            count = band.levels.shape[0]
            out, lse = out.unflatten(2, (count, n)).float(), lse.unflatten(2, (count, n)).float()
            seen = torch.from_numpy((band.levels != NONE).any(1)).to(q.device)[:, None]
            lse = torch.where(seen, lse, float("-inf"))
            share = torch.where(seen, torch.sigmoid(lse - norm[:, :, band.rows]), 0.0)[..., None]
            total[:, :, band.rows] = torch.lerp(total[:, :, band.rows], torch.nan_to_num(out), share)
            norm[:, :, band.rows] = torch.logaddexp(norm[:, :, band.rows], lse)
    return total.flatten(2, 3).to(q.dtype)


_said: set[str] = set()


def _say_uncompiled(name: str) -> None:
    if name not in _said:
        _said.add(name)
        warnings.warn(
            f"attention='flex' with strategy {name!r} on CPU merges bands by log-sum-exp, which torch cannot compile "
            "for CPU: running FlexAttention uncompiled, with dense memory. Use attention='tiles' on CPU.",
            stacklevel=3,
        )
