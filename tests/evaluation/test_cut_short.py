"""A file that was cut short is not measured as if it were whole, and a whole one is not refused."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest

from freeloc_fx.evaluation.metrics import MetricError, clip, read_clip
from freeloc_fx.evaluation.metrics.clip import read_size
from freeloc_fx.generation.video import write_video

ffmpeg = pytest.importorskip("imageio_ffmpeg")

FRAMES = 46

SOUND = ["-f", "lavfi", "-i", "sine=d=6", "-map", "0:v", "-map", "1:a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip of noise at 12 fps in several containers."""
    path = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(5).random((FRAMES, 32, 48, 3))
    write_video(path / "clip.mp4", noise, fps=12)
    write_video(path / "clip.gif", noise, fps=12)
    h264 = ["-c:v", "libx264", "-preset", "ultrafast"]
    for name, options in {
        "clip.mkv": ["-c", "copy"],
        "clip.avi": ["-q:v", "2"],
        "clip.ts": h264,
        "pieces.mp4": [*h264, "-g", "9", "-movflags", "frag_keyframe+empty_moov"],
        "sound.mp4": [*SOUND, "-c:v", "copy"],
        "sound.mkv": [*SOUND, "-c:v", "copy"],
        "uneven.mp4": ["-vf", "select='lt(n,30)',setpts='if(lt(N,29),PTS,PTS*2)'", "-fps_mode", "vfr", *h264],
    }.items():
        program = [ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path / "clip.mp4"), *options, str(path / name)]
        subprocess.run(program, check=True, stdin=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.mkv", "clip.avi", "clip.ts", "pieces.mp4"])
def test_a_whole_file_is_read_to_its_end(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_clip(folder / name).frames) == FRAMES and not caplog.records
    assert read_size(folder / name, FRAMES) == (FRAMES, 32, 48)
    known, *size = read_size(folder / name, 5)
    assert 5 <= known <= FRAMES and size == [32, 48]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.mkv", "clip.avi", "pieces.mp4"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_file_cut_short_is_refused(folder: Path, tmp_path: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    for read in (read_clip, lambda path: read_size(path, FRAMES)):
        with pytest.raises(MetricError, match=rf"{name}: (expected .* cut short|not a gif)"):
            read(path)


def test_the_last_bytes_count_where_a_file_says_how_many_it_has(folder: Path, tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.avi", "clip.gif"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:-1])
        with pytest.raises(MetricError, match="the file is cut short"):
            read_clip(tmp_path / name)
        (tmp_path / name).write_bytes((folder / name).read_bytes() + b"\0" * 40)  # padded, as some disks and sites do
        assert len(read_clip(tmp_path / name).frames) == FRAMES


def test_a_transport_stream_ends_with_a_packet(folder: Path, tmp_path: Path) -> None:
    data = (folder / "clip.ts").read_bytes()
    disc = b"".join(b"\0\0\0\0" + data[at : at + 188] for at in range(0, len(data), 188))
    for whole, packet, name in ((data, 188, "clip.ts"), (disc, 192, "clip.m2ts")):
        path = tmp_path / name
        path.write_bytes(whole + b"\0" * 40)
        assert len(read_clip(path).frames) == FRAMES
        for share in (0.5, 0.8):
            cut = int(len(whole) * share) // packet * packet + 100
            path.write_bytes(whole[:cut])
            with pytest.raises(MetricError, match=f"packets of {packet} bytes, found 100 bytes of the last: the file"):
                read_clip(path)


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv"])
def test_sound_may_be_longer(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        assert len(read_clip(folder / name).frames) == FRAMES
    assert f"{name}: expected 72 frames (6 s at 12 fps), found {FRAMES}: the file is cut short" in caplog.text
    assert "or its sound may be longer" in caplog.text


def test_frames_may_last_for_different_times(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clip, "_stated", lambda facts: (99.0, 2.0))
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        read_clip(folder / "uneven.mp4")
    assert "uneven.mp4: expected 99 frames" in caplog.text and "or its frames last for different times" in caplog.text
    with pytest.raises(MetricError, match=rf"clip.mkv: expected 99 frames .*, found {FRAMES}: the file is cut short"):
        read_clip(folder / "clip.mkv")
