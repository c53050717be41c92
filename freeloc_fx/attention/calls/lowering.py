"""The lowering `calls`: long attention as a few scaled_dot_product_attention calls on views of q, k and v.

How it works: the visible pairs of a strategy are cut into a walk, columns and bands (see `cuts`), and each of these
is one call or a few calls of torch's own attention on views of the tensors, with queries or keys turned to their
remapped distance first. Calls that serve the same queries merge by their log-sum-exp in float32.

When it is chosen: by "auto" where it was measured to be clearly quicker than `tiles` (see `attention.quickest`), which
a kernel of the processor's own makes rare. `tiles` runs it where its kernel cannot: on devices other than the CPU, for
dtypes other than float32 and bfloat16, and without a C++ compiler. It needs nothing but torch.

What it costs: arithmetic in proportion to the visible pairs, and about 40 microseconds a call. Memory beyond q, k, v,
the output included, stays below twice their size, since heads run in groups; scratch that torch's own kernel takes
inside a call comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from freeloc_fx.attention.bands import SpecBand
from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.rotate import Turner
from freeloc_fx.attention.softmax import Total, aligned, attend, merge
from freeloc_fx.attention.text import split, valid_keys, video_span
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec

from .cuts import Chunk, Cuts, make_cuts
from .rectangles import Family
from .turned import TurnedKeys

__all__ = ["Sample", "calls", "known_cuts"]


# Three bounded stores. They decide nothing about results: what is not there is made again, equal to what was.

known_cuts = Cache(64)
"""(spec, heads, head_dim, bytes of a number) -> `Cuts`."""


_turners = Cache(64)
"""(spec, layout, device) -> `Turner`."""


_masks = Cache(2048, weigh=lambda mask: mask.nbytes, most=2 * 1024**3, least=256)
"""Content of a mask, dtype and device -> the additive mask."""


def calls(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a long attention as calls of scaled_dot_product_attention.

    Arithmetic is in q's dtype, and in float32 where calls merge. Heads run in groups, so that memory beyond q, k and v
    (the output included) stays below twice their size.

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
        CaptureError: a key mask that is no padding of text, see `text.valid_keys`, or further frames of other sizes.
    """
    grid = spec.grid
    if not grid.of_one_size:
        raise CaptureError(
            f"long attention {spec.key}: calls run frames of one size, expected {grid.height}x{grid.width} tokens, "
            f"found {sorted({f'{frame.height}x{frame.width}' for frame in grid.further})} in further frames; "
            "use attention='auto', 'tiles' or 'flex'"
        )
    scale = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * spec.strategy.temperature
    batch, heads, length, dim = q.shape
    item = q.dtype.itemsize
    cuts: Cuts = known_cuts.get((spec, heads, dim, item), lambda: make_cuts(spec, heads, dim, item))
    valid = valid_keys(key_mask, batch, grid)
    result = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    for b in range(batch):
        for first in range(0, heads, cuts.group):
            group = slice(first, min(first + cuts.group, heads))
            Sample(q[b, group], k[b, group], v[b, group], spec, cuts, scale, group).run(
                result[b, group], None if valid is None else valid[b]
            )
    return result


class Sample:
    """One sample and one group of heads.

    Args:
        q: (heads, tokens, head_dim) of the group.
        k: as q.
        v: as q.
        spec: the strategy, grid and RoPE.
        cuts: what runs.
        scale: factor on q k, the temperature included.
        group: which of the model's heads these are.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        spec: AttentionSpec,
        cuts: Cuts,
        scale: float,
        group: slice,
    ) -> None:
        self.spec, self.cuts, self.scale, self.grid = spec, cuts, scale, spec.grid
        self.turner = _turner(spec, spec.rope.of_heads(group), q.device)
        self.q, self.q_text = split(q, self.grid)
        self.k, self.k_text = split(k, self.grid)
        self.v, self.v_text = split(v, self.grid)
        change = spec.frequency_change()
        if change is not None:  # as if the model had been built with the strategy's frequencies
            turn = self.grid.times
            rebase = _turner(spec, change.of_heads(group), q.device)
            self.q, self.k = (rebase(x, turn, _copy(x)) for x in (self.q, self.k))
            self.turner = _turner(spec, spec.effective_rope.of_heads(group), q.device)

    def run(self, result: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Compute the attention of these heads.

        Args:
            result: (heads, tokens, head_dim), where the output goes.
            valid: bool (text tokens,), which text keys count; None for all.
        """
        video = result[:, video_span(self.grid)].unflatten(1, (self.grid.places, self.grid.tokens))
        if valid is not None and not bool(valid.all()):
            self.k_text, self.v_text = self.k_text[:, valid], self.v_text[:, valid]
        walk_only = self.cuts.walk is not None and not self.cuts.columns and not self.grid.text
        if walk_only:
            self._walk(video, None)
            return
        heads, frames, n, dim = self.q.shape
        total = Total(heads, frames, n, dim, self.q.device)
        if self.cuts.walk is not None:
            self._walk(None, total)
        for column in self.cuts.columns:
            self._column(column.frames, column.turn, total)
        if self.cuts.bands:
            self._bands(total)
        if self.grid.text:
            if self.k_text.shape[1]:
                self._rows(self.q, self.spec.text_turn(), self.k_text, self.v_text, total)
            self._text_rows(result)
        video.copy_(total.out)

    def _rows(self, q: torch.Tensor, turn: np.ndarray | None, k: torch.Tensor, v: torch.Tensor, total: Total) -> None:
        """Every video row against keys (heads, keys, head_dim)."""
        rows = q if turn is None else self.turner(q, turn, _copy(q))
        out, lse = attend(rows.flatten(1, 2)[None], k[None], v[None], None, self.scale)
        shape = q.shape[1:3]
        total.add(out[0].unflatten(1, shape), lse[0].float().unflatten(1, shape))

    def _column(self, frames: slice, turn: np.ndarray | None, total: Total) -> None:
        self._rows(self.q, turn, self.k[:, frames].flatten(1, 2), self.v[:, frames].flatten(1, 2), total)

    def _text_rows(self, result: torch.Tensor) -> None:
        """Text sees all text and all video; the rows stand at either end of the sequence."""
        turn = self.spec.text_turn()
        keys = self.k if turn is None else self.turner(self.k, turn, _copy(self.k))
        q = self.q_text[None]
        out, lse = attend(q, keys.flatten(1, 2)[None], self.v.flatten(1, 2)[None], None, self.scale)
        total, norm = out.float(), lse.float()
        if self.k_text.shape[1]:
            out, lse = attend(q, self.k_text[None], self.v_text[None], None, self.scale)
            merge(total, norm, out, lse.float())
        first, span = self.grid.text_first, video_span(self.grid)
        result[:, :first] = total[0, :, :first].to(result.dtype)
        result[:, span.stop :] = total[0, :, first:].to(result.dtype)

    def _walk(self, video: torch.Tensor | None, total: Total | None) -> None:
        """Query frames in order against all keys, each at its exact remapped distance."""
        assert self.cuts.walk is not None
        n = self.grid.tokens
        v = self.v.contiguous().flatten(1, 2)
        keys = TurnedKeys(self.k, self.turner, self.cuts.walk.copies)
        for move in self.cuts.walk.moves:
            count = len(move.query_turn)
            frames = slice(move.first, move.first + count)
            rows = self.q[:, frames]
            if move.query_turn.any():
                rows = self.turner(rows, move.query_turn, _copy(rows))
            turned = keys.to(move.key_turn).flatten(2, 3)
            weights = v[None].expand(count, -1, -1, -1)
            if move.decay is None:
                out, lse = attend(rows.transpose(0, 1), turned, weights, None, self.scale)
            else:
                hidden = None if move.levels is None else partial(move.hidden, self.grid)
                out, lse = _decayed(rows.transpose(0, 1), turned, weights, move.decay, hidden, self.scale)
            if video is not None:
                video[:, frames] = out.transpose(0, 1)
            else:
                assert total is not None
                total.strided(out, lse, move.first, 1, 1, 1, slice(0, n))

    def _bands(self, total: Total) -> None:
        n = self.grid.tokens
        whole = Chunk(0, n, 0, n, None)
        if any(item.full for item in self.cuts.bands):
            self._chunk(whole, "full", total)
        if any(item.stripe for item in self.cuts.bands):
            for place, chunk in enumerate(self.cuts.chunks):
                self._chunk(chunk, f"stripe{place}", total)

    def _chunk(self, chunk: Chunk, kind: str, total: Total) -> None:
        """All bands of query tokens [q0, q1) against key tokens [k0, k1) of a frame."""
        tokens = slice(chunk.q0, chunk.q1)
        q = self.q[:, :, tokens]
        v = self.v[:, :, chunk.k0 : chunk.k1].contiguous()
        turned = TurnedKeys(self.k[:, :, chunk.k0 : chunk.k1].contiguous(), self.turner)
        for item in self.cuts.bands:
            families = item.full if kind == "full" else item.stripe
            if not families:
                continue
            band = item.band
            rows = q[:, band.rows]
            if band.query_turn is not None:
                rows = self.turner(rows, band.query_turn, _copy(rows))
            keys = turned.to(_turn_of(band, self.grid))[0]
            for family in families:
                mask = self._mask(family, chunk)
                out, lse = attend(_family_rows(rows, family), _family_keys(keys, family), _family_keys(v, family), mask,
                                  self.scale)  # fmt: skip
                first = band.rows.start + family.row * band.rows.step
                step = band.rows.step
                total.strided(out, lse, first, step, family.rows, family.row_step * step, tokens)

    def _mask(self, family: Family, chunk: Chunk) -> torch.Tensor | None:
        """Mask (1, 1, rows * tokens, keys * tokens) of a ragged family or of a stripe's chunk; None for neither."""
        if family.mask is None and chunk.mask is None:
            return None
        frames = np.ones((family.rows, family.keys), bool) if family.mask is None else family.mask
        shape = (chunk.q1 - chunk.q0, chunk.k1 - chunk.k0)
        tokens = np.ones(shape, bool) if chunk.mask is None else chunk.mask
        # By content: most chunks of a frame have the same mask, and so have bands and strategies.
        key = (frames.shape, frames.tobytes(), shape, tokens.tobytes(), self.q.dtype, self.q.device)
        return _masks.get(key, lambda: _additive(frames, tokens, self.q.dtype, self.q.device))


def _additive(frames: np.ndarray, tokens: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(1, 1, rows * tokens, keys * tokens): 0 where both frames (rows, keys) and tokens are True, else -inf."""
    rows, keys = frames.shape
    mask = torch.full((rows, tokens.shape[0], keys, tokens.shape[1]), float("-inf"), dtype=dtype, device=device)
    visible = torch.from_numpy(tokens).to(device)
    for row, key in np.argwhere(frames).tolist():  # in place: a bool of the mask's size would be a quarter more
        mask[row, :, key].masked_fill_(visible, 0.0)
    mask = mask.flatten(2, 3).flatten(0, 1)[None, None]
    return aligned(mask, mask.shape[-1]) if device.type == "cuda" else mask  # here, since it is kept


def _turner(spec: AttentionSpec, layout: RopeLayout, device: torch.device) -> Turner:
    """One for each spec, though layouts are shared: it keeps a table for every turn, so its tables go when it goes."""
    return _turners.get((spec, layout, device), lambda: Turner(layout, device))


def _copy(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _turn_of(band: SpecBand, grid: TokenGrid) -> np.ndarray:
    turn = np.zeros(grid.places) if band.key_turn is None else band.key_turn
    return turn[None]


def _family_rows(x: torch.Tensor, family: Family) -> torch.Tensor:
    """Query rows of a family, (count, heads, rows * tokens, head_dim), from x (heads, frames, tokens, head_dim)."""
    heads, _, n, dim = x.shape
    sh, sf, sn, sd = x.stride()
    size = (family.count, heads, family.rows, n, dim)
    stride = (family.row_step * sf, sh, sf, sn, sd)
    return x.as_strided(size, stride, x.storage_offset() + family.row * sf).flatten(2, 3)


def _family_keys(x: torch.Tensor, family: Family) -> torch.Tensor:
    """Key rows of a family, (count, heads, keys * tokens, head_dim): a view, since x is frame-contiguous."""
    heads, _, n, dim = x.shape
    sh, sf, sn, sd = x.stride()
    size = (family.count, heads, family.keys * n, dim)
    return x.as_strided(size, (family.key_step * sf, sh, sn, sd), x.storage_offset() + family.key * sf)


def _decayed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: np.ndarray,
    hidden: Callable[[slice], torch.Tensor] | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend` with explicit scores: positive ones are multiplied by decay (count, key frames), and then those are
    dropped that `hidden` names for some rows, as bool (count, rows, keys).

    As many rows at a time as a head has channels, so that their scores are no larger than the keys in float32.
    """
    k, v = k.float(), v.float()
    less = torch.from_numpy(decay - 1).to(q.device, torch.float32)
    less = less.repeat_interleave(k.shape[2] // decay.shape[1], 1)[:, None, None]
    out, norm = torch.empty_like(q), torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
    for first in range(0, q.shape[2], q.shape[3]):
        rows = slice(first, first + q.shape[3])
        scores = (q[:, :, rows].float() @ k.transpose(-1, -2)).mul_(scale)
        scores += scores.clamp_min(0).mul_(less)
        if hidden is not None:
            scores.masked_fill_(hidden(rows)[:, None].to(q.device), float("-inf"))
        lse = scores.logsumexp(-1)
        out[:, :, rows] = scores.sub_(lse[..., None]).exp_() @ v
        norm[:, :, rows] = lse
    return out, norm
