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

from ..meta import RopeLayout
from ..positions import Identity
from ..rope import angles, rotate
from ..visibility import FULL, NONE, STRIPE
from .bands import SpecBand, spec_bands
from .softmax import attend, merge
from .spec import AttentionSpec, Cache
from .text import split, valid_keys
from .tile_schedule import Column, take_columns

__all__ = ["Block", "block_mask", "flex", "tile_states"]

log = logging.getLogger("freeloc_fx.attention")

BLOCK = 128
Block = int | tuple[int, int]
"""Tokens of a query and of a key block, or one number for both."""
_NO_STRIPE = np.ones((1, 1), bool)
RECOMPILE_LIMIT = 512
"""Each shape of a band compiles once; beyond Dynamo's default of 8 it would silently run uncompiled."""

_cuts = Cache(64)
_masks = Cache(256)
_stripes = Cache(8)
_decays = Cache(64)
_compiled: dict[bool, Callable[..., Any]] = {}


def _fragments(frames: int, n: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut a sequence of frames at block and frame boundaries: (block, frame, first token, end token) of each piece."""
    length = frames * n
    cuts = np.unique(np.concatenate([np.arange(0, length, block), np.arange(0, length, n), [length]]))
    start, end = cuts[:-1], cuts[1:]
    frame = start // n
    return start // block, frame, start - frame * n, end - frame * n


def _intervals(first: np.ndarray, end: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct intervals among pieces of frames: their first and end tokens, and which one each piece is."""
    code, which = np.unique(first * (n + 1) + end, return_inverse=True)
    return code // (n + 1), code % (n + 1), which.reshape(-1)


def _stripe_states(
    stripe: np.ndarray, q0: np.ndarray, q1: np.ndarray, k0: np.ndarray, k1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(any, all) of `stripe` over [q0, q1) x [k0, k1), bool (query intervals, key intervals)."""
    rows, keys = (np.unique(np.concatenate([a, b])) for a, b in ((q0, q1), (k0, k1)))
    # A summed-area table over the cuts alone: pieces begin and end at few places of a frame.
    inner = stripe[rows[0] : rows[-1], keys[0] : keys[-1]].view(np.uint8)
    cells = np.add.reduceat(inner, rows[:-1] - rows[0], 0, dtype=np.int32)
    cells = np.add.reduceat(cells, keys[:-1] - keys[0], 1)
    table = np.zeros((len(rows), len(keys)), np.int64)
    table[1:, 1:] = cells.cumsum(0).cumsum(1)
    part = table[np.searchsorted(rows, q1)] - table[np.searchsorted(rows, q0)]
    count = part[:, np.searchsorted(keys, k1)] - part[:, np.searchsorted(keys, k0)]
    return count > 0, count == (q1 - q0)[:, None] * (k1 - k0)[None]


def _joined(pieces: np.ndarray, blocks: np.ndarray, how: np.ufunc) -> np.ndarray:
    """`how` over the rows of `pieces` that lie in one block; `blocks` (rows,) ascending without gaps."""
    edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=blocks[-1] + 1))
    first, last = edges[:-1], edges[1:] - 1
    result: np.ndarray = pieces[first]
    for offset in range(1, int((last - first).max()) + 1):  # once, where blocks are no longer than frames
        how(result, pieces[np.minimum(first + offset, last)], out=result)
    return result


def tile_states(
    levels: np.ndarray, stripe: np.ndarray, n: int, block: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(any, all) visible for every pair of blocks, bool (query blocks, key blocks); padding beyond the end is not
    visible. Arguments as in `block_mask`.

    Work is (blocks + frames)^2, never tokens^2: a piece of one frame sees a piece of another fully, or as the stripe
    mask says for the two places in a frame, or not.
    """
    qb, qf, q0, q1 = _fragments(levels.shape[0], n, block[0])
    kb, kf, k0, k1 = _fragments(levels.shape[1], n, block[1])
    table = levels[qf][:, kf]
    some = table == FULL
    every = some
    near = table == STRIPE
    if near.any():
        q0, q1, rows = _intervals(q0, q1, n)
        k0, k1, keys = _intervals(k0, k1, n)
        touched, covered = _stripe_states(stripe, q0, q1, k0, k1)
        some, every = some | (near & touched[rows][:, keys]), some | (near & covered[rows][:, keys])
    some = _joined(_joined(some, qb, np.logical_or).T, kb, np.logical_or).T
    every = _joined(_joined(every, qb, np.logical_and).T, kb, np.logical_and).T
    if levels.shape[0] * n % block[0]:
        every[-1] = False
    if levels.shape[1] * n % block[1]:
        every[:, -1] = False
    return some, every


def _ordered(blocks: np.ndarray, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """FlexAttention's form of a bool table: (count per row, column indices with the True ones first), int32."""
    columns = np.broadcast_to(np.arange(blocks.shape[1], dtype=np.int32), blocks.shape)
    count = blocks.sum(1, dtype=np.int32)
    index = np.empty(blocks.shape, np.int32)
    first = columns < count[:, None]
    index[first] = columns[blocks]  # row by row on both sides
    index[~first] = columns[~blocks]
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(index)[None, None].to(device)


def block_mask(
    levels: np.ndarray,
    stripe: np.ndarray,
    n: int,
    device: torch.device | str = "cpu",
    block: Block = BLOCK,
    stripe_table: torch.Tensor | None = None,
) -> BlockMask:
    """BlockMask of frame-level visibility, built without looking at pairs of tokens.

    Args:
        levels: int8 (query frames, key frames). stripe: bool (n, n), what STRIPE lets a token see. n: tokens a frame.
        block: tokens of a query and of a key block, or one number for both. stripe_table: `stripe` on the device, where
            several masks share one.

    Returns: the same blocks as `create_block_mask` on the token-level mask function.
    """
    size = (block, block) if isinstance(block, int) else block
    some, every = tile_states(levels, stripe, n, size)
    partial = some & ~every
    kv_count, kv_index = _ordered(partial, device)
    full_kv_count, full_kv_index = _ordered(every, device)
    q_count, q_index = _ordered(partial.T, device)
    full_q_count, full_q_index = _ordered(every.T, device)
    level_table = torch.from_numpy(levels.astype(np.int8)).to(device)
    striped = bool((levels == STRIPE).any())
    near = stripe_table
    if near is None:
        near = torch.from_numpy(np.ascontiguousarray(stripe)).to(device) if striped else level_table

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return level_table[q // n, k // n] == FULL

    def visible_striped(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        level = level_table[q // n, k // n]
        return (level == FULL) | ((level == STRIPE) & near[q % n, k % n])

    return BlockMask(
        seq_lengths=(levels.shape[0] * n, levels.shape[1] * n),
        kv_num_blocks=kv_count,
        kv_indices=kv_index,
        full_kv_num_blocks=full_kv_count,
        full_kv_indices=full_kv_index,
        q_num_blocks=q_count,
        q_indices=q_index,
        full_q_num_blocks=full_q_count,
        full_q_indices=full_q_index,
        BLOCK_SIZE=size,
        mask_mod=visible_striped if striped else visible,
    )


ScoreMod = Callable[..., torch.Tensor]


def _call(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask | None, scale: float, score: ScoreMod | None
) -> torch.Tensor:
    result: torch.Tensor = flex_attention(q, k, v, score_mod=score, block_mask=mask, scale=scale)
    return result


def _call_lse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask | None, scale: float, score: ScoreMod | None
) -> tuple[torch.Tensor, torch.Tensor]:
    out, aux = flex_attention(q, k, v, score_mod=score, block_mask=mask, scale=scale, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


def _compile(lse: bool) -> Callable[..., Any]:
    if lse not in _compiled:
        _compiled[lse] = torch.compile(_call_lse if lse else _call, fullgraph=True, dynamic=False)
    return _compiled[lse]


def _mask(spec: AttentionSpec, index: int, band: SpecBand, device: torch.device, block: Block) -> BlockMask | None:
    if (band.levels == FULL).all():
        return None
    height, width = spec.grid.height, spec.grid.width

    def stripes() -> tuple[np.ndarray, torch.Tensor]:
        stripe = np.ascontiguousarray(spec.strategy.visibility.stripe(height, width))
        return stripe, torch.from_numpy(stripe).to(device)

    def build() -> BlockMask:
        if not (band.levels == STRIPE).any():
            return block_mask(band.levels, _NO_STRIPE, spec.grid.tokens, device, block)
        # One table for all bands of a strategy: it is tokens x tokens.
        stripe, table = _stripes.get((spec.strategy.visibility, height, width, device), stripes)
        return block_mask(band.levels, stripe, spec.grid.tokens, device, block, table)

    return _masks.get((spec, index, device, block), build)


def _decay(spec: AttentionSpec, index: int, band: SpecBand, device: torch.device) -> ScoreMod | None:
    """The strategy's decay of positive scores; None for none."""
    rule = spec.strategy.decay
    if rule is None:
        return None

    def build() -> ScoreMod:
        table = torch.from_numpy(rule.table(spec.grid.frames)[band.rows]).to(device, torch.float32)
        n = spec.grid.tokens

        def decayed(
            score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor
        ) -> torch.Tensor:
            return torch.where(score > 0, score * table[q // n, k // n], score)

        return decayed

    return _decays.get((spec, index, device), build)


def _turn(x: torch.Tensor, turn: np.ndarray | None, layout: RopeLayout) -> torch.Tensor:
    """Rotate (batch, heads, frames, tokens, head_dim) by latent frames, in float32."""
    if turn is None:
        return x
    cos, sin = (t[:, :, None].to(x.device, torch.float32) for t in angles(layout, turn))
    return rotate(x, layout, cos, sin)


def flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    block: Block = BLOCK,
) -> torch.Tensor:
    """Same contract as `reference`. block: of the block masks; see bench/block_masks.py.

    Raises:
        ValueError: head_dim below 16 on CUDA, which FlexAttention does not support.
    """
    if q.device.type == "cuda" and q.shape[-1] < 16:
        raise ValueError(f"flex: expected head_dim >= 16 on CUDA, found {q.shape[-1]}; use attention='tiles'")
    grid = spec.grid
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * spec.strategy.temperature
    (qf, q_text), (kf, k_text), (vf, v_text) = (split(x, grid) for x in (q, k, v))
    change = spec.frequency_change()
    if change is not None:
        index = np.arange(grid.frames, dtype=np.float64)
        qf, kf = _turn(qf, index, change), _turn(kf, index, change)
    columns, bands = _cuts.get(spec, lambda: _cut(spec))
    if len(bands) == 1 and not columns and not grid.text:
        return _single(qf, kf, vf, spec, bands[0], scale, block)
    total, norm = _merged(qf, kf, vf, spec, bands, scale, block)
    rope, turn = spec.effective_rope, spec.text_turn()
    for column in columns:
        rows, keys, values = _turn(qf, column.turn, rope), kf[:, :, column.frames], vf[:, :, column.frames]
        out, lse = attend(rows.flatten(2, 3), keys.flatten(2, 3), values.flatten(2, 3), None, scale)
        merge(total, norm, out.unflatten(2, total.shape[2:4]), lse.float().unflatten(2, total.shape[2:4]))
    if not grid.text:
        return total.flatten(2, 3).to(q.dtype)
    valid = valid_keys(key_mask, q.shape[0], grid)
    bias = None
    if valid is not None:
        bias = torch.zeros(valid.shape, dtype=q.dtype, device=q.device).masked_fill_(~valid, float("-inf"))[
            :, None, None
        ]
    out, lse = attend(_turn(qf, turn, rope).flatten(2, 3), k_text, v_text, bias, scale)
    merge(total, norm, out.unflatten(2, total.shape[2:4]), lse.float().unflatten(2, total.shape[2:4]))
    text, text_norm = attend(q_text, _turn(kf, turn, rope).flatten(2, 3), vf.flatten(2, 3), None, scale)
    text, text_norm = text.float(), text_norm.float()
    out, lse = attend(q_text, k_text, v_text, bias, scale)
    merge(text, text_norm, out, lse.float())
    first = grid.text_first
    return torch.cat([text[:, :, :first], total.flatten(2, 3), text[:, :, first:]], 2).to(q.dtype)


def _cut(spec: AttentionSpec) -> tuple[list[Column], list[SpecBand]]:
    """Columns and bands. Under a position map the key frames that everybody sees would fall apart into bands of a row
    each; without one they are part of the one band."""
    levels = spec.strategy.visibility.levels(spec.grid.frames).copy()
    mapped = not isinstance(spec.strategy.positions, Identity)
    alone = mapped and spec.strategy.decay is None and not (levels == FULL).all()
    columns = take_columns(spec, levels) if alone else []
    return columns, spec_bands(spec, levels)


def _single(
    qf: torch.Tensor,
    kf: torch.Tensor,
    vf: torch.Tensor,
    spec: AttentionSpec,
    band: SpecBand,
    scale: float,
    block: Block,
) -> torch.Tensor:
    """One band is one call, with nothing to merge."""
    rope = spec.effective_rope
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True):
        rows = _turn(qf[:, :, band.rows], band.query_turn, rope).flatten(2, 3).contiguous()
        keys = _turn(kf, band.key_turn, rope).flatten(2, 3).contiguous()
        mask, score = _mask(spec, 0, band, rows.device, block), _decay(spec, 0, band, rows.device)
        result: torch.Tensor = _compile(False)(rows, keys, vf.flatten(2, 3).contiguous(), mask, scale, score)
        return result


def _merged(
    qf: torch.Tensor,
    kf: torch.Tensor,
    vf: torch.Tensor,
    spec: AttentionSpec,
    bands: list[SpecBand],
    scale: float,
    block: Block,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bands one after the other, merged by log-sum-exp: float32 output and log-sum-exp by frame and token."""
    n, rope = spec.grid.tokens, spec.effective_rope
    compiled = qf.device.type != "cpu"
    if not compiled:
        _say_uncompiled(spec.strategy.name)
    call: Callable[..., Any] = _compile(True) if compiled else _call_lse
    v = vf.flatten(2, 3).contiguous()
    total = torch.zeros(qf.shape, device=qf.device, dtype=torch.float32)
    norm = torch.full(qf.shape[:-1], float("-inf"), device=qf.device, dtype=torch.float32)
    with (
        warnings.catch_warnings(),
        torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True),
    ):
        if not compiled:
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        for index, band in enumerate(bands):
            rows = _turn(qf[:, :, band.rows], band.query_turn, rope).flatten(2, 3).contiguous()
            keys = _turn(kf, band.key_turn, rope).flatten(2, 3).contiguous()
            mask, score = _mask(spec, index, band, qf.device, block), _decay(spec, index, band, qf.device)
            out, lse = call(rows, keys, v, mask, scale, score)
            count = band.levels.shape[0]
            out, lse = out.unflatten(2, (count, n)).float(), lse.unflatten(2, (count, n)).float()
            seen = torch.from_numpy((band.levels != NONE).any(1)).to(qf.device)[:, None]
            lse = torch.where(seen, lse, float("-inf"))
            merge(total[:, :, band.rows], norm[:, :, band.rows], torch.nan_to_num(out), lse)
    return total, norm


_said: set[str] = set()


def _say_uncompiled(name: str) -> None:
    if name not in _said:
        _said.add(name)
        warnings.warn(
            f"attention='flex' with strategy {name!r} on CPU merges bands by log-sum-exp, which torch cannot compile "
            "for CPU: running FlexAttention uncompiled, with dense memory. Use attention='tiles' on CPU.",
            stacklevel=3,
        )
