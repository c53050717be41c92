"""Dense attention with P and M applied literally: slow, obviously right, the judge of every other lowering."""

from __future__ import annotations

import math

import numpy as np
import torch

from freeloc_fx.method.grid import RopeLayout
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import FULL, STRIPE

from .rotate import angles, rotate
from .text import split, valid_keys

__all__ = ["reference"]


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    *,
    rows: list[int] | None = None,
) -> torch.Tensor:
    """Run a long attention literally.

    One query frame at a time: turn every key to its remapped distance, mask, softmax, weigh the values. Every other
    lowering takes the same arguments and gives the same result up to rounding.

    Args:
        q: (batch, heads, tokens, head_dim), floating point, already rotated by the model's RoPE.
        k: as q.
        v: as q.
        spec: the strategy, grid and RoPE.
        scale: factor on q k; None for 1 / sqrt(head_dim). The strategy's temperature multiplies it.
        key_mask: the model's padding mask, see `text.valid_keys`; None for none.
        rows: query frames to compute, and no text rows; None for all rows.

    Returns:
        (batch, heads, tokens of those frames, head_dim) in q's dtype; arithmetic is in float64, and in float32 on
        devices without it.

    Raises:
        CaptureError: a key mask that is no padding of text, see `text.valid_keys`.
    """
    grid, strategy = spec.grid, spec.strategy
    work = torch.float32 if q.device.type == "mps" else torch.float64
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * strategy.temperature
    (queries, q_text), (keys, k_text), (values, v_text) = (split(x.to(work), grid) for x in (q, k, v))
    rope = spec.effective_rope
    change = spec.frequency_change()
    if change is not None:
        cos, sin = _angles(change, np.arange(grid.frames, dtype=np.float64), q.device, work)
        queries, keys = rotate(queries, change, cos, sin), rotate(keys, change, cos, sin)
    valid = valid_keys(key_mask, q.shape[0], grid)
    text_hidden = torch.zeros(q.shape[0], grid.text, dtype=torch.bool, device=q.device) if valid is None else ~valid
    text_turn = spec.text_turn()
    shifts = spec.shifts()
    levels = strategy.visibility.levels(grid.frames)
    stripe = torch.from_numpy(strategy.visibility.stripe(grid.height, grid.width)).to(q.device)
    full, none = torch.ones_like(stripe), torch.zeros_like(stripe)
    decay = None if strategy.decay is None else strategy.decay.table(grid.frames)
    flat_values = torch.cat([values.flatten(2, 3), v_text], 2)
    out = []
    for i in range(grid.frames) if rows is None else rows:
        query = queries[:, :, i]
        turned = rotate(keys, rope, *_angles(rope, shifts[i], q.device, work)).flatten(2, 3)
        scores = query @ turned.transpose(-1, -2) * scale
        if decay is not None:
            factor = torch.from_numpy(decay[i]).to(q.device, work).repeat_interleave(grid.tokens)
            scores = torch.where(scores > 0, scores * factor, scores)
        visible = torch.cat([{FULL: full, STRIPE: stripe}.get(int(level), none) for level in levels[i]], 1)
        scores = scores.masked_fill(~visible, float("-inf"))
        toward_text = query if text_turn is None else _turn(query, rope, text_turn[i : i + 1], work)
        text_scores = toward_text @ k_text.transpose(-1, -2) * scale
        text_scores = text_scores.masked_fill(text_hidden[:, None, None], float("-inf"))
        out.append((torch.cat([scores, text_scores], -1).softmax(-1) @ flat_values).to(q.dtype))
    if rows is not None or not grid.text:
        return torch.cat(out, 2)
    toward_video = keys if text_turn is None else rotate(keys, rope, *_angles(rope, text_turn, q.device, work))
    scores = q_text @ torch.cat([toward_video.flatten(2, 3), k_text], 2).transpose(-1, -2) * scale
    hidden = torch.nn.functional.pad(text_hidden, (grid.video, 0))
    text = (scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1) @ flat_values).to(q.dtype)
    return torch.cat([text[:, :, : grid.text_first], *out, text[:, :, grid.text_first :]], 2)


def _angles(
    rope: RopeLayout, turn: np.ndarray, device: torch.device, work: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of a turn (frames,), each (heads or 1, frames, 1, pairs) for one value a token."""
    cos, sin = angles(rope, turn)
    return cos[:, :, None].to(device, work), sin[:, :, None].to(device, work)


def _turn(query: torch.Tensor, rope: RopeLayout, turn: np.ndarray, work: torch.dtype) -> torch.Tensor:
    """Turn one frame's queries (batch, heads, tokens, head_dim)."""
    cos, sin = _angles(rope, turn, query.device, work)
    return rotate(query[:, :, None], rope, cos, sin)[:, :, 0]
