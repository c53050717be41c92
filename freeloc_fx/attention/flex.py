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
from .block_mask import BLOCK, Block, block_mask
from .heads import heads_at_a_time
from .softmax import attend, merge
from .spec import AttentionSpec, Cache
from .text import split, valid_keys
from .tile_schedule import Column, take_columns

__all__ = ["flex", "group_size"]

log = logging.getLogger("freeloc_fx.attention")

_NO_STRIPE = np.ones((1, 1), bool)
RECOMPILE_LIMIT = 512
"""Each shape of a band compiles once; beyond Dynamo's default of 8 it would silently run uncompiled."""

_cuts = Cache(64)
_masks = Cache(256)
_stripes = Cache(8)
_decays = Cache(64)
_compiled: dict[bool, Callable[..., Any]] = {}

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
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * spec.strategy.temperature
    valid = valid_keys(key_mask, q.shape[0], spec.grid)
    heads = q.shape[1]
    size = group_size(spec, heads, q.dtype)
    if size == heads:  # its output is the output, without another copy
        return _group(q, k, v, spec, slice(0, heads), scale, valid, block)
    result = q.new_empty(q.shape)
    for first in range(0, heads, size):
        group = slice(first, min(first + size, heads))
        result[:, group] = _group(q[:, group], k[:, group], v[:, group], spec, group, scale, valid, block)
    return result


def group_size(spec: AttentionSpec, heads: int, dtype: torch.dtype) -> int:
    """How many of `heads` heads run at a time, such that memory beyond q, k, v of `dtype` (the output included) stays
    below twice theirs."""
    cut = _cuts.get(spec, lambda: _cut(spec))
    wide = 4 / dtype.itemsize  # a float32 copy, in tensors of q's size
    turning = 2.5 * wide * 2 * len(spec.rope.first) / spec.rope.head_dim  # temporaries of `rotate`
    parts = 2.0 + (3 if spec.frequency_change() is not None else 0)  # rows, keys; q, k as if built otherwise, a copy
    if _is_single(cut, spec):
        return heads_at_a_time(heads, parts + 1 + max(1.0, turning))  # v, and the output or what turns the keys
    merging = 1 + (wide if wide > 1 else 0)  # a band's output, and the same in float32
    return heads_at_a_time(heads, parts + 1 + wide + max(merging, turning))  # v and the running sum


def _group(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    group: slice,
    scale: float,
    valid: torch.Tensor | None,
    block: Block,
) -> torch.Tensor:
    """`flex` of the heads in `group`, which q, k and v hold. scale: temperature included. valid: text keys that count,
    bool (batch, text)."""
    grid = spec.grid
    (qf, q_text), (kf, k_text), (vf, v_text) = (split(x, grid) for x in (q, k, v))
    rope, change = spec.effective_rope.of_heads(group), spec.frequency_change()
    if change is not None:
        index = np.arange(grid.frames, dtype=np.float64)
        qf, kf = _turn(qf, index, change.of_heads(group)), _turn(kf, index, change.of_heads(group))
    columns, bands = cut = _cuts.get(spec, lambda: _cut(spec))
    if _is_single(cut, spec):
        return _single(qf, kf, vf, spec, rope, bands[0], scale, block)
    total, norm = _merged(qf, kf, vf, spec, rope, bands, scale, block)
    turn = spec.text_turn()
    for column in columns:
        rows, keys, values = _turn(qf, column.turn, rope), kf[:, :, column.frames], vf[:, :, column.frames]
        out, lse = attend(rows.flatten(2, 3), keys.flatten(2, 3), values.flatten(2, 3), None, scale)
        merge(total, norm, out.unflatten(2, total.shape[2:4]), lse.float().unflatten(2, total.shape[2:4]))
    if not grid.text:
        return total.flatten(2, 3).to(q.dtype)
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


def _is_single(cut: tuple[list[Column], list[SpecBand]], spec: AttentionSpec) -> bool:
    """Whether one call is all, so that nothing merges."""
    columns, bands = cut
    return len(bands) == 1 and not columns and not spec.grid.text


def _single(
    qf: torch.Tensor,
    kf: torch.Tensor,
    vf: torch.Tensor,
    spec: AttentionSpec,
    rope: RopeLayout,
    band: SpecBand,
    scale: float,
    block: Block,
) -> torch.Tensor:
    """One band is one call, with nothing to merge."""
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
    rope: RopeLayout,
    bands: list[SpecBand],
    scale: float,
    block: Block,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bands one after the other, merged by log-sum-exp: float32 output and log-sum-exp by frame and token."""
    n = spec.grid.tokens
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
            merge(total[:, :, band.rows], norm[:, :, band.rows], out.nan_to_num_(), lse)
            del rows, keys, out  # before the next band's are made
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
