"""The lowering `flex`: long attention on FlexAttention, one compiled call a band.

How it works: a strategy's visible pairs fall into bands (see `bands`). A band is one turned q, one turned k and one
BlockMask, which is built from frame intervals and never from pairs of tokens; blocks that are visible as a whole carry
no mask function. Several bands merge by their log-sum-exp in float32, and so does the text of a joint model.

When it is chosen: "auto" takes it on CUDA. On CPU a strategy of one band compiles too; torch 2.13 cannot compile the
log-sum-exp there, so that a strategy of several bands runs uncompiled on CPU, with all scores in memory at once. A
warning says so. That is for checking; `tiles` is the lowering for CPU.

What it costs: arithmetic in proportion to the blocks that hold a visible pair, and one compilation for each shape of a
band. Memory beyond q, k and v, the output included, stays below twice their size, since heads run in groups; what
FlexAttention itself takes inside a call comes on top: a row of numbers where it is compiled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from freeloc_fx.attention.bands import Column, SpecBand, spec_bands, take_columns
from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.heads import heads_at_a_time
from freeloc_fx.attention.rotate import angles, rotate
from freeloc_fx.attention.softmax import attend, merge
from freeloc_fx.attention.text import split, valid_keys
from freeloc_fx.compat import dynamo_settings
from freeloc_fx.method.grid import RopeLayout
from freeloc_fx.method.positions import Identity
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import FULL, NONE, STRIPE

from .block_mask import BLOCK, Block, block_mask

__all__ = ["attend_group", "call", "call_with_lse", "compiled", "flex", "group_size"]


_NO_STRIPE = np.ones((1, 1), bool)


RECOMPILE_LIMIT = 512
"""Each shape of a band compiles once; beyond Dynamo's default of 8 it would silently run uncompiled."""


# Bounded stores, and the two compiled functions. They decide nothing about results: what is not there is made again,
# equal to what was.

_cuts = Cache(64)
"""Spec -> its columns and bands."""


_masks = Cache(256)
"""(spec, index of a band, device, block) -> BlockMask."""


_stripes = Cache(8)
"""(visibility, height, width, device) -> what STRIPE lets a token see, as an array and on the device."""


_decays = Cache(64)
"""(spec, index of a band, device) -> score function."""


_compiled: dict[tuple[bool, str], Callable[..., Any]] = {}
"""(whether the log-sum-exp is returned, backend) -> `call_with_lse` or `call`, compiled."""


ScoreMod = Callable[..., torch.Tensor]


def call(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask | None, scale: float, score: ScoreMod | None
) -> torch.Tensor:
    """FlexAttention.

    Args:
        q: (batch, heads, rows, head_dim).
        k: (batch, heads, keys, head_dim).
        v: as k.
        mask: which pairs are computed; None for all.
        scale: factor on q k.
        score: changes single scores; None for none.

    Returns:
        The result, in q's shape.
    """
    result: torch.Tensor = flex_attention(q, k, v, score_mod=score, block_mask=mask, scale=scale)
    return result


def call_with_lse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask | None, scale: float, score: ScoreMod | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """FlexAttention with the log-sum-exp.

    Args:
        q: (batch, heads, rows, head_dim).
        k: (batch, heads, keys, head_dim).
        v: as k.
        mask: which pairs are computed; None for all.
        scale: factor on q k.
        score: changes single scores; None for none.

    Returns:
        The result, in q's shape, and the log-sum-exp, float32 (batch, heads, rows).
    """
    out, aux = flex_attention(q, k, v, score_mod=score, block_mask=mask, scale=scale, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


def compiled(lse: bool, backend: str = "inductor") -> Callable[..., Any]:
    """FlexAttention as torch.compile runs it; each shape compiles when it first comes.

    Args:
        lse: `call_with_lse`, else `call`.
        backend: "inductor" for a fused kernel, "eager" for dense scores, which torch can do everywhere.

    Returns:
        The compiled function, with the arguments of the other.
    """
    if (lse, backend) not in _compiled:
        # Dense scores have no kernel of their own for each shape: what is captured may serve several.
        dynamic = None if backend == "eager" else False
        _compiled[lse, backend] = torch.compile(
            call_with_lse if lse else call, backend=backend, fullgraph=True, dynamic=dynamic
        )
    return _compiled[lse, backend]


def _mask(spec: AttentionSpec, index: int, band: SpecBand, device: torch.device, block: Block) -> BlockMask | None:
    """The block mask of a strategy's band of this index; None where everything is visible."""
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
    """The strategy's decay of positive scores, for the band of this index; None for none."""
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
    """Run a long attention on FlexAttention.

    Args:
        q: (batch, heads, tokens, head_dim), floating point, already rotated by the model's RoPE.
        k: as q.
        v: as q.
        spec: the strategy, grid and RoPE.
        scale: factor on q k; None for 1 / sqrt(head_dim). The strategy's temperature multiplies it.
        key_mask: the model's padding mask, see `text.valid_keys`; None for none.
        block: tokens of a query and of a key block of the block masks; bench/block_masks.py compares sizes.

    Returns:
        (batch, heads, tokens, head_dim) in q's dtype.

    Raises:
        CaptureError: a key mask that is no padding of text, see `text.valid_keys`.
        ValueError: head_dim below 16 on CUDA, which FlexAttention does not support.
    """
    if q.device.type == "cuda" and q.shape[-1] < 16:
        raise ValueError(f"flex: expected head_dim >= 16 on CUDA, found {q.shape[-1]}; use attention='tiles'")
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * spec.strategy.temperature
    valid = valid_keys(key_mask, q.shape[0], spec.grid)
    heads = q.shape[1]
    size = group_size(spec, heads, q.dtype)
    if size == heads:  # its output is the output, without another copy
        return attend_group(q, k, v, spec, slice(0, heads), scale, valid, block)
    result = q.new_empty(q.shape)
    for first in range(0, heads, size):
        group = slice(first, min(first + size, heads))
        result[:, group] = attend_group(q[:, group], k[:, group], v[:, group], spec, group, scale, valid, block)
    return result


def group_size(spec: AttentionSpec, heads: int, dtype: torch.dtype) -> int:
    """How many heads run at a time, such that memory beyond q, k, v (the output included) stays below twice theirs.

    Args:
        spec: the strategy, grid and RoPE.
        heads: heads of q, k and v.
        dtype: of q, k and v.

    Returns:
        Heads of a group, 1 to `heads`.
    """
    cut = _cuts.get(spec, lambda: _cut(spec))
    wide = 4 / dtype.itemsize  # a float32 copy, in tensors of q's size
    turning = 2.5 * wide * 2 * len(spec.rope.first) / spec.rope.head_dim  # temporaries of `rotate`
    parts = 2.0 + (3 if spec.frequency_change() is not None else 0)  # rows, keys; q, k as if built otherwise, a copy
    if _is_single(cut, spec):
        return heads_at_a_time(heads, parts + 1 + max(1.0, turning))  # v, and the output or what turns the keys
    merging = 1 + (wide if wide > 1 else 0)  # a band's output, and the same in float32
    return heads_at_a_time(heads, parts + 1 + wide + max(merging, turning))  # v and the running sum


def attend_group(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    group: slice,
    scale: float,
    valid: torch.Tensor | None,
    block: Block,
) -> torch.Tensor:
    """`flex` of one group of heads.

    Args:
        q: (batch, heads of the group, tokens, head_dim).
        k: as q.
        v: as q.
        spec: the strategy, grid and RoPE.
        group: which of the model's heads these are.
        scale: factor on q k, the temperature included.
        valid: bool (batch, text), which text keys count; None for all.
        block: as in `flex`.

    Returns:
        (batch, heads of the group, tokens, head_dim) in q's dtype.
    """
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
    with dynamo_settings(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True):
        rows = _turn(qf[:, :, band.rows], band.query_turn, rope).flatten(2, 3).contiguous()
        keys = _turn(kf, band.key_turn, rope).flatten(2, 3).contiguous()
        mask, score = _mask(spec, 0, band, rows.device, block), _decay(spec, 0, band, rows.device)
        result: torch.Tensor = compiled(False)(rows, keys, vf.flatten(2, 3).contiguous(), mask, scale, score)
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
    backend = "inductor"
    if qf.device.type == "cpu":
        backend = "eager"
        warnings.warn(  # Python shows it once
            f"attention='flex' with strategy {spec.strategy.name!r} on CPU merges bands by log-sum-exp, which torch "
            "cannot compile for CPU: running FlexAttention uncompiled, with dense memory. "
            "Use attention='tiles' on CPU.",
            stacklevel=2,
        )
    run = compiled(True, backend)
    v = vf.flatten(2, 3).contiguous()
    total = torch.zeros(qf.shape, device=qf.device, dtype=torch.float32)
    norm = torch.full(qf.shape[:-1], float("-inf"), device=qf.device, dtype=torch.float32)
    with dynamo_settings(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True):
        for index, band in enumerate(bands):
            rows = _turn(qf[:, :, band.rows], band.query_turn, rope).flatten(2, 3).contiguous()
            keys = _turn(kf, band.key_turn, rope).flatten(2, 3).contiguous()
            mask, score = _mask(spec, index, band, qf.device, block), _decay(spec, index, band, qf.device)
            out, lse = run(rows, keys, v, mask, scale, score)
            count = band.levels.shape[0]
            out, lse = out.unflatten(2, (count, n)).float(), lse.unflatten(2, (count, n)).float()
            seen = torch.from_numpy((band.levels != NONE).any(1)).to(qf.device)[:, None]
            lse = torch.where(seen, lse, float("-inf"))
            merge(total[:, :, band.rows], norm[:, :, band.rows], out.nan_to_num_(), lse)
            del rows, keys, out  # before the next band's are made
    return total, norm
