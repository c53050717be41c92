"""When the frames of a sequence are: evenly spaced as a clip's are, or each at a time of its own.

Everywhere that a strategy takes "latent frames of the clip" it takes either their number, for frames at 0, 1, 2, ...,
or `FrameTimes`, for frames that stand at any times in any order: a clip with keyframes or references beside it, or one
whose frames are spaced unevenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

__all__ = ["FrameTimes", "Frames", "clip_length", "count", "first_of_clip", "reach", "times"]


@dataclass(frozen=True)
class FrameTimes:
    """Frames at times of their own, in the order of the sequence.

    Args:
        times: of each frame, in latent frames of the clip, whose first frame is at 0.
        first: the place of the clip's first frame among them.
        frames: latent frames of the clip; they stand side by side from `first` on.
    """

    times: tuple[float, ...]
    first: int
    frames: int


Frames: TypeAlias = int | FrameTimes
"""A number of frames at 0, 1, 2, ..., or frames at times of their own."""


def times(frames: Frames) -> np.ndarray:
    """Give when each frame is.

    Args:
        frames: how many there are, or when they are.

    Returns:
        (frames,), in latent frames: int64 where all are whole, else float64.
    """
    if not isinstance(frames, FrameTimes):
        return np.arange(frames)
    found = np.asarray(frames.times, np.float64)
    whole = found.astype(np.int64)
    return whole if (whole == found).all() else found


def count(frames: Frames) -> int:
    """Give how many frames there are.

    Args:
        frames: how many there are, or when they are.
    """
    return len(frames.times) if isinstance(frames, FrameTimes) else frames


def first_of_clip(frames: Frames) -> int:
    """Give the place of the clip's first frame.

    Args:
        frames: how many there are, or when they are.
    """
    return frames.first if isinstance(frames, FrameTimes) else 0


def clip_length(frames: Frames) -> int:
    """Give how many latent frames the clip itself has.

    Args:
        frames: how many there are, or when they are.
    """
    return frames.frames if isinstance(frames, FrameTimes) else frames


def reach(frames: Frames) -> int:
    """Give how many evenly spaced frames would hold every distance that occurs.

    Args:
        frames: how many there are, or when they are.
    """
    if not isinstance(frames, FrameTimes):
        return frames
    return int(np.ceil(max(frames.times) - min(frames.times))) + 1
