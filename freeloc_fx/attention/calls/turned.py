"""Keys turned to changing positions in one buffer: only the temporal channels of the frames that move are written."""

from __future__ import annotations

import numpy as np
import torch

from freeloc_fx.attention.rotate import Turner

__all__ = ["TurnedKeys", "changed"]


def changed(before: np.ndarray, after: np.ndarray, gap: int) -> list[slice]:
    """The latent frames on which two turns differ, as few slices.

    Args:
        before: turns (copies, frames) in latent frames; NaN counts as different from everything.
        after: turns of the same shape.
        gap: up to so many equal frames between two that differ are included, so that a slice need not end.

    Returns:
        Slices of frames that hold every frame on which the turns differ; none where they are equal.
    """
    found = np.flatnonzero((before != after).any(0))
    if not len(found):
        return []
    gaps = np.diff(found)
    if len(found) > 2 and gaps[0] > gap + 1 and (gaps == gaps[0]).all():
        return [slice(int(found[0]), int(found[-1]) + 1, int(gaps[0]))]
    cuts = np.flatnonzero(gaps > gap + 1)
    starts = found[np.concatenate([[0], cuts + 1])]
    ends = found[np.concatenate([cuts, [len(found) - 1]])] + 1
    return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


class TurnedKeys:
    """Versions of keys in which each latent frame is turned by a number of latent frames.

    Args:
        keys: (heads, frames, tokens, head_dim), left as they are.
        turner: turns them.
        copies: how many versions there are at a time.
    """

    def __init__(self, keys: torch.Tensor, turner: Turner, copies: int = 1) -> None:
        self.keys, self.turner = keys, turner
        self._buffer: torch.Tensor | None = None
        self._turn = np.full((copies, keys.shape[1]), np.nan)
        self._gap = max(0, 128 // keys.shape[2] - 1)

    def to(self, turn: np.ndarray) -> torch.Tensor:
        """Turn the keys.

        Args:
            turn: latent frames by which each frame of each version turns, float64 (copies, frames).

        Returns:
            (copies, heads, frames, tokens, head_dim): a buffer that the next call writes again. A single version that
            does not turn at all is the keys themselves.
        """
        if len(turn) == 1 and not turn.any():
            return self.keys[None]
        if self._buffer is None:
            self._buffer = self.keys.new_empty((len(self._turn), *self.keys.shape))
            self._buffer.copy_(self.keys.expand_as(self._buffer))
        for frames in changed(self._turn[: len(turn)], turn, self._gap):
            self.turner(self.keys[:, frames], turn[:, frames], self._buffer[: len(turn), :, frames])
        self._turn[: len(turn)] = turn
        return self._buffer[: len(turn)]
