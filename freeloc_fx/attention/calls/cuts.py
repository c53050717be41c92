"""How `calls` runs a spec: what is a walk, what is a column, what is a band. Frames only, no tensors but masks.

A strategy says for each pair (query latent frame, key latent frame) whether it is visible and at which distance. The
visible pairs are cut three ways, each pair into exactly one of them:

- walk: every query frame sees every key frame, at distances that are no difference of two positions. The query frames
  go through the clip in order, a few at a time, and a buffer holds the keys at their distances from the current ones.
  From one move to the next most keys stay as they are in the buffer, since the queries may turn instead.
- column: a key frame that every query frame sees. One key frame is at any distance from a query if the query turns, so
  that one call serves all query frames.
- band: pairs on which one turned query and one turned key serve (see `bands`). Everything that is neither walked nor
  a column; its pairs become families of rectangles (see `rectangles`), and those that a stripe thins out are cut again
  into chunks of a frame's tokens.

For five frames under a sliding window with the first frame visible to all::

    query 0   C . . . .     C  the column: key frame 0
          1   C B . . .     B  the band: what the window shows beside it
          2   C B B . .     .  not visible
          3   C . B B .
          4   C . . B B
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from freeloc_fx.attention.bands import Column, SpecBand, spec_bands, take_columns
from freeloc_fx.attention.heads import heads_at_a_time
from freeloc_fx.method.grid import TokenGrid
from freeloc_fx.method.positions import Identity
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import FULL, STRIPE

from .rectangles import Family, decompose

__all__ = ["Chunk", "CutBand", "Cuts", "Move", "Walk", "make_cuts"]


_CALL = 2e6
"""What a call costs beside its arithmetic, in multiply-adds: about 40 microseconds of dispatch and merging on one
core."""


_WARM = 12
"""Rows that a call waits for: its time grows like (rows + 12) * keys, since thin calls wait for memory."""


_MASKS = 1 / 4
"""Masks may take as much memory as this share of q, k and v; where they would take more, no ragged corner is masked."""


@dataclass(frozen=True)
class Chunk:
    """Query tokens [q0, q1) of every latent frame against key tokens [k0, k1) of every latent frame.

    Args:
        q0: first query token, counted inside a latent frame.
        q1: the query token after the last.
        k0: first key token, counted inside a latent frame.
        k1: the key token after the last.
        mask: bool (q1 - q0, k1 - k0), which token pairs count; None where all do.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    mask: np.ndarray | None


@dataclass(frozen=True)
class CutBand:
    """A band with its visible pairs of latent frames as families of rectangles.

    Args:
        band: the band.
        full: families of the pairs whose tokens all see each other.
        stripe: families of the pairs whose tokens see each other along a stripe.
    """

    band: SpecBand
    full: list[Family]
    stripe: list[Family]


@dataclass(frozen=True)
class Move:
    """Query frames first, first + 1, ... of a walk, run in one call.

    Args:
        first: the first query frame.
        query_turn: float64 (count,), latent frames by which each query frame turns.
        key_turn: float64 (count, frames), latent frames by which every key frame turns for each of the query frames.
        decay: factor on positive scores, float64 (count, frames); None for none.
        levels: visibility, int8 (count, frames); None where everything is FULL.
        stripe: bool (tokens, tokens) of one latent frame, what STRIPE lets a token see; None where `levels` is.
    """

    first: int
    query_turn: np.ndarray
    key_turn: np.ndarray
    decay: np.ndarray | None = None
    levels: np.ndarray | None = None
    stripe: np.ndarray | None = None

    def hidden(self, grid: TokenGrid, rows: slice) -> torch.Tensor:
        """Which keys some tokens of each query frame do not see; only of a move that has levels.

        Args:
            grid: the clip's.
            rows: tokens of a query frame.

        Returns:
            bool (count, rows, frames * tokens), True where a key is not visible.
        """
        assert self.levels is not None and self.stripe is not None
        level = self.levels[:, None, :, None]
        visible = (level == FULL) | ((level == STRIPE) & self.stripe[None, rows, None, :])
        return torch.from_numpy(~visible.reshape(len(self.levels), -1, grid.video))


@dataclass(frozen=True)
class Walk:
    """A way through the clip.

    Args:
        copies: query frames that run in one call, each with a turned copy of the keys of its own.
        moves: what runs, in this order.
    """

    copies: int
    moves: list[Move]


@dataclass(frozen=True)
class Cuts:
    """What `calls` runs for one spec, number of heads, head_dim and dtype.

    Args:
        heads: heads of q.
        head_dim: channels of a head.
        group: heads that run at a time.
        parts: working memory of one head beside the output, in tensors of its q's size; an upper bound.
        walk: the walk, which visits every pair, so that there are no columns and no bands beside it; None for no walk.
        columns: key frames that every query frame sees.
        bands: the other pairs.
        chunks: what each frame pair under a stripe is cut into.
    """

    heads: int
    head_dim: int
    group: int
    parts: float
    walk: Walk | None
    columns: list[Column]
    bands: list[CutBand]
    chunks: list[Chunk]


def make_cuts(spec: AttentionSpec, heads: int, dim: int, item: int) -> Cuts:
    """Cut one spec into calls.

    Args:
        spec: the strategy, grid and RoPE.
        heads: heads of q, which is (batch, heads, tokens, head_dim).
        dim: head_dim of q.
        item: bytes of a number of q.

    Returns:
        The cuts, whose calls visit every visible pair exactly once.
    """
    strategy, grid = spec.strategy, spec.grid
    wide = 4 / item  # a float32 copy, in tensors of q's size
    rebased = 2 if spec.frequency_change() is not None else 0  # q and k as if the model had been built otherwise
    levels = spec.levels().copy()
    mapped = not isinstance(strategy.positions, Identity)
    if strategy.decay is not None or (mapped and (levels == FULL).all()):
        copies = min(4, -(-64 // grid.tokens), grid.places) if strategy.decay is None else 1
        # Beside q, k, v: the turned copies, v, the output and, with text, the running sum and a part of it.
        # The copies' temporal channels are turned through temporaries the first time.
        turned = -(-copies * 2 * len(spec.rope.first) // spec.rope.head_dim)
        parts = wide * (copies + turned + 1 + (4 if grid.text else 0) + (8 if strategy.decay is not None else 0))
        parts += rebased
        return Cuts(heads, dim, heads_at_a_time(heads, parts), parts, _walk(spec, copies), [], [], [])
    columns = [] if (levels == FULL).all() else take_columns(spec, levels)
    bands = spec_bands(spec, levels)
    chunks = _chunks(spec) if any((band.levels == STRIPE).any() for band in bands) else []
    parts = (7 if mapped else 5) + 3 * (wide - 1) + rebased  # three of them are float32 in any case
    group = heads_at_a_time(heads, parts)
    cell = 2.0 * group * dim  # multiply-adds of one token pair
    full = _CALL / (cell * grid.tokens**2)
    pairs = float(np.mean([(c.q1 - c.q0) * (c.k1 - c.k0) for c in chunks])) if chunks else 1.0
    rows = int(np.mean([c.q1 - c.q0 for c in chunks])) if chunks else 1
    made = _cut(bands, (full, _WARM / grid.tokens), (_CALL / (cell * pairs), _WARM / rows))
    if _masked(made, chunks, grid.tokens) > _MASKS * 3 * heads * grid.video * dim:
        made = _cut(bands, (0.0, 0.0), (0.0, 0.0))
    return Cuts(heads, dim, group, parts, None, columns, made, chunks)


def _cut(bands: list[SpecBand], full: tuple[float, float], stripe: tuple[float, float]) -> list[CutBand]:
    """Families of each band; `full` and `stripe` are (`overhead`, `warm`) of `decompose`, zeros for no masks."""
    return [
        CutBand(band, decompose(band.levels == FULL, *full), decompose(band.levels == STRIPE, *stripe))
        for band in bands
    ]


def _masked(bands: list[CutBand], chunks: list[Chunk], tokens: int) -> int:
    """Numbers in the masks of all calls, those alike counted once."""

    def alike(rows: int, keys: int, mask: np.ndarray | None) -> tuple[int, int, bytes]:
        return rows, keys, b"" if mask is None else mask.tobytes()

    full = {alike(f.rows, f.keys, f.mask) for band in bands for f in band.full}
    stripe = {alike(f.rows, f.keys, f.mask) for band in bands for f in band.stripe}
    parts = {alike(c.q1 - c.q0, c.k1 - c.k0, c.mask) for c in chunks}
    return sum(rows * keys * tokens**2 for rows, keys, mask in full if mask) + sum(
        rows * keys * height * width for rows, keys, mask in stripe for height, width, part in parts if mask or part
    )


def _walk(spec: AttentionSpec, copies: int) -> Walk:
    """Query frames in order, `copies` at a time."""
    strategy, frames = spec.strategy, spec.grid.places
    table, index = spec.table(), spec.grid.times
    decay, levels = spec.decay(), spec.levels()
    stripe = None
    if strategy.decay is not None and not (levels == FULL).all():
        stripe = strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    moves: list[Move] = []
    place, before = index.copy(), None  # where the queries of a move stand
    for first in range(0, frames, copies):
        rows = slice(first, min(first + copies, frames))
        position = table[rows]
        stand = index[rows]
        if before is not None:
            # Shift the queries so that as few keys as possible have to move: try the advances that some keys ask for.
            advance = (position - before[: len(position)])[0]
            options, count = np.unique(advance, return_counts=True)
            options = options[np.argsort(-count)][:4]
            moved = [(position - option != before[: len(position)]).any(0).sum() for option in options]
            place = place + options[int(np.argmin(moved))]
            stand = place[: len(position)]
        else:
            place = index[:copies].copy()
        moves.append(
            Move(
                first,
                stand - index[rows],
                stand[:, None] - position - index[None],
                None if decay is None else decay[rows],
                None if stripe is None else levels[rows],
                stripe,
            )
        )
        before = position
    return Walk(copies, moves)


def _chunks(spec: AttentionSpec) -> list[Chunk]:
    """Cut a frame's query tokens so that few masked pairs are computed and no call is too thin to be efficient."""
    mask = spec.strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    n = len(mask)
    best: tuple[float, list[Chunk]] | None = None
    for size in sorted({n, *(s for s in (4, 8, 16, 32, 64, 128, 256) if s < n)}):
        chunks = []
        cost = 0.0
        for q0 in range(0, n, size):
            q1 = min(q0 + size, n)
            columns = np.flatnonzero(mask[q0:q1].any(0))
            k0, k1 = int(columns[0]), int(columns[-1]) + 1
            part = mask[q0:q1, k0:k1]
            chunks.append(Chunk(q0, q1, k0, k1, None if part.all() else part))
            cost += (q1 - q0 + _WARM) * (k1 - k0 + 2)
        if best is None or cost < best[0]:
            best = (cost, chunks)
    assert best is not None
    return best[1]
