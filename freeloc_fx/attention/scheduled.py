"""Attention to texts over time: each latent frame attends to the keys of its text, inside a blend to those of several.

    unfused:    scaled_dot_product_attention(q, k, v)                    # every frame, the keys of all texts
    rewritten:  freeloc_fx.scheduled_attention(q, k, v, weights, starts, scale, None, False, False)

One call a text, on a slice of the queries and a slice of the keys; frames of one text that lie apart are a call each. A
frame that several texts have a share in is in the slices of each, and the results merge by their log-sum-exp, log of
the share added: that is a softmax over the keys of all of them with log of the share as a bias. What each frame sees is
data, so that another timeline of as many texts runs what is compiled already.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from freeloc_fx.compat import opaque_operator
from freeloc_fx.errors import CaptureError

from .agree import check_agreement
from .autocast import take_part_in_autocast
from .repeated import merged
from .softmax import attend, merge, nothing_seen

__all__ = ["OPERATOR", "WITHIN", "attention_within_texts", "literal", "scheduled_attention", "seen_runs"]


def seen_runs(weights: np.ndarray, text: int) -> list[slice]:
    """The runs of neighbouring frames that see a text: one in a clip, more where references stand before it.

    Args:
        weights: float64 (frames, texts).
        text: its number.

    Returns:
        Slices of the frames in order, none where no frame sees it.
    """
    edges = np.flatnonzero(np.diff(np.pad(weights[:, text] > 0, 1).astype(int))).tolist()
    return [slice(first, last) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def literal(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: np.ndarray,
    starts: list[int],
    scale: float | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Take the table of (frame, text) literally: a bias for every pair of a frame and a key, then a softmax.

    Args:
        q: (batch, heads, frames * tokens, head_dim).
        k: (batch, heads, keys, head_dim).
        v: as k.
        weights: float64 (frames, texts).
        starts: first key of each text, and the end.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        mask: the model's own, see `scheduled_attention`.

    Returns:
        As q, computed in float64.
    """
    work = torch.float32 if q.device.type == "mps" else torch.float64
    frames, texts = weights.shape
    with np.errstate(divide="ignore"):
        bias = torch.from_numpy(np.log(weights)).to(q.device, work)
    sizes = torch.tensor([b - a for a, b in itertools.pairwise(starts)], device=q.device)
    keys = torch.arange(texts, device=q.device).repeat_interleave(sizes)
    rows = torch.arange(frames, device=q.device).repeat_interleave(q.shape[2] // frames)
    scores = q.to(work) @ k.to(work).transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores + bias[rows][:, keys]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(work)
    return (scores.softmax(-1) @ v.to(work)).to(q.dtype)


@opaque_operator("freeloc_fx::scheduled_attention")
def scheduled_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: torch.Tensor,
    starts: torch.Tensor,
    scale: float | None,
    mask: torch.Tensor | None = None,
    exact: bool = False,
    verify: bool = False,
) -> torch.Tensor:
    """Run attention to texts over time.

    Args:
        q: (batch, heads, frames * tokens, head_dim), floating point.
        k: (batch, heads, keys, head_dim), in q's dtype: the texts one after the other.
        v: as k.
        weights: float64 (frames, texts) on the CPU: how much each frame sees of each text.
        starts: int64 (texts + 1,) on the CPU: first key of each text, and how many keys there are.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        mask: the model's own: bool, True where a query sees a key, or additive; broadcastable to (batch, heads, 1 or
            frames * tokens, keys). None for none.
        exact: take the table literally, slowly and with scores of all pairs, see `literal`.
        verify: compare with that.

    Returns:
        As q, tokens before heads in memory.

    Raises:
        CaptureError: queries or keys are not as many as the table says.
        VerificationError: with `verify`, see `check_agreement`.
    """
    table, places = weights.numpy(), starts.tolist()
    frames = table.shape[0]
    if q.shape[2] % frames or k.shape[2] != places[-1]:
        raise CaptureError(
            f"scheduled attention: expected a multiple of {frames} frames as queries and {places[-1]} keys, "
            f"found q {tuple(q.shape)} and k {tuple(k.shape)}"
        )
    if exact:
        out = literal(q, k, v, table, places, scale, mask)
    else:
        out = _scheduled(q, k, v, table, places, scale, mask)
        if verify:
            about = f"attention of {frames} frames to {table.shape[1]} texts"
            check_agreement(out, literal(q, k, v, table, places, scale, mask), q.dtype, about)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _scheduled(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: np.ndarray,
    starts: list[int],
    scale: float | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    batch, heads, length, dim = q.shape
    n = length // weights.shape[0]
    shared = (weights > 0).sum(1) > 1
    factor = 1 / math.sqrt(dim) if scale is None else scale
    result = q.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
    # Of shared frames only, which lie between marks: float32, however long the clip is.
    total = norm = None
    place = np.cumsum(shared) - 1
    for text, rows, keys in _parts(weights, starts):
        part = _mask_of(mask, rows, keys, n)
        group = slice(rows.start * n, rows.stop * n)
        if not shared[rows].any():
            result[:, :, group] = _plain(q[:, :, group], k[:, :, keys], v[:, :, keys], scale, part)
            continue
        additive = _additive(part, q.dtype)
        out, lse = attend(q[:, :, group], k[:, :, keys], v[:, :, keys], additive, factor)
        if additive is not None:
            lse = nothing_seen(additive, lse)
        if total is None or norm is None:
            size = (batch, heads, int(shared.sum()), n)
            total = torch.zeros(*size, v.shape[3], dtype=torch.float32, device=q.device)
            norm = torch.full(size, float("-inf"), dtype=torch.float32, device=q.device)
        out, lse = out.unflatten(2, (-1, n)), lse.float().unflatten(2, (-1, n))
        view = result[:, :, group].unflatten(2, (-1, n))
        for count, alone in _runs(shared[rows]):
            if alone:
                view[:, :, count] = out[:, :, count]
                continue
            there = slice(int(place[rows][count.start]), int(place[rows][count.stop - 1]) + 1)
            share = torch.from_numpy(np.log(weights[rows, text][count])).to(q.device, torch.float32)
            merge(total[:, :, there], norm[:, :, there], out[:, :, count], lse[:, :, count] + share[:, None])
    if total is not None:
        frames = torch.from_numpy(np.flatnonzero(shared)).to(q.device)
        result.unflatten(2, (-1, n)).index_copy_(2, frames, total.to(q.dtype))
    return result


def _parts(weights: np.ndarray, starts: list[int]) -> Iterator[tuple[int, slice, slice]]:
    """(text, some of its frames, its keys) for each text that some frame sees."""
    for text in range(weights.shape[1]):
        for rows in seen_runs(weights, text):
            yield text, rows, slice(starts[text], starts[text + 1])


def _runs(shared: np.ndarray) -> Iterator[tuple[slice, bool]]:
    """Runs of frames that are shared, or seen by one text alone (True)."""
    cuts = [0, *(np.flatnonzero(np.diff(shared.astype(int))) + 1).tolist(), len(shared)]
    for first, last in itertools.pairwise(cuts):
        yield slice(first, last), not shared[first]


def _plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention to one text; on the CPU a text's padding is one key, see `repeated`."""
    if mask is None and q.device.type == "cpu":
        out = merged(q, k, v, scale)
        if out is not None:
            return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _mask_of(mask: torch.Tensor | None, rows: slice, keys: slice, tokens: int) -> torch.Tensor | None:
    """The part of a mask for some frames and keys."""
    if mask is None:
        return None
    part = mask[..., keys] if mask.shape[-1] > 1 else mask
    return part[..., rows.start * tokens : rows.stop * tokens, :] if part.ndim > 1 and part.shape[-2] > 1 else part


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask of four axes with 0 where a key is seen and -inf where it is not."""
    if mask is None:
        return None
    mask = mask.reshape(*(1,) * (4 - mask.ndim), *mask.shape)
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


@opaque_operator("freeloc_fx::attention_within_texts")
def attention_within_texts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    scale: float | None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run self-attention of texts that lie one after the other: each sees itself, as in a call of its own.

    Args:
        q: (batch, heads, tokens of all texts, head_dim), floating point.
        k: as q.
        v: as q.
        starts: int64 (texts + 1,) on the CPU: first token of each text, and how many there are.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        mask: the model's own, broadcastable to (batch, heads, tokens, tokens); None for none.

    Returns:
        As q, tokens before heads in memory.

    Raises:
        CaptureError: there are not as many tokens as `starts` says.
    """
    places = starts.tolist()
    if q.shape[2] != places[-1] or k.shape[2] != places[-1]:
        raise CaptureError(f"attention within texts: expected {places[-1]} tokens, found {q.shape[2]} and {k.shape[2]}")
    batch, heads, length, _ = q.shape
    result = q.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
    for first, last in itertools.pairwise(places):
        own = slice(first, last)
        part = None if mask is None else _mask_of(mask, own, own, 1)
        result[:, :, own] = F.scaled_dot_product_attention(
            q[:, :, own], k[:, :, own], v[:, :, own], attn_mask=part, scale=scale
        )
    return result.transpose(1, 2).contiguous().transpose(1, 2)


@scheduled_attention.register_fake
@attention_within_texts.register_fake
def _shaped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    batch, heads, tokens, _dim = q.shape
    return q.new_empty(batch, tokens, heads, v.shape[3]).transpose(1, 2)


OPERATOR = torch.ops.freeloc_fx.scheduled_attention.default
"""Attention of frames to texts, as a graph calls it."""
WITHIN = torch.ops.freeloc_fx.attention_within_texts.default
"""Attention of texts to themselves, as a graph calls it."""
take_part_in_autocast(OPERATOR)
take_part_in_autocast(WITHIN)
