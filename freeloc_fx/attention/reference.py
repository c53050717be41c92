"""Dense attention with P and M applied literally: slow, obviously right, the judge of every other lowering."""

from __future__ import annotations

import math

import numpy as np
import torch

from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import FULL, STRIPE

from .rotate import angles, rotate
from .text import valid_keys, video_span

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

    One query place at a time: turn every key to its remapped distance, mask, softmax, weigh the values. Every other
    lowering takes the same arguments and gives the same result up to rounding.

    Args:
        q: (batch, heads, tokens, head_dim), floating point, already rotated by the model's RoPE.
        k: as q.
        v: as q.
        spec: the strategy, grid and RoPE.
        scale: factor on q k; None for 1 / sqrt(head_dim). The strategy's temperature multiplies it.
        key_mask: the model's padding mask, see `text.valid_keys`; None for none.
        rows: query places to compute, and no text rows; None for all rows.

    Returns:
        (batch, heads, tokens of those places, head_dim) in q's dtype; arithmetic is in float64, and in float32 on
        devices without it.

    Raises:
        CaptureError: a key mask that is no padding of text, see `text.valid_keys`.
    """
    grid, strategy = spec.grid, spec.strategy
    work = torch.float32 if q.device.type == "mps" else torch.float64
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * strategy.temperature
    (queries, q_text), (keys, k_text), (values, v_text) = (_parts(x.to(work), grid) for x in (q, k, v))
    sizes = torch.tensor(grid.sizes)
    ends = np.cumsum((0, *grid.sizes)).tolist()
    rope = spec.effective_rope
    change = spec.frequency_change()
    if change is not None:
        cos, sin = _angles(change, grid.times, sizes, q.device, work)
        queries, keys = rotate(queries, change, cos, sin), rotate(keys, change, cos, sin)
    valid = valid_keys(key_mask, q.shape[0], grid)
    text_hidden = torch.zeros(q.shape[0], grid.text, dtype=torch.bool, device=q.device) if valid is None else ~valid
    text_turn = spec.text_turn()
    shifts = spec.shifts()
    levels, decay = spec.levels(), spec.decay()
    stripe = torch.from_numpy(strategy.visibility.stripe(grid.height, grid.width)).to(q.device)
    flat_values = torch.cat([values, v_text], 2)
    out = []
    for i in range(grid.places) if rows is None else rows:
        query = queries[:, :, ends[i] : ends[i + 1]]
        turned = rotate(keys, rope, *_angles(rope, shifts[i], sizes, q.device, work))
        scores = query @ turned.transpose(-1, -2) * scale
        if decay is not None:
            factor = torch.from_numpy(decay[i]).to(q.device, work).repeat_interleave(sizes.to(q.device))
            scores = torch.where(scores > 0, scores * factor, scores)
        visible = torch.zeros(scores.shape[2:], dtype=torch.bool, device=q.device)
        for j, level in enumerate(levels[i].tolist()):
            visible[:, ends[j] : ends[j + 1]] = stripe if level == STRIPE else level == FULL
        scores = scores.masked_fill(~visible, float("-inf"))
        toward_text = query
        if text_turn is not None:
            toward_text = rotate(query, rope, *_angles(rope, text_turn[i : i + 1], sizes[i : i + 1], q.device, work))
        text_scores = toward_text @ k_text.transpose(-1, -2) * scale
        text_scores = text_scores.masked_fill(text_hidden[:, None, None], float("-inf"))
        out.append((torch.cat([scores, text_scores], -1).softmax(-1) @ flat_values).to(q.dtype))
    if rows is not None or not grid.text:
        return torch.cat(out, 2)
    toward_video = keys if text_turn is None else rotate(keys, rope, *_angles(rope, text_turn, sizes, q.device, work))
    scores = q_text @ torch.cat([toward_video, k_text], 2).transpose(-1, -2) * scale
    hidden = torch.nn.functional.pad(text_hidden, (grid.video, 0))
    text = (scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1) @ flat_values).to(q.dtype)
    return torch.cat([text[:, :, : grid.text_first], *out, text[:, :, grid.text_first :]], 2)


def _parts(x: torch.Tensor, grid: TokenGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of all places, and those of text."""
    span = video_span(grid)
    return x[:, :, span], torch.cat([x[:, :, : span.start], x[:, :, span.stop :]], 2)


def _angles(
    rope: RopeLayout, turn: np.ndarray, sizes: torch.Tensor, device: torch.device, work: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of a turn (places,), each (heads or 1, tokens, pairs)."""
    cos, sin = (each.repeat_interleave(sizes, 1) for each in angles(rope, turn))
    return cos.to(device, work), sin.to(device, work)
