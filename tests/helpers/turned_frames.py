"""What RoPE does to sequences of text and frames that a test makes up."""

from __future__ import annotations

import numpy as np

from freeloc_fx.method.rope.measure import Rotations

__all__ = ["COLUMNS", "DIM", "ROWS", "TIME", "Frame", "clip", "turned"]

DIM = 24
TIME, ROWS, COLUMNS = (10.0 ** (-np.arange(4) / 4) for _ in range(3))
"""Radians a step of four pairs each."""

Frame = tuple[float, int, int]


def turned(frames: list[Frame], text: tuple[int, int] = (0, 0), stride: dict[int, int] | None = None) -> Rotations:
    """What RoPE does to text, frames at (time, rows, columns), text; `stride` of a frame's rows and columns."""
    angles = [np.zeros((text[0], DIM // 2))]
    for place, (time, height, width) in enumerate(frames):
        step = (stride or {}).get(place, 1)
        grid = np.zeros((height, width, DIM // 2))
        grid[..., :4] = time * TIME
        grid[..., 4:8] = step * np.arange(height)[:, None, None] * ROWS
        grid[..., 8:] = step * np.arange(width)[None, :, None] * COLUMNS
        angles.append(grid.reshape(-1, DIM // 2))
    angles.append(np.zeros((text[1], DIM // 2)))
    phase = np.exp(1j * np.concatenate(angles))[None]
    first = np.arange(0, DIM, 2)
    return Rotations(first, first + 1, phase, 1e-7, ())


def clip(frames: int, height: int, width: int, late: float | None = None) -> list[Frame]:
    times = [0.0 if late is None else late, *map(float, range(1, frames))]
    return [(time, height, width) for time in times]
