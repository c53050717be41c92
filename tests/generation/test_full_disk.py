"""On a full disk no writer reports success, and what was there before stays."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disk
import imageio_ffmpeg
import numpy as np
import pytest

from freeloc_fx import Profile
from freeloc_fx.errors import FreelocError
from freeloc_fx.files import Journal, WriteError, save_figure, write_bytes, write_text
from freeloc_fx.generation import video

LIMIT = 9000


def noise(frames: int = 12) -> np.ndarray:
    return np.random.default_rng(0).random((frames, 40, 56, 3))


def figure(path: Path) -> None:
    from matplotlib.figure import Figure

    made = Figure()
    made.subplots().imshow(noise(1)[0])
    save_figure(made, path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.mp4": lambda path: video.write_video(path, noise()),
    "a.gif": lambda path: video.write_video(path, noise()),
    "sheet.png": lambda path: video.contact_sheet(path, noise()),
    "comparison.png": lambda path: video.comparison_sheet(path, {"a": noise(), "b": noise()}),
    "figure.png": figure,
    "figure.svg": figure,
    "page.html": lambda path: write_text(path, "x" * 20_000),
    "data.bin": lambda path: write_bytes(path, b"x" * 20_000),
    "profile.json": lambda path: Profile(trained_frames=5, layers=dict.fromkeys(range(2000), "vrpr+tsa")).save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_replaces_a_good_file_by_a_part(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    good = path.read_bytes()
    assert len(good) > LIMIT, "the limit would not be met"
    with disk.limited(LIMIT), pytest.raises(WriteError) as caught:
        WRITERS[name](path)
    words = str(caught.value)
    assert isinstance(caught.value, FreelocError) and isinstance(caught.value, OSError)
    assert words.startswith(f"{path}: expected to write the whole file, found: ")
    assert "MB are free" in words and words.endswith("the file that was there is as it was")
    assert path.read_bytes() == good and os.listdir(tmp_path) == [name]
    path.unlink()
    with disk.limited(LIMIT), pytest.raises(WriteError) as caught:
        WRITERS[name](path)
    assert "was there" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_an_encoder_that_reports_success_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    path = video.write_video(tmp_path / "a.mp4", noise())
    good = path.read_bytes()
    program = disk.silent_ffmpeg(tmp_path, share)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    with pytest.raises(WriteError, match=r"cannot be decoded|frames of 56x40 pixels of 12 of 56x40"):
        video.write_video(path, noise())
    assert path.read_bytes() == good
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "ffmpeg", "ffmpeg.py"]


def test_what_ffmpeg_says_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = disk.failing_ffmpeg(
        tmp_path,
        "[vost#0:0/libx264 @ 0x5575431c0300] Error submitting a packet to the muxer: No space left on device",
        "    Last message repeated 1 times",
        "[out#0/mp4 @ 0x5575431bf540] Error closing file: No space left on device",
    )
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    with pytest.raises(WriteError) as caught:
        video.write_video(tmp_path / "a.mp4", noise())
    assert (
        "found: ffmpeg ended with status 228 (Error submitting a packet to the muxer: No space left on device; "
        "Error closing file: No space left on device); "
    ) in str(caught.value)


def test_a_gif_that_lost_its_end_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    path = video.write_video(tmp_path / "a.gif", noise())
    good, whole = path.read_bytes(), Image.Image.save

    def cut(self: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        whole(self, file, *args, **kwargs)
        os.truncate(file, os.path.getsize(file) // 2)

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(WriteError, match=r"in the gif|cannot be read back"):
        video.write_video(path, noise())
    assert path.read_bytes() == good


@pytest.mark.parametrize("fps", [0.5, 7.3, 30000 / 1001, "the most"])
@pytest.mark.parametrize(("name", "most"), [("a.mp4", 240), ("a.gif", 100)])
def test_whole_videos_are_believed(tmp_path: Path, name: str, most: float, fps: float | str) -> None:
    """At any rate, of one frame, and with frames that equal the one before, which Pillow joins."""
    clip = noise(4)[[0, 0, 0, 1, 2, 2]]
    for frames in (clip, clip[:1], clip[:2]):
        video.write_video(tmp_path / name, frames, fps=most if isinstance(fps, str) else fps)


def test_a_colon_in_a_path_names_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    for name in ("take:1.mp4", "a:b/%03d.mp4"):
        assert video.write_video(name, noise()).is_file()


def test_a_journal_says_that_a_line_is_not_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.add({"x": 1})
    with disk.limited(1000):
        with pytest.raises(WriteError, match=r"j\.jsonl: expected to write the whole file") as caught:
            journal.add({"y": "y" * 2000})
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        with pytest.raises(WriteError):
            journal.add({"y": "y" * 2000})
    journal.add({"z": 3})
    assert Journal(tmp_path / "j.jsonl").rows == [{"x": 1}, {"z": 3}]


def test_other_failures_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "a.txt", json.dumps({}))


@pytest.mark.skipif(os.name == "nt", reason="symbolic links and permissions are Unix's")
@pytest.mark.parametrize("name", WRITERS)
def test_what_a_link_points_to_is_written(tmp_path: Path, name: str) -> None:
    """On another disk, say, under a name without the suffix that tells the format; its permissions stay."""
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "take", tmp_path / name
    link.symlink_to("disk/take")
    WRITERS[name](link)
    assert link.is_symlink() and target.stat().st_size > LIMIT
    plain = tmp_path / f"plain-{name}"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode
    target.write_bytes(b"old")
    target.chmod(0o640)
    WRITERS[name](link)
    assert link.is_symlink() and target.stat().st_size > LIMIT and target.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["take"]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links are Unix's")
def test_a_link_into_a_missing_folder_is_found_before_the_work(tmp_path: Path) -> None:
    link = tmp_path / "take.mp4"
    link.symlink_to("nowhere/take.mp4")
    with pytest.raises(video.VideoError, match=r"take\.mp4: the folder .*nowhere does not exist"):
        video.check_output(link)
