"""Keys turned to changing positions in one buffer: only the temporal channels of the frames that move are written."""

from __future__ import annotations

import numpy as np
import torch

from ..rope import Turner

__all__ = ["TurnedKeys", "moves"]


def moves(before: np.ndarray, after: np.ndarray, gap: int) -> list[slice]:
    """The frames on which two turns (copies, frames) differ, as few slices; up to `gap` equal frames between two moved
    ones move along. NaN in `before` counts as different."""
    changed = np.flatnonzero((before != after).any(0))
    if not len(changed):
        return []
    steps = np.diff(changed)
    if len(changed) > 2 and steps[0] > gap + 1 and (steps == steps[0]).all():
        return [slice(int(changed[0]), int(changed[-1]) + 1, int(steps[0]))]
    cuts = np.flatnonzero(steps > gap + 1)
    starts = changed[np.concatenate([[0], cuts + 1])]
    ends = changed[np.concatenate([cuts, [len(changed) - 1]])] + 1
    return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


class TurnedKeys:
    """`copies` versions of keys (heads, frames, tokens, head_dim), each frame turned by a number of latent frames."""

    def __init__(self, keys: torch.Tensor, turner: Turner, copies: int = 1) -> None:
        self.keys, self.turner = keys, turner
        self._buffer: torch.Tensor | None = None
        self._turn = np.full((copies, keys.shape[1]), np.nan)
        self._gap = max(0, 128 // keys.shape[2] - 1)

    def to(self, turn: np.ndarray) -> torch.Tensor:
        """Keys turned by `turn` (copies, frames): (copies, heads, frames, tokens, head_dim), a buffer that the next
        call writes again. A single copy that does not turn at all is the keys themselves."""
        if len(turn) == 1 and not turn.any():
            return self.keys[None]
        if self._buffer is None:
            self._buffer = self.keys.new_empty((len(self._turn), *self.keys.shape))
            self._buffer.copy_(self.keys.expand_as(self._buffer))
        for frames in moves(self._turn[: len(turn)], turn, self._gap):
            self.turner(self.keys[:, frames], turn[:, frames], self._buffer[: len(turn), :, frames])
        self._turn[: len(turn)] = turn
        return self._buffer[: len(turn)]
