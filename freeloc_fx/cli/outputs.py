"""Where a command writes, checked before the work: beside its output too, and never over what it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from freeloc_fx.files import DamagedFileError, read_json
from freeloc_fx.generation.video import SHEETS, VIDEOS, check_output

from .common import UsageError

__all__ = ["Input", "check_apart", "check_report", "check_video", "reports_of"]


Input: TypeAlias = "tuple[str, str | Path | None]"


def check_video(output: Path, inputs: Iterable[Input]) -> tuple[Path, Path]:
    """Check a video and what is written beside it.

    Args:
        output: the video.
        inputs: as of `check_apart`.

    Returns:
        Its contact sheet and its report.

    Raises:
        VideoError: as `check_output`, of any of them.
        UsageError: as `check_apart`, and as `check_report`.
    """
    check_output(output)
    sheet = check_output(output.with_suffix(".png"), SHEETS)
    report = check_output(output.with_suffix(".json"), (".json",))
    check_apart([output, sheet, report], inputs)
    check_report(report, output)
    return sheet, report


def check_apart(outputs: Iterable[Path], inputs: Iterable[Input]) -> None:
    """Refuse an output that would take the place of an input.

    Args:
        outputs: files that are to be written.
        inputs: what each is called and its path, or the folder of a model, of which the files with its configuration
            count. None, a shipped profile's name and a hub id are no files, and pass.

    Raises:
        UsageError: two of them are one file; names both.
    """
    read = [(name, file) for name, given in inputs if given is not None for file in _files(Path(given))]
    for output in outputs:
        for name, file in read:
            if _same(output, file):
                raise UsageError(
                    f"{output}: would be written over {name} {file}, which is the same file; expected another output"
                )


def check_report(path: Path, video: Path | None = None) -> None:
    """Refuse to write over the report of a video that is there: out.mp4 and out.gif would share out.json and out.png.

    Args:
        path: a .json file that is to be written.
        video: whose report it is going to be; None for something else.

    Raises:
        UsageError: the file is there and is the report of another video, which is there too; names both. A report that
            does not say whose it is, as earlier versions wrote them, is taken for that of `video` if that is there.
    """
    data = _report(path)
    if data is None:
        return
    named = data.get("file")
    suffixes = (Path(named).suffix,) if isinstance(named, str) else VIDEOS
    there = [file for suffix in suffixes if (file := path.with_suffix(suffix)).is_file()]
    if not there or (video is not None and any(_same(video, file) for file in there)):
        return
    raise UsageError(f"{path}: is the report of {there[0]}, and would be written over; expected another output")


def reports_of(videos: Iterable[Path]) -> list[Path]:
    """Find the reports beside videos, of which a prompt may be read.

    Args:
        videos: their files.

    Returns:
        The reports that are there; what `freeloc eval` itself has written is none.
    """
    beside = [video.with_suffix(".json") for video in videos]
    return [path for path in beside if _report(path) is not None]


def _report(path: Path) -> dict[str, Any] | None:
    """The content of a video's report; None where there is none, or something else."""
    try:
        data = read_json(path)
    except (OSError, DamagedFileError):
        return None
    if isinstance(data, dict) and (isinstance(data.get("settings"), dict) or "prompt" in data):
        return data
    return None


def _files(given: Path) -> list[Path]:
    """The file itself; of a model's folder those that may share their suffix with an output and are read."""
    given = Path(os.path.expanduser(given))  # Path.expanduser fails for a user who is not known
    if not given.is_dir():
        return [given]
    named = ("model_index.json", "*config.json", "*.index.json")
    found = [file for name in named for file in given.glob(name)]
    for part in sorted(given.iterdir()):
        if part.is_dir() and any(part.glob("*config.json")):
            found += part.glob("*.json")
    return found


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, through links, or in letters of either case where the disk takes both."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one is not there (or no path at all, such as a text with a zero byte)
        return False
