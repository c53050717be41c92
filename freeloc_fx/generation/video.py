"""Write videos and contact sheets. Needs the `cli` extra (imageio with imageio-ffmpeg, Pillow), imported when used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from freeloc_fx.files import folder_of, replacing
from freeloc_fx.method.checks import is_whole

from .encoding import VideoError, need, write_gif, write_mp4
from .lettering import CAPTION, GAP, PAPER, caption, lettered, stack, text_width, with_texts

__all__ = [
    "SHEETS",
    "VIDEOS",
    "VideoError",
    "check_folder",
    "check_output",
    "check_rate",
    "comparison_sheet",
    "contact_sheet",
    "sheet_of",
    "side_by_side",
    "spread",
    "write_video",
]


VIDEOS = (".mp4", ".gif")


SHEETS = (".png",)


def check_output(path: str | os.PathLike[str], suffixes: Sequence[str] | None = VIDEOS) -> Path:
    """Check that a file can be written, before an hour is spent on what goes into it.

    Args:
        path: of the file.
        suffixes: endings that it may have, in lower case; None: any.

    Returns:
        The path.

    Raises:
        VideoError: the suffix is another, the folder does not exist or cannot be written to, or `path` is itself a
            folder.
    """
    path = Path(path)
    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise VideoError(f"{path}: expected a file name ending in {' or '.join(suffixes)}, found {path.suffix!r}")
    folder = folder_of(path)
    if not folder.is_dir():
        raise VideoError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise VideoError(f"{path} is a folder; expected the name of a file")
    _check_writable(folder, f"{path}: the folder {folder}")
    return path


def check_rate(path: str | os.PathLike[str], fps: float) -> None:
    """Check that a video of this kind can be so quick: a gif counts in hundredths of a second.

    Args:
        path: of the video.
        fps: frames per second.

    Raises:
        VideoError: it is no number above 0, more than 240, or more than the 100 of a gif.
    """
    if not 0 < fps <= 240:
        raise VideoError(f"fps={fps} must be above 0 and at most 240")
    if Path(path).suffix.lower() == ".gif" and fps > 100:
        raise VideoError(f"{path}: a gif has at most 100 frames per second, found fps={fps:g}; expected a .mp4 file")


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Check that a folder is there, or can be made, and that files can be written into it.

    Args:
        path: of the folder.

    Returns:
        The path.

    Raises:
        VideoError: it, or a part of the path to it, is a file, or cannot be written to.
    """
    path = Path(path)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists() or folder.is_symlink())
    if not there.is_dir():
        raise VideoError(f"{path}: expected a folder, or a path at which one can be made; {there} is a file")
    _check_writable(there, f"{path}: the folder {there}")
    return path


def _check_writable(folder: Path, words: str) -> None:
    """Refuse a folder in which no file can be made."""
    try:
        # Asking the permission bits is not enough: root passes them on a read-only disk.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VideoError(f"{words} cannot be written to ({error.strerror})") from error


def write_video(
    path: str | os.PathLike[str], frames: np.ndarray, fps: float = 16.0, scale: int = 1, crf: int = 17
) -> Path:
    """Write a clip as .mp4 (H.264, yuv420p, constant quality) or .gif (256 colours a frame, loops forever).

    The file appears whole or not at all: it is written beside `path` under a temporary name, decoded to see that it is
    whole, and then renamed.

    Args:
        path: the suffix picks the format.
        frames: (frames, height, width, 3) RGB, floats in [0, 1] (clipped) or uint8.
        fps: frames per second; a gif rounds each frame to 1/100 s and has at most 100.
        scale: whole factor to enlarge by, each pixel becoming a square; use 4 or more for 64-pixel clips, whose
            colours yuv420p would otherwise smear over 2x2 pixels. An odd side is padded by a pixel for .mp4.
        crf: x264's constant rate factor, 0 (lossless) to 51; a .gif has none.

    Returns:
        The path.

    Raises:
        VideoError: see `check_output`; also where the array, scale, fps or crf is wrong, or an optional dependency is
            missing.
        WriteError: the video could not be written whole, for example on a full disk; what was there is untouched.
    """
    path = check_output(path)
    if not is_whole(crf, 0, 51):
        raise VideoError(f"crf={crf!r} must be a whole number from 0 to 51")
    clip = _enlarge(_bytes(frames), scale)
    check_rate(path, fps)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".gif":
            write_gif(temporary, clip, fps)
        else:
            write_mp4(temporary, clip, fps, crf)
    return path


def contact_sheet(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    columns: int = 8,
    rows: int | None = None,
    labels: bool = True,
    scale: int = 2,
    fps: float | None = None,
    texts: Mapping[int, str] | None = None,
) -> Path:
    """Write a PNG grid of evenly spaced frames, the first and the last among them.

    Args:
        path: ends in .png.
        frames: (frames, height, width, 3) RGB, floats in [0, 1] or uint8.
        columns: cells in a row.
        rows: rows; None shows every frame, up to 4 rows.
        labels: write the frame's index under it, and with `fps` its time in seconds.
        scale: whole factor to enlarge each frame by.
        fps: frames per second, for the times; None: no times.
        texts: frame at which each text begins, rising from 0 -> the text, written under its frames; None for none.

    Returns:
        The path.

    Raises:
        VideoError: as in `write_video`.
        WriteError: as in `write_video`.
    """
    path = check_output(path, SHEETS)
    clip = _bytes(frames)
    if rows is None:
        rows = min(4, -(-len(clip) // max(columns, 1)))
    if columns < 1 or rows < 1:
        raise VideoError(f"columns={columns} and rows={rows} must be at least 1")
    chosen = {index: clip[index] for index in spread(len(clip), columns * rows)}
    return sheet_of(path, chosen, columns, labels=labels, scale=scale, fps=fps, texts=texts)


def sheet_of(
    path: str | os.PathLike[str],
    chosen: Mapping[int, np.ndarray],
    columns: int = 8,
    *,
    labels: bool = True,
    scale: int = 2,
    fps: float | None = None,
    texts: Mapping[int, str] | None = None,
) -> Path:
    """Write a PNG grid of frames that were picked already.

    Args:
        path: ends in .png.
        chosen: index in the clip -> (height, width, 3) uint8, in the order of the sheet.
        columns: as of `contact_sheet`.
        labels: as of `contact_sheet`.
        scale: as of `contact_sheet`.
        fps: as of `contact_sheet`.
        texts: as of `contact_sheet`.

    Returns:
        The path.

    Raises:
        VideoError: as in `write_video`.
        WriteError: as in `write_video`.
    """
    path = check_output(path, SHEETS)
    columns = min(columns, len(chosen))
    cells = []
    for index, frame in chosen.items():
        cell = _enlarge(frame[None], scale)[0]
        if labels:
            words = f"{index}" if fps is None else f"{index} · {index / fps:.2f} s"
            cell = np.concatenate([cell, caption(words, cell.shape[1])])
        cells.append(cell)
    table = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    if texts:
        shown = [max(mark for mark in texts if mark <= index) for index in chosen]
        marks = [shown[i : i + columns] for i in range(0, len(cells), columns)]
        table = [[with_texts(row, of, texts)] for row, of in zip(table, marks, strict=True)]
    return _save_png(path, stack(table))


def side_by_side(videos: Mapping[str, np.ndarray], scale: int = 1) -> np.ndarray:
    """Put clips next to each other, each with its name above it.

    Args:
        videos: name -> (frames, height, width, 3); all of the same height. A shorter one holds its last frame.
        scale: whole factor to enlarge by. Names need about 7 px a letter; a longer one is set smaller, then cut.

    Returns:
        uint8 RGB, (frames, height, width, 3).

    Raises:
        VideoError: no videos, different heights, or as in `write_video`.
    """
    clips = {name: _enlarge(_bytes(video), scale) for name, video in videos.items()}
    if len({clip.shape[1] for clip in clips.values()}) != 1:
        found = ", ".join(f"{name} {clip.shape[1] // scale}" for name, clip in clips.items()) or "no videos"
        raise VideoError(f"side_by_side needs one or more videos of one height; found {found}")
    frames = max(len(clip) for clip in clips.values())
    parts: list[np.ndarray] = []
    for name, clip in clips.items():
        if parts:
            parts.append(np.full((frames, parts[0].shape[1], GAP, 3), PAPER, np.uint8))
        held = clip[np.minimum(np.arange(frames), len(clip) - 1)]
        title = np.broadcast_to(caption(name, clip.shape[2]), (frames, CAPTION, clip.shape[2], 3))
        parts.append(np.concatenate([title, held], 1))
    return np.concatenate(parts, 2)


def comparison_sheet(
    path: str | os.PathLike[str],
    videos: Mapping[str, np.ndarray],
    columns: int = 8,
    scale: int = 2,
    scores: Mapping[str, float | str] | None = None,
    texts: Mapping[int, str] | None = None,
) -> Path:
    """Write a PNG with one row per strategy: its name (and score) at the left, evenly spaced frames beside it.

    Args:
        path: ends in .png.
        videos: name -> (frames, height, width, 3); heights, widths and lengths may differ.
        columns: frames shown of each.
        scale: whole factor to enlarge by.
        scores: name -> number (shown with 3 decimals) or text, written under the name; missing names get none.
        texts: frame at which each text begins, rising from 0 -> the text, written once below its frames; None for none.

    Returns:
        The path.

    Raises:
        VideoError: no videos, or as in `write_video`.
        WriteError: as in `write_video`.
    """
    path = check_output(path, SHEETS)
    if not videos or columns < 1:
        raise VideoError(f"comparison_sheet needs one or more videos and columns; found {len(videos)} and {columns}")
    rows = []
    wide = max([90, *(text_width(name) + 10 for name in videos)])
    for name, video in videos.items():
        clip = _bytes(video)
        words = [name]
        value = (scores or {}).get(name)
        if value is not None:
            words.append(value if isinstance(value, str) else f"{value:.3f}")
        wide = max(wide, *(text_width(w) + 10 for w in words))
        cells = []
        for index in spread(len(clip), columns):
            cell = _enlarge(clip[index : index + 1], scale)[0]
            cells.append(np.concatenate([cell, caption(f"{index}", cell.shape[1])]))
        rows.append((words, cells))
    table = []
    for words, cells in rows:
        side = np.concatenate([caption(w, wide) for w in words])
        height = max(cells[0].shape[0], side.shape[0])
        top = (height - CAPTION - side.shape[0]) // 2  # beside the frame, not beside its caption
        side = np.pad(side, ((max(top, 0), height - side.shape[0] - max(top, 0)), (0, 0), (0, 0)), constant_values=255)
        table.append([side, *cells])
    if texts:
        shown = spread(max(map(len, videos.values())), columns)
        marks = [max(mark for mark in texts if mark <= index) for index in shown]
        wide = max(row[1].shape[1] for row in table)
        counts = {mark: marks.count(mark) for mark in dict.fromkeys(marks)}
        strips = [lettered(texts[mark], n * (wide + GAP) - GAP) for mark, n in counts.items()]
        blank = np.full((1, GAP, 3), PAPER, np.uint8)
        height = max(len(strip) for strip in strips)
        parts: list[np.ndarray] = []
        for strip in strips:
            parts += [np.pad(strip, ((0, height - len(strip)), (0, 0), (0, 0)), constant_values=255),
                      blank.repeat(height, 0)]  # fmt: skip
        sheet = stack(table)
        below = np.concatenate(parts, 1)[:, : sheet.shape[1]]
        side = np.full((height, sheet.shape[1] - below.shape[1], 3), PAPER, np.uint8)
        return _save_png(path, np.concatenate([sheet, np.concatenate([side, below], 1)]))
    return _save_png(path, stack(table))


def _bytes(frames: np.ndarray) -> np.ndarray:
    """A clip as uint8, checked."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise VideoError(f"frames have shape {frames.shape}; expected (frames, height, width, 3), none of them 0")
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating):
        raise VideoError(f"frames have dtype {frames.dtype}; expected floats in [0, 1] or uint8")
    if not np.isfinite(frames).all():
        raise VideoError("frames hold NaN or infinity")
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)


def _enlarge(clip: np.ndarray, scale: int) -> np.ndarray:
    """A clip with every pixel as a square of `scale` pixels a side."""
    if int(scale) != scale or scale < 1:
        raise VideoError(f"scale={scale} must be a whole number, at least 1")
    return clip.repeat(int(scale), 1).repeat(int(scale), 2) if scale > 1 else clip


def spread(frames: int, count: int) -> list[int]:
    """Choose `count` frame indices (or all) from the first to the last, evenly spaced.

    Args:
        frames: of the clip.
        count: at most.
    """
    return [0] if count == 1 else [int(i) for i in np.linspace(0, frames - 1, min(frames, count)).round()]


def _save_png(path: Path, sheet: np.ndarray) -> Path:
    """Write a sheet, whole or not at all."""
    image = need("PIL.Image").fromarray(sheet)
    with replacing(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
    return path
