"""Long attention as a few scaled_dot_product_attention calls on views: work = visible pairs.

The default on CPU. Each band (see `bands`) is cut into families of rectangles (see `schedule`); a family is one call
that reads overlapping views of the keys, and calls that serve the same query merge by float32 log-sum-exp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..rope import Turner
from ..visibility import FULL, STRIPE
from .bands import SpecBand, spec_bands
from .schedule import Family, decompose
from .spec import AttentionSpec, Cache

__all__ = ["tiles"]

_CALL = 2e6
"""What a call costs beside its arithmetic, in multiply-adds: about 40 microseconds of dispatch and merging on one
core."""


@dataclass(frozen=True)
class _Chunk:
    """Query tokens [q0, q1) of a frame against key tokens [k0, k1); mask (q1-q0, k1-k0) bool, None where all True."""

    q0: int
    q1: int
    k0: int
    k1: int
    mask: np.ndarray | None


@dataclass(frozen=True)
class _BandSchedule:
    band: SpecBand
    full: list[Family]
    stripe: list[Family]


@dataclass(frozen=True)
class _Schedule:
    bands: list[_BandSchedule]
    chunks: list[_Chunk]


_schedules = Cache(64)
_turners = Cache(64)
_masks = Cache(2048)


def _schedule(spec: AttentionSpec, heads: int, dim: int) -> _Schedule:
    bands = spec_bands(spec)
    chunks = _chunks(spec) if any((band.levels == STRIPE).any() for band in bands) else []
    cell = 2.0 * heads * dim  # multiply-adds of one token pair
    full = _CALL / (cell * spec.grid.tokens**2)
    pairs = float(np.mean([(c.q1 - c.q0) * (c.k1 - c.k0) for c in chunks])) if chunks else 1.0
    return _Schedule(
        [
            _BandSchedule(
                band, decompose(band.levels == FULL, full), decompose(band.levels == STRIPE, _CALL / (cell * pairs))
            )
            for band in bands
        ],
        chunks,
    )


def _chunks(spec: AttentionSpec) -> list[_Chunk]:
    """Cut a frame's query tokens so that few masked pairs are computed and no call is too thin to be efficient."""
    mask = spec.strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    n = len(mask)
    best: tuple[float, list[_Chunk]] | None = None
    for size in sorted({n, *(s for s in (4, 8, 16, 32, 64, 128, 256) if s < n)}):
        chunks = []
        cost = 0.0
        for q0 in range(0, n, size):
            q1 = min(q0 + size, n)
            columns = np.flatnonzero(mask[q0:q1].any(0))
            k0, k1 = int(columns[0]), int(columns[-1]) + 1
            part = mask[q0:q1, k0:k1]
            chunks.append(_Chunk(q0, q1, k0, k1, None if part.all() else part))
            # A call's time grows like (rows + 12) * keys: thin calls wait for memory rather than compute.
            cost += (q1 - q0 + 12) * (k1 - k0 + 2)
        if best is None or cost < best[0]:
            best = (cost, chunks)
    assert best is not None
    return best[1]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, heads, rows, head_dim) each; returns the output and the float32 log-sum-exp (batch, heads, rows)."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=scale
        )  # fmt: skip
        return out, lse
    if q.device.type == "cuda":
        if mask is not None:
            mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, 0.0, False, scale=scale)
        return out, lse[..., : q.shape[2]]
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v.float()).to(q.dtype), scores.logsumexp(-1)


def _rows(x: torch.Tensor, family: Family, tokens: slice) -> torch.Tensor:
    """Query rows of a family, (count, heads, rows * tokens, head_dim), from x (heads, frames, tokens, head_dim)."""
    x = x[:, :, tokens]
    heads, _, n, dim = x.shape
    sh, sf, sn, sd = x.stride()
    size = (family.count, heads, family.rows, n, dim)
    stride = (family.row_step * sf, sh, sf, sn, sd)
    return x.as_strided(size, stride, x.storage_offset() + family.row * sf).flatten(2, 3)


def _keys(x: torch.Tensor, family: Family) -> torch.Tensor:
    """Key rows of a family, (count, heads, keys * tokens, head_dim): a view, since x is frame-contiguous."""
    heads, _, n, dim = x.shape
    sh, sf, sn, sd = x.stride()
    size = (family.count, heads, family.keys * n, dim)
    return x.as_strided(size, (family.key_step * sf, sh, sn, sd), x.storage_offset() + family.key * sf)


class _Accumulator:
    """Running softmax over calls: out = sum of parts weighted by exp(lse_part - lse)."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self.out = torch.zeros(shape, device=device, dtype=torch.float32)
        self.lse = torch.full(shape[:-1], float("-inf"), device=device, dtype=torch.float32)

    def add(self, rows: slice, family: Family, tokens: slice, out: torch.Tensor, lse: torch.Tensor) -> None:
        """out: (count, heads, rows * tokens, head_dim) of one family; `rows` maps band rows to query frames."""
        first = rows.start + family.row * rows.step
        heads, _, n, dim = self.out[:, :, tokens].shape
        shape = (family.count, heads, family.rows, n)

        def view(x: torch.Tensor) -> torch.Tensor:
            sh, sf, sn, *rest = x.stride()
            frame = sf * rows.step
            offset = x.storage_offset() + first * sf + (tokens.start or 0) * sn
            size = (*shape, *x.shape[3:])
            return x.as_strided(size, (family.row_step * frame, sh, frame, sn, *rest), offset)

        total, value = view(self.lse), view(self.out)
        lse = lse.float().reshape(shape)
        # share = weight of the new part in the softmax over both: sigmoid(lse - total), 1 where nothing came before
        share = torch.sigmoid(lse - total).unsqueeze(-1)
        value.lerp_(out.reshape(*shape, dim).float(), share)
        total.copy_(torch.logaddexp(total, lse))


def _mask(family: Family, chunk: np.ndarray | None, n: int, like: torch.Tensor) -> torch.Tensor | None:
    """Additive mask (1, 1, rows * tokens, keys * tokens) of a ragged family or a stripe's chunk, None for neither."""
    if family.mask is None and chunk is None:
        return None
    frames = np.ones((family.rows, family.keys), bool) if family.mask is None else family.mask
    visible = torch.from_numpy(np.kron(frames, np.ones((n, n), bool) if chunk is None else chunk)).to(like.device)
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~visible, float("-inf"))[None, None]


def tiles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, scale: float | None = None
) -> torch.Tensor:
    """Same contract as `reference`, arithmetic in q's dtype with float32 accumulation between calls.

    Working memory beyond q, k, v and the output: a float32 accumulator, k and v made contiguous, one rotated k and the
    rotated q of one band, of one sample at a time.
    """
    grid, n = spec.grid, spec.grid.tokens
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * spec.strategy.temperature
    batch, heads, length, dim = q.shape
    plan = _schedules.get((spec, heads, dim), lambda: _schedule(spec, heads, dim))
    result = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    turner = _turners.get((spec, q.device), lambda: Turner(spec.rope, q.device))

    def mask_of(band: int, kind: str, index: int, family: Family, chunk: np.ndarray | None) -> torch.Tensor | None:
        if family.mask is None and chunk is None:
            return None
        key = (spec, heads, dim, band, kind, index, q.dtype, q.device)
        return _masks.get(key, lambda: _mask(family, chunk, n, q))

    for b in range(batch):
        qb, kb, vb = (x[b].unflatten(1, (grid.frames, n)) for x in (q, k, v))
        kb, vb = kb.contiguous(), vb.contiguous()
        total = _Accumulator((heads, grid.frames, n, dim), q.device)
        turned: torch.Tensor | None = None
        for number, item in enumerate(plan.bands):
            band = item.band
            rows, keys = qb[:, band.rows], kb
            if band.query_turn is not None:
                rows = turner(rows, band.query_turn, rows.clone(memory_format=torch.contiguous_format))
            if band.key_turn is not None:
                turned = kb.clone() if turned is None else turned  # only its temporal channels differ between bands
                keys = turner(kb, band.key_turn, turned)
            for index, family in enumerate(item.full):
                mask = mask_of(number, "full", index, family, None)
                everything = slice(0, n)
                part = _attend(_rows(rows, family, everything), _keys(keys, family), _keys(vb, family), mask, scale)
                total.add(band.rows, family, everything, *part)
            for place, chunk in enumerate(plan.chunks if item.stripe else ()):
                tokens = slice(chunk.q0, chunk.q1)
                near_k = keys[:, :, chunk.k0 : chunk.k1].contiguous()
                near_v = vb[:, :, chunk.k0 : chunk.k1].contiguous()
                for index, family in enumerate(item.stripe):
                    shape = np.ones((chunk.q1 - chunk.q0, chunk.k1 - chunk.k0), bool)
                    stripe = chunk.mask if chunk.mask is not None else shape if family.mask is not None else None
                    mask = mask_of(number, f"stripe{place}", index, family, stripe)
                    part = _attend(
                        _rows(rows, family, tokens), _keys(near_k, family), _keys(near_v, family), mask, scale
                    )
                    total.add(band.rows, family, tokens, *part)
        result[b] = total.out.flatten(1, 2)
    return result
