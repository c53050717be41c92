"""A video as the metrics read it, and how it is read from a file. Files need the `cli` extra, imported when used."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freeloc_fx.errors import FreelocError

__all__ = ["Clip", "DependencyError", "MetricError", "prompt_beside", "read_clip", "require"]


class MetricError(FreelocError, ValueError):
    """A video cannot be measured: the file, its frames or an argument is not what is needed."""


class DependencyError(FreelocError, ImportError):
    """A metric needs a package that is not installed; the message says how to install it."""


def require(module: str, install: str, purpose: str) -> Any:
    """Import a module that is not a dependency of the core.

    Args:
        module: its name.
        install: what pip installs for it.
        purpose: what needs it, for the message.

    Returns:
        The module.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(f"{purpose} needs {module.split('.')[0]} ({error}): pip install {install}") from error


@dataclass(frozen=True)
class Clip:
    """A video in memory.

    Args:
        frames: uint8 RGB, (video frames, height, width, 3).
        fps: frames per second, above 0 and at most 1000.
        name: what errors and tables call it.

    Raises:
        MetricError: frames of another shape or dtype, or a frame rate out of range.
    """

    frames: np.ndarray
    fps: float
    name: str = "video"

    def __post_init__(self) -> None:
        shape, dtype = np.shape(self.frames), np.asarray(self.frames).dtype
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape or dtype != np.uint8:
            raise MetricError(
                f"{self.name}: expected uint8 frames of shape (frames, height, width, 3), found {dtype} {shape}"
            )
        if not 0 < self.fps <= 1000:
            raise MetricError(f"{self.name}: expected a frame rate above 0 and at most 1000, found {self.fps}")

    @classmethod
    def of(cls, video: Clip | np.ndarray | str | os.PathLike[str], fps: float | None = None) -> Clip:
        """Make a clip of whatever holds a video.

        Args:
            video: an array (uint8, or floats in [0, 1], which are clipped), a file, or a clip.
            fps: frames per second; for a file it replaces the file's own. An array without one is taken as 16 fps.

        Returns:
            The clip.

        Raises:
            MetricError: as `read_clip`; a wrong shape or dtype; NaN or infinity.
        """
        if isinstance(video, (str, os.PathLike)):
            return read_clip(video, fps)
        if isinstance(video, Clip):
            return video if fps is None else cls(video.frames, fps, video.name)
        frames = np.asarray(video)
        if np.issubdtype(frames.dtype, np.floating):
            if not np.isfinite(frames).all():
                raise MetricError("video: the frames hold NaN or infinity")
            frames = (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)
        return cls(frames, 16.0 if fps is None else fps)


def read_clip(path: str | os.PathLike[str], fps: float | None = None) -> Clip:
    """Read a whole video file into memory.

    Args:
        path: anything ffmpeg decodes; .gif is read with its own frame durations, whose mean gives the rate.
        fps: replaces the file's frame rate.

    Raises:
        MetricError: no such file, a folder, or not a video.
        DependencyError: imageio-ffmpeg or Pillow is missing.
    """
    path = Path(path)
    if path.is_dir():
        raise MetricError(f"{path}: expected a video file, found a folder")
    if not path.is_file():
        raise MetricError(f"{path}: no such file")
    read = _read_gif if path.suffix.lower() == ".gif" else _read_ffmpeg
    frames, found = read(path)
    return Clip(frames, found if fps is None else fps, str(path))


def _read_gif(path: Path) -> tuple[np.ndarray, float]:
    image_module = require("PIL.Image", '"freeloc_fx[cli]"', "reading a gif")
    sequence = require("PIL.ImageSequence", '"freeloc_fx[cli]"', "reading a gif")
    frames, lasts = [], []
    try:
        with image_module.open(path) as image:
            for frame in sequence.Iterator(image):
                lasts.append(float(frame.info.get("duration", 100)) or 100.0)  # ms; viewers take 0 as a tenth
                frames.append(np.asarray(frame.convert("RGB")))
    except (OSError, ValueError, SyntaxError) as error:
        raise MetricError(f"{path}: not a gif that can be read ({error})") from error
    return np.stack(frames), 1000 * len(lasts) / sum(lasts)


def _read_ffmpeg(path: Path) -> tuple[np.ndarray, float]:
    ffmpeg = require("imageio_ffmpeg", '"freeloc_fx[cli]"', "reading a video")
    reader = ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    try:
        facts = next(reader)
        width, height = facts["size"]
        fps = float(facts["fps"])
        frames = [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]
    except (OSError, RuntimeError, StopIteration, KeyError, ValueError) as error:
        raise MetricError(f"{path}: not a video that ffmpeg can decode") from error
    finally:
        reader.close()
    if not frames or not fps > 0:
        raise MetricError(f"{path}: not a video: expected frames and a frame rate, found {len(frames)} at {fps} fps")
    return np.stack(frames), fps


def prompt_beside(path: str | os.PathLike[str]) -> str | None:
    """Find the prompt in the JSON report beside a video (same name, .json).

    The report holds it as "prompt" or under "settings", as `freeloc compare` writes it, and says under "file" whose it
    is. out.mp4 and out.gif share a name, so the suffix has to be the video's; the rest may have been renamed since. One
    that does not say it is taken as this video's.

    Args:
        path: the video.

    Returns:
        The prompt; None where there is no report or no prompt in it.

    Raises:
        MetricError: the report is there and is not JSON, or is that of another video.
    """
    report = Path(path).with_suffix(".json")
    if not report.is_file():
        return None
    try:
        data = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MetricError(f"{report}: expected a JSON report beside the video, found {error}") from error
    of = data.get("file") if isinstance(data, dict) else None
    if isinstance(of, str) and Path(of).suffix.lower() != Path(path).suffix.lower():
        raise MetricError(f"{report}: expected the report of {Path(path).name}, found that of {of}")
    for place in (data, data.get("settings") if isinstance(data, dict) else None):
        if isinstance(place, dict) and isinstance(place.get("prompt"), str):
            return str(place["prompt"])
    return None
