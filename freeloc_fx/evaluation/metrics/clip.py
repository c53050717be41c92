"""A video as the metrics read it, and how it is read from a file. Files need the `cli` extra, imported when used."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freeloc_fx.errors import FreelocError

__all__ = ["Clip", "DependencyError", "MetricError", "prompt_beside", "read_clip", "read_size", "require"]


log = logging.getLogger("freeloc_fx")


_ESTIMATED = (".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob", ".h264", ".264", ".h265", ".hevc")
"""Files that do not say how long they are: ffmpeg estimates it."""


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
        MetricError: no such file, a folder, not a video, or one that is cut short. Where a file does not say exactly
            how long its video is (it has sound, another rate at times, or no index), fewer frames are logged.
        DependencyError: imageio-ffmpeg or Pillow is missing.
    """
    path = _file(path)
    read = _read_gif if path.suffix.lower() == ".gif" else _read_ffmpeg
    frames, found = read(path)
    return Clip(frames, found if fps is None else fps, str(path))


def read_size(path: str | os.PathLike[str], enough: int) -> tuple[int, int, int]:
    """Find out how large a video is without having it in memory, unless it may be shorter than is enough.

    Args:
        path: as of `read_clip`.
        enough: frames; where the file says that there are clearly as many, that is believed.

    Returns:
        Frames, height and width.

    Raises:
        MetricError: as `read_clip`.
        DependencyError: as `read_clip`.
    """
    path = _file(path)
    if path.suffix.lower() == ".gif":
        image_module = require("PIL.Image", '"freeloc_fx[cli]"', "reading a gif")
        _check_gif(path)
        try:
            with image_module.open(path) as image:
                return image.n_frames, image.height, image.width
        except (OSError, ValueError, SyntaxError) as error:
            raise MetricError(f"{path}: not a gif that can be read ({error})") from error
    reader, facts = _opened(path)
    reader.close()
    stated, tolerance = _stated(facts)
    if stated - tolerance >= enough:
        width, height = facts["size"]
        return int(stated - tolerance), height, width
    frames, height, width, _ = read_clip(path).frames.shape
    return frames, height, width


def _file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there."""
    path = Path(path)
    if path.is_dir():
        raise MetricError(f"{path}: expected a video file, found a folder")
    if not path.is_file():
        raise MetricError(f"{path}: no such file")
    return path


def _check_gif(path: Path) -> None:
    """Refuse a gif without its last byte: Pillow takes the frames before the cut for all there are."""
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(max(0, path.stat().st_size - 1024))
        end = file.read().rstrip(b"\0\r\n \x1a")
    if start in (b"GIF87a", b"GIF89a") and not end.endswith(b";"):
        raise MetricError(f"{path}: expected the mark that ends a gif, found none: the file is cut short")


def _read_gif(path: Path) -> tuple[np.ndarray, float]:
    image_module = require("PIL.Image", '"freeloc_fx[cli]"', "reading a gif")
    sequence = require("PIL.ImageSequence", '"freeloc_fx[cli]"', "reading a gif")
    frames, lasts = [], []
    _check_gif(path)
    try:
        with image_module.open(path) as image:
            for frame in sequence.Iterator(image):
                lasts.append(float(frame.info.get("duration", 100)) or 100.0)  # ms; viewers take 0 as a tenth
                frames.append(np.asarray(frame.convert("RGB")))
    except (OSError, ValueError, SyntaxError) as error:
        raise MetricError(f"{path}: not a gif that can be read ({error})") from error
    return np.stack(frames), 1000 * len(lasts) / sum(lasts)


def _read_ffmpeg(path: Path) -> tuple[np.ndarray, float]:
    reader, facts = _opened(path)
    (width, height), fps = facts["size"], facts["fps"]
    try:
        frames = [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]
    except (OSError, RuntimeError, ValueError) as error:
        raise MetricError(f"{path}: not a video that ffmpeg can decode") from error
    finally:
        reader.close()
    if not frames or not fps > 0:
        raise MetricError(f"{path}: not a video: expected frames and a frame rate, found {len(frames)} at {fps} fps")
    _check_count(path, facts, len(frames))
    return np.stack(frames), fps


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """The frames of a video to come, and what ffmpeg says of it."""
    ffmpeg = require("imageio_ffmpeg", '"freeloc_fx[cli]"', "reading a video")
    _check_bytes(path)
    _check_packets(path)
    reader = ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    try:
        facts = dict(next(reader))
        facts["size"] = tuple(map(int, facts["size"]))
        facts["fps"], facts["duration"] = float(facts["fps"]), float(facts.get("duration") or 0.0)
    except (OSError, RuntimeError, StopIteration, KeyError, ValueError, TypeError) as error:
        reader.close()
        raise MetricError(f"{path}: not a video that ffmpeg can decode") from error
    return reader, facts


def _check_bytes(path: Path) -> None:
    """Refuse an .mp4, .mov or .avi with fewer bytes than it says: with its index at the front it opens all the same."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if at == 0 and head[:4] == b"RIFF":
                length, kind = 8 + int.from_bytes(head[4:8], "little"), b"mdat"
            elif at == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return
            elif length == 1:
                length = int.from_bytes(head[8:], "big")
            if kind == b"mdat" and at + length > size:
                raise MetricError(f"{path}: expected {at + length} bytes, found {size}: the file is cut short")
            if length < 8 or head[:4] == b"RIFF":  # the last box, or bytes that are none
                return
            at += length


def _check_packets(path: Path) -> None:
    """Refuse a transport stream (.ts, .m2ts) that ends inside a packet. One cut between two packets looks whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(5 * 192)
        for packet, at in ((188, 0), (192, 4)):  # a disc's packets have four bytes of time in front
            marks = head[at::packet]
            if len(marks) > 2 and set(marks) == {0x47} and size % packet:
                file.seek(size - size % packet)
                if file.read().strip(b"\0"):
                    raise MetricError(
                        f"{path}: expected whole packets of {packet} bytes, found {size % packet} bytes of the last: "
                        "the file is cut short"
                    )


def _stated(facts: dict[str, Any]) -> tuple[float, float]:
    """Frames that the file says it has, and how far that may be off: ffmpeg rounds duration and rate to hundredths."""
    duration, fps = facts["duration"], facts["fps"]
    return duration * fps, 2 + 0.01 * fps + 0.006 * duration


def _check_count(path: Path, facts: dict[str, Any], found: int) -> None:
    """Refuse a video of which fewer frames were decoded than it says it has, or say so where it need not be exact."""
    stated, tolerance = _stated(facts)
    if stated - found <= tolerance:
        return
    words = f"{path}: expected {stated:.0f} frames ({facts['duration']:g} s at {facts['fps']:g} fps), found {found}"
    why = None
    if path.suffix.lower() in _ESTIMATED:
        why = "its length is an estimate"
    elif facts.get("audio_codec"):
        why = "its sound may be longer"
    elif not _is_constant(path):
        why = "its frames last for different times"
    if why is None:
        raise MetricError(f"{words}: the file is cut short or damaged")
    log.warning("%s: the file is cut short or damaged, or %s", words, why)


def _is_constant(path: Path) -> bool:
    """Whether ffmpeg gives a video the same rate on average ("fps") as from frame to frame ("tbr")."""
    program = require("imageio_ffmpeg", '"freeloc_fx[cli]"', "reading a video").get_ffmpeg_exe()
    said = subprocess.run([program, "-i", str(path)], capture_output=True, check=False, stdin=subprocess.DEVNULL).stderr
    rates = re.search(rb" ([\d.]+k?) fps, ([\d.]+k?) tbr", said)
    return rates is None or rates[1] == rates[2]


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
