"""Turn the temporal channel pairs of q and k by numbers of latent frames."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from freeloc_fx.method.grid import RopeLayout

__all__ = ["Turner", "angles", "rotate"]


def angles(layout: RopeLayout, frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of a turn.

    Args:
        layout: the temporal channel pairs and their frequencies.
        frames: by how many latent frames to turn, float64, any shape.

    Returns:
        (cos, sin), float64 (heads or 1, *frames.shape, pairs) each.
    """
    turn = np.asarray(layout.omega)[(slice(None), *([None] * frames.ndim))] * frames[None, ..., None]
    return torch.from_numpy(np.cos(turn)), torch.from_numpy(np.sin(turn))


def rotate(
    x: torch.Tensor, layout: RopeLayout, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Turn the temporal channel pairs of x; the other channels are copied.

    Args:
        x: (..., head_dim).
        layout: the temporal channel pairs.
        cos: broadcastable to (..., pairs); arithmetic is in its dtype.
        sin: as cos.
        out: where to write, in x's shape; None for a new tensor.

    Returns:
        The turned tensor, in x's shape and dtype; `out` where it was given.
    """
    result = x.clone() if out is None else out.copy_(x)
    first, second = _channels(layout.first), _channels(layout.second)
    a, b = x[..., first].to(cos.dtype), x[..., second].to(cos.dtype)
    result[..., first] = (a * cos - b * sin).to(x.dtype)
    result[..., second] = (a * sin + b * cos).to(x.dtype)
    return result


def _channels(index: tuple[int, ...]) -> slice | list[int]:
    """A slice where the channels are evenly spaced (a view), else the list (a gather)."""
    if len(index) == 1:
        return slice(index[0], index[0] + 1)
    step = index[1] - index[0]
    if step > 0 and all(b - a == step for a, b in pairwise(index)):
        return slice(index[0], index[-1] + 1, step)
    return list(index)


def _pairs_adjacent(x: torch.Tensor) -> bool:
    """Whether memory lets channels (0, 1), (2, 3), ... be viewed as complex numbers."""
    *outer, last = x.stride()
    return bool(last == 1 and x.storage_offset() % 2 == 0 and all(s % 2 == 0 for s in outer))


class Turner:
    """`rotate` for many turns of the same tensors: writes the temporal channels only, tables kept.

    Where the temporal pairs are interleaved and adjacent, a turn is one complex multiplication in place of ten
    operations.

    Args:
        layout: the temporal channel pairs and their frequencies.
        device: where its tables lie.
    """

    def __init__(self, layout: RopeLayout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        first, second = np.array(layout.first), np.array(layout.second)
        self.complex = bool((second == first + 1).all() and (np.diff(first) == 2).all() and first[0] % 2 == 0)
        self.channels = slice(int(first[0]), int(second[-1]) + 1)
        self._tables: dict[tuple[tuple[int, ...], bytes], torch.Tensor] = {}

    def _phase(self, turn: np.ndarray) -> torch.Tensor:
        key = (turn.shape, turn.tobytes())
        if key not in self._tables:
            cos, sin = angles(self.layout, turn)  # (heads or 1, *turn.shape, pairs)
            phase = torch.complex(cos, sin).to(torch.complex64).movedim(0, -3)
            self._tables[key] = phase.unsqueeze(-2).to(self.device)
        return self._tables[key]

    def __call__(self, x: torch.Tensor, turn: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """Turn x.

        Args:
            x: (heads, frames, tokens, head_dim).
            turn: latent frames by which each frame turns, float64 (frames,), or (copies, frames) for several versions
                at once.
            out: (heads, frames, tokens, head_dim), or (copies, heads, frames, tokens, head_dim). Its temporal channels
                are written; its other channels must be x's already.

        Returns:
            `out`.
        """
        phase = self._phase(turn)
        if self.complex and x.dtype == torch.float32 and _pairs_adjacent(x) and _pairs_adjacent(out):
            source = torch.view_as_complex(x[..., self.channels].unflatten(-1, (-1, 2)))
            torch.mul(source, phase, out=torch.view_as_complex(out[..., self.channels].unflatten(-1, (-1, 2))))
            return out
        first, second = _channels(self.layout.first), _channels(self.layout.second)
        a, b = x[..., first].to(phase.real.dtype), x[..., second].to(phase.real.dtype)
        out[..., first] = (a * phase.real - b * phase.imag).to(x.dtype)
        out[..., second] = (a * phase.imag + b * phase.real).to(x.dtype)
        return out
