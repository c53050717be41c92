"""A video file that grows while its clip is decoded, so that no copy of the clip is ever held.

with streamed("long.mp4", frames=1281, height=480, width=832) as film:
    video = generate(pipe, prompt, frames=1281, on_frames=film.add)  # video.frames holds nothing
sheet_of("long.png", film.chosen)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from freeloc_fx.files import replacing

from .encoding import GifWriter, Mp4Writer, VideoError
from .video import VIDEOS, check_output, check_rate, spread

__all__ = ["Film", "streamed"]

CELLS = 32
"""Frames that are picked for a contact sheet."""


class Film:
    """Takes frames for a video file, in order.

    Args:
        writer: of the file.
        frames: that are to come.
        size: (height, width) in pixels.

    Attributes:
        chosen: index -> frame, uint8 (height, width, 3): evenly spaced ones, the first and the last among them.
    """

    def __init__(self, writer: Mp4Writer | GifWriter, frames: int, size: tuple[int, int]) -> None:
        self.writer, self.frames, self.size = writer, frames, size
        self._wanted = spread(frames, CELLS)
        self.chosen: dict[int, np.ndarray] = {}

    def add(self, clip: np.ndarray) -> None:
        """Append frames.

        Args:
            clip: uint8 (frames, height, width, 3).

        Raises:
            VideoError: they are of another size or kind, or more than were announced.
            OSError: the encoder has failed.
        """
        first, expected = self.writer.count, (*self.size, 3)
        if clip.dtype != np.uint8 or clip.shape[1:] != expected:
            raise VideoError(
                f"frames {first} to {first + len(clip) - 1} of {self.frames}: expected uint8 {expected}, found "
                f"{clip.dtype} {clip.shape[1:]}"
            )
        if first + len(clip) > self.frames:
            raise VideoError(f"expected the video's {self.frames} frames, found {first + len(clip)} so far")
        for index in self._wanted:
            if first <= index < first + len(clip):
                self.chosen[index] = clip[index - first].copy()
        self.writer.add(clip)


@contextmanager
def streamed(
    path: str | os.PathLike[str], *, frames: int, height: int, width: int, fps: float = 16.0, crf: int = 17
) -> Iterator[Film]:
    """Write a video chunk by chunk. The file appears whole when the context ends well, or not at all.

    Args:
        path: ends in .mp4, or in .gif, whose frames wait on the disk until all are there.
        frames: that will be given.
        height: of a frame in pixels.
        width: of a frame in pixels.
        fps: frames per second.
        crf: x264's constant rate factor, 0 (lossless) to 51; a .gif has none.

    Yields:
        What takes the frames.

    Raises:
        VideoError: see `check_output` and `check_rate`; or fewer frames came than were announced.
        WriteError: the video could not be written whole; what was there is untouched.
    """
    path = check_output(path, VIDEOS)
    check_rate(path, fps)

    def opened(file: Path) -> Mp4Writer | GifWriter:
        if path.suffix.lower() == ".gif":
            return GifWriter(file, height, width, fps)
        return Mp4Writer(file, height, width, fps, crf)

    with replacing(path) as temporary, opened(temporary) as writer:
        film = Film(writer, frames, (height, width))
        yield film
        if writer.count != frames:
            raise VideoError(f"{path}: expected {frames} frames, found {writer.count}")
