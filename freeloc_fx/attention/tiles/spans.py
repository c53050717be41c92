"""A spec as tables over spans of a sequence: latent frames, and text at either end.

Between two spans visibility, distance and decay are one, so a lowering that goes through pairs of spans needs nothing
else: which keys a query sees there and by which angles it turns to stand at its remapped distance from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import FULL, NONE, STRIPE

__all__ = ["ROWS", "Spans", "make_spans"]


ROWS = 16
"""Query rows of a tile, as `R` in tile_vectors.h."""


@dataclass(frozen=True, eq=False)
class Spans:
    """The tables of one spec: CPU tensors, contiguous. S spans, T turns, n tokens of a latent frame.

    Args:
        start: first token of each span, and the number of tokens, int64 (S + 1,).
        level: visibility, query span by key span, int8 (S, S).
        phase: which turn a query makes towards a key span, int32 (S, S); -1 for none.
        decay: factor on positive scores, float32 (S, S); None for none.
        cosine: of each turn, float32 (heads or 1, T, pairs).
        sine: of each turn, float32 (heads or 1, T, pairs).
        first: first channel of each temporal pair, int32 (pairs,).
        second: second channel of each temporal pair, int32 (pairs,).
        bits: what the rows of each tile of a frame see under STRIPE, int16 (tiles of a frame, n): bit r is set where
            row r of the tile sees the token. None where nothing is STRIPE.
        frame: n.
    """

    start: torch.Tensor
    level: torch.Tensor
    phase: torch.Tensor
    decay: torch.Tensor | None
    cosine: torch.Tensor
    sine: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    bits: torch.Tensor | None
    frame: int


def make_spans(spec: AttentionSpec) -> Spans:
    """Make the tables of one spec.

    Args:
        spec: the strategy, grid and RoPE.

    Returns:
        The tables, in which text at either end of the sequence is a span of its own.
    """
    grid, strategy = spec.grid, spec.strategy
    before, after = int(grid.text_first > 0), int(grid.text_last > 0)
    lengths = [grid.text_first] * before + [*grid.sizes] + [grid.text_last] * after
    count, video = len(lengths), slice(before, before + grid.places)
    level = np.full((count, count), FULL, np.int8)
    level[video, video] = spec.levels()
    decay = None
    if strategy.decay is not None:
        table = np.ones((count, count), np.float32)
        table[video, video] = spec.decay()
        decay = torch.from_numpy(table)
    phase, cosine, sine = _turns(spec, level, video)
    return Spans(
        torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        torch.from_numpy(level),
        torch.from_numpy(phase),
        decay,
        torch.from_numpy(cosine),
        torch.from_numpy(sine),
        torch.tensor(spec.rope.first, dtype=torch.int32),
        torch.tensor(spec.rope.second, dtype=torch.int32),
        _bits(spec) if (level == STRIPE).any() else None,
        grid.tokens,
    )


def _turns(spec: AttentionSpec, level: np.ndarray, video: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which turn a query of each span makes towards each key span, and the turns: phase, cosine, sine as in `Spans`.

    The model has turned a pair of channels by `had` = omega (i - j) between query and key; the strategy wants `wants` =
    omega' P. The query turns by the difference, whichever frequencies or positions changed.
    """
    index = spec.grid.times
    had, wants = np.zeros(level.shape), np.zeros(level.shape)
    had[video, video], wants[video, video] = index[:, None] - index, spec.table()
    text_turn = spec.text_turn()
    stand = index if text_turn is None else index + text_turn  # where video stands for text, which is at 0
    text = np.ones(len(level), bool)
    text[video] = False
    had[video, text], wants[video, text] = index[:, None], stand[:, None]
    had[text, video], wants[text, video] = -index, -stand
    before, after = np.asarray(spec.rope.omega), np.asarray(spec.effective_rope.omega)
    if np.array_equal(before, after):
        had, wants = np.zeros(level.shape), wants - had  # only the difference counts: fewer turns
    turns, phase = np.unique(np.where(level == NONE, 0, had + 1j * wants), return_inverse=True)
    angle = after[:, None] * turns.imag[:, None] - before[:, None] * turns.real[:, None]
    phase = phase.reshape(level.shape).astype(np.int32)
    phase[~angle.any((0, 2))[phase]] = -1
    return phase, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _bits(spec: AttentionSpec) -> torch.Tensor:
    """What the rows of each tile of a frame see under STRIPE, as in `Spans`."""
    n = spec.grid.tokens
    tiles = -(-n // ROWS)
    visible = np.zeros((tiles * ROWS, n), bool)
    visible[:n] = spec.strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    places = np.arange(ROWS, dtype=np.uint16)[:, None]
    bits = (visible.reshape(tiles, ROWS, n).astype(np.uint16) << places).sum(1, dtype=np.uint16)
    return torch.from_numpy(bits.view(np.int16))
