"""Encode a clip into a file, and decode the file again: an encoder that fails late need not say so.

What these raise as OSError, `files.replacing` says of the file that was to be made, with what is free on its disk.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from freeloc_fx.errors import FreelocError

__all__ = ["GifWriter", "Mp4Writer", "VideoError", "need", "write_gif", "write_mp4"]


class VideoError(FreelocError, ValueError):
    """A video or sheet cannot be written: a suffix, folder, array or optional dependency is not what is needed."""


def need(module: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: its dotted name.

    Returns:
        The module.

    Raises:
        VideoError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise VideoError(
            f'{module.split(".")[0]} is not installed; video output needs: pip install "freeloc_fx[cli]"'
        ) from error


def write_gif(path: Path, clip: np.ndarray, fps: float) -> None:
    """Write a gif and read it back: Pillow's encoder may lose the end of a frame on a full disk without a word.

    Args:
        path: the file.
        clip: (frames, height, width, 3) uint8.
        fps: frames per second, rounded to 1/100 s a frame.

    Raises:
        OSError: it is not whole.
        VideoError: Pillow is missing.
    """
    image = need("PIL.Image")
    images = map(image.fromarray, clip)  # the encoder holds all of them, in 256 colours
    # Ends rounded, not durations: 16 fps is 6.25 hundredths, and a rounded 6 would run 4 % fast.
    ends = np.maximum.accumulate(np.round(np.arange(1, len(clip) + 1) * 100 / fps)).astype(int)
    lasts = np.maximum(np.diff(ends, prepend=0), 1) * 10
    next(images).save(path, "GIF", save_all=True, append_images=images, duration=lasts.tolist(), loop=0, disposal=1)
    total = 0
    try:
        with image.open(path) as made:
            count, size = made.n_frames, made.size
            for index in range(count):
                made.seek(index)
                made.load()
                total += made.info.get("duration", 0)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise OSError(f"the gif that was written cannot be read back ({error})") from error
    # Pillow joins equal frames in one that lasts longer, and gives a single frame no duration.
    wanted = int(lasts.sum()) if count > 1 else total
    if size != clip.shape[2:0:-1] or total != wanted:
        raise OSError(
            f"{total} ms of {size[0]}x{size[1]} pixels of {wanted} ms of {clip.shape[2]}x{clip.shape[1]} in the gif"
        )


def write_mp4(path: Path, clip: np.ndarray, fps: float, crf: int) -> None:
    """Hand a clip to ffmpeg, then decode what it wrote.

    Args:
        path: the file.
        clip: (frames, height, width, 3) uint8.
        fps: frames per second.
        crf: x264's constant rate factor.

    Raises:
        OSError: ffmpeg failed, or the video is not whole; with what ffmpeg said.
        VideoError: imageio-ffmpeg is missing.
    """
    with Mp4Writer(path, clip.shape[1], clip.shape[2], fps, crf) as writer:
        for frame in clip:  # a pipe takes a frame at a time anyway, and a padded copy of all would be as large as they
            writer.add(frame[None])


class GifWriter:
    """A gif that is given piece by piece; its frames wait in a file without a name, as the encoder wants all of them.

    Args:
        path: the file.
        height: pixels.
        width: pixels.
        fps: frames per second, rounded to 1/100 s a frame.

    Attributes:
        count: frames so far.

    Raises:
        OSError: on leaving: the gif is not whole.
        VideoError: Pillow is missing.
    """

    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        need("PIL.Image")
        self._path, self._size, self._fps = path, (height, width), fps
        self._frames = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  it lives as long as the writer
        self.count = 0

    def add(self, clip: np.ndarray) -> None:
        """Append frames.

        Args:
            clip: (frames, height, width, 3) uint8.

        Raises:
            OSError: there is no room for them.
        """
        self._frames.write(np.ascontiguousarray(clip).reshape(-1).data)
        self.count += len(clip)

    def __enter__(self) -> GifWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._frames:
            if kind is None and self.count:
                self._frames.flush()
                shape = (self.count, *self._size, 3)
                write_gif(self._path, np.memmap(self._frames, np.uint8, "r", shape=shape), self._fps)


class Mp4Writer:
    """A video that is handed to ffmpeg piece by piece; leaving the context decodes what was written.

    Args:
        path: the file.
        height: pixels; yuv420p stores colour for 2x2 pixels, so an odd side is padded by a pixel.
        width: pixels.
        fps: frames per second.
        crf: x264's constant rate factor.

    Attributes:
        count: frames so far.

    Raises:
        OSError: on leaving: ffmpeg failed, or the video is not whole; with what ffmpeg said.
        VideoError: imageio-ffmpeg is missing.
    """

    def __init__(self, path: Path, height: int, width: int, fps: float, crf: int) -> None:
        self._ffmpeg = need("imageio_ffmpeg")
        self._name = os.path.abspath(path)  # a colon in a relative path would name a protocol
        self._odd = (height % 2, width % 2)
        self._size = (width + width % 2, height + height % 2)
        self.count = 0
        # imageio-ffmpeg's own writer passes over ffmpeg's exit status and its messages.
        command = [self._ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", "{}x{}".format(*self._size), "-r", str(Fraction(fps).limit_denominator()), "-i", "-", "-an"]
        command += ["-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf), "-preset", "medium"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  a pipe that nobody reads would stop it
        self._process = subprocess.Popen(
            [*command, "-movflags", "+faststart", self._name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is ours; ffmpeg ends with its input
        )

    def add(self, clip: np.ndarray) -> None:
        """Append frames.

        Args:
            clip: (frames, height, width, 3) uint8.

        Raises:
            OSError: ffmpeg has ended, with what it said.
        """
        if any(self._odd):
            clip = np.pad(clip, ((0, 0), (0, self._odd[0]), (0, self._odd[1]), (0, 0)), mode="edge")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(clip).reshape(-1).data)
        except BrokenPipeError:
            self._ended()
            raise
        self.count += len(clip)

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None:
                self._process.kill()
                self._process.wait()
                return
            said = self._ended()
            self._check(said)
        finally:
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            self._said.close()

    def _ended(self) -> str:
        """Wait for ffmpeg; returns what it said."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        code = self._process.wait()
        self._said.seek(0)
        said = _words(self._said.read().decode("utf-8", "replace"))
        if code:
            how = f"status {code}" if code > 0 else f"signal {-code}"
            raise OSError(f"ffmpeg ended with {how} ({said or 'without a message'})")
        return said

    def _check(self, said: str) -> None:
        """Decode the file again."""
        width, height = self._size
        try:
            reader = self._ffmpeg.read_frames(self._name)
            size = tuple(next(reader)["size"])
            reader.close()
            found, _ = self._ffmpeg.count_frames_and_secs(self._name)
        except (OSError, RuntimeError, StopIteration, KeyError, ValueError) as error:
            why = said or _words(str(error).splitlines()[-1] if str(error).strip() else type(error).__name__)
            raise OSError(f"the video cannot be decoded ({why})") from error
        if (found, *size) != (self.count, width, height):
            raise OSError(
                f"{found} frames of {size[0]}x{size[1]} pixels of {self.count} of {width}x{height} in the video"
                + (f" ({said})" if said else "")
            )


def _words(said: str) -> str:
    """What ffmpeg said, in a line: without the addresses of its parts, each message once."""
    lines = [re.sub(r"^\[[^\]]* @ 0x[0-9a-f]+\] ", "", line.strip()) for line in said.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("Last message repeated")))
