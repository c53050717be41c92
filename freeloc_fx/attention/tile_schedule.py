"""How `tiles` runs a spec: what is walked, what is a column, what is cut into bands. Frames only, no tensors but masks.

- walk: every query frame sees every key frame, at distances that are no difference of two positions: the query frames
  go through the clip in order and a buffer holds the keys at their distances from the current one. From one step to
  the next most keys need not move, since the query may turn instead.
- column: a key frame that every query sees. One key frame is at any distance from a query if the query turns.
- band: everything else (see `bands`), as families of rectangles; stripes are cut into chunks of a frame's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..meta import TokenGrid
from ..positions import Identity
from ..visibility import FULL, NONE, STRIPE
from .bands import SpecBand, spec_bands
from .heads import heads_at_a_time
from .schedule import Family, decompose
from .spec import AttentionSpec

__all__ = ["BandSchedule", "Chunk", "Column", "Schedule", "Step", "Walk", "make_schedule", "take_columns"]

_CALL = 2e6
"""What a call costs beside its arithmetic, in multiply-adds: about 40 microseconds of dispatch and merging on one
core."""
_WARM = 12
"""Rows that a call waits for: its time grows like (rows + 12) * keys, since thin calls wait for memory."""
_MASKS = 1 / 4
"""Masks may take as much memory as this share of q, k and v; where they would take more, no ragged corner is masked."""
_COLUMNS = 8
"""At most so many key frames seen by everybody are taken out on their own under a position map."""


@dataclass(frozen=True)
class Chunk:
    """Query tokens [q0, q1) of a frame against key tokens [k0, k1); mask (q1-q0, k1-k0) bool, None where all True."""

    q0: int
    q1: int
    k0: int
    k1: int
    mask: np.ndarray | None


@dataclass(frozen=True)
class BandSchedule:
    band: SpecBand
    full: list[Family]
    stripe: list[Family]


@dataclass(frozen=True)
class Column:
    """Key frames that every query frame sees; `turn` (frames,) of the queries in latent frames, None for none."""

    frames: slice
    turn: np.ndarray | None


@dataclass(frozen=True)
class Step:
    """Query frames first, first+1, ... with their turns (count,), and the keys' turns (count, frames).

    decay: factor on positive scores (count, frames), None for none. levels: int8 (count, frames), None for all FULL;
    stripe: bool (tokens, tokens) beside it.
    """

    first: int
    query_turn: np.ndarray
    key_turn: np.ndarray
    decay: np.ndarray | None = None
    levels: np.ndarray | None = None
    stripe: np.ndarray | None = None

    def hidden(self, grid: TokenGrid, rows: slice) -> torch.Tensor:
        """bool (count, rows, frames * tokens), True where a key is not visible to these tokens of a query frame.

        Only of a step that has levels.
        """
        assert self.levels is not None and self.stripe is not None
        level = self.levels[:, None, :, None]
        visible = (level == FULL) | ((level == STRIPE) & self.stripe[None, rows, None, :])
        return torch.from_numpy(~visible.reshape(len(self.levels), -1, grid.video))


@dataclass(frozen=True)
class Walk:
    copies: int
    steps: list[Step]


@dataclass(frozen=True)
class Schedule:
    """group: heads that run at a time. parts: memory of one beside the output, in tensors of its q's size; a bound."""

    heads: int
    head_dim: int
    group: int
    parts: float
    walk: Walk | None
    columns: list[Column]
    bands: list[BandSchedule]
    chunks: list[Chunk]


def make_schedule(spec: AttentionSpec, heads: int, dim: int, item: int) -> Schedule:
    """The schedule of one spec for q of (batch, heads, tokens, dim), `item` bytes a number."""
    strategy, grid = spec.strategy, spec.grid
    wide = 4 / item  # a float32 copy, in tensors of q's size
    rebased = 2 if spec.frequency_change() is not None else 0  # q and k as if the model had been built otherwise
    levels = strategy.visibility.levels(grid.frames).copy()
    mapped = not isinstance(strategy.positions, Identity)
    if strategy.decay is not None or (mapped and (levels == FULL).all()):
        copies = min(4, -(-64 // grid.tokens), grid.frames) if strategy.decay is None else 1
        # Beside q, k, v: the turned copies, v, the output and, with text, the running sum and a part of it.
        # The copies' temporal channels are turned through temporaries the first time.
        turned = -(-copies * 2 * len(spec.rope.first) // spec.rope.head_dim)
        parts = wide * (copies + turned + 1 + (4 if grid.text else 0) + (8 if strategy.decay is not None else 0))
        parts += rebased
        return Schedule(heads, dim, heads_at_a_time(heads, parts), parts, _walk(spec, copies), [], [], [])
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
    return Schedule(heads, dim, group, parts, None, columns, made, chunks)


def _cut(bands: list[SpecBand], full: tuple[float, float], stripe: tuple[float, float]) -> list[BandSchedule]:
    """Families of each band. full, stripe: `overhead` and `warm` of `decompose`; zeros for no masked corners."""
    return [
        BandSchedule(band, decompose(band.levels == FULL, *full), decompose(band.levels == STRIPE, *stripe))
        for band in bands
    ]


def _masked(bands: list[BandSchedule], chunks: list[Chunk], tokens: int) -> int:
    """Numbers in the masks of all calls, those alike counted once."""

    def alike(rows: int, keys: int, mask: np.ndarray | None) -> tuple[int, int, bytes]:
        return rows, keys, b"" if mask is None else mask.tobytes()

    full = {alike(f.rows, f.keys, f.mask) for band in bands for f in band.full}
    stripe = {alike(f.rows, f.keys, f.mask) for band in bands for f in band.stripe}
    parts = {alike(c.q1 - c.q0, c.k1 - c.k0, c.mask) for c in chunks}
    return sum(rows * keys * tokens**2 for rows, keys, mask in full if mask) + sum(
        rows * keys * height * width for rows, keys, mask in stripe for height, width, part in parts if mask or part
    )


def take_columns(spec: AttentionSpec, levels: np.ndarray) -> list[Column]:
    """Take the key frames that everybody sees out of `levels` (in place)."""
    mapped = not isinstance(spec.strategy.positions, Identity)
    found = np.flatnonzero((levels == FULL).all(0))
    if not len(found) or (mapped and len(found) > _COLUMNS):
        return []
    levels[:, found] = NONE
    if not mapped:
        cuts = np.flatnonzero(np.diff(found) > 1)
        starts, ends = found[np.concatenate([[0], cuts + 1])], found[np.concatenate([cuts, [len(found) - 1]])] + 1
        return [Column(slice(int(a), int(b)), None) for a, b in zip(starts, ends, strict=True)]
    table = spec.strategy.positions.table(spec.grid.frames)
    index = np.arange(spec.grid.frames)
    return [Column(slice(int(j), int(j) + 1), table[:, j] + j - index) for j in found]


def _walk(spec: AttentionSpec, copies: int) -> Walk:
    """Query frames in order, `copies` at a time."""
    strategy, frames = spec.strategy, spec.grid.frames
    table = strategy.positions.table(frames)
    index = np.arange(frames, dtype=np.float64)
    decay = None if strategy.decay is None else strategy.decay.table(frames)
    levels = strategy.visibility.levels(frames)
    stripe = None
    if strategy.decay is not None and not (levels == FULL).all():
        stripe = strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    steps: list[Step] = []
    place, before = index.copy(), None  # where the queries of a step stand
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
        steps.append(
            Step(
                first,
                stand - index[rows],
                stand[:, None] - position - index[None],
                None if decay is None else decay[rows],
                None if stripe is None else levels[rows],
                stripe,
            )
        )
        before = position
    return Walk(copies, steps)


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
