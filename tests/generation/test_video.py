from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freeloc_fx.errors import FreelocError
from freeloc_fx.generation import video as v
from freeloc_fx.generation.streaming import streamed
from freeloc_fx.generation.tiny_wan.scenes import Scene

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return Scene.random(np.random.default_rng(3)).render(12)


def read_mp4(path: Path) -> tuple[dict, np.ndarray]:
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    meta = next(reader)
    width, height = meta["size"]
    return meta, np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(float) - b.astype(float)) ** 2) / 255**2 + 1e-12))


def enlarged(clip: np.ndarray, scale: int) -> np.ndarray:
    return (clip * 255).round().astype(np.uint8).repeat(scale, 1).repeat(scale, 2)


def test_mp4_reads_back(tmp_path: Path, clip: np.ndarray) -> None:
    path = v.write_video(tmp_path / "a.mp4", clip, fps=12, scale=4)
    meta, back = read_mp4(path)
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == 12
    assert back.shape == (12, 256, 256, 3)
    assert min(psnr(a, b) for a, b in zip(back, enlarged(clip, 4), strict=True)) > 28
    assert psnr(back[0], enlarged(clip, 4)[-1]) < 28  # the bound tells frames apart
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_mp4_pads_an_odd_side(tmp_path: Path, clip: np.ndarray) -> None:
    _, back = read_mp4(v.write_video(tmp_path / "a.mp4", clip[:, :63, :61]))
    assert back.shape == (12, 64, 62, 3)


def test_gif_reads_back(tmp_path: Path, clip: np.ndarray) -> None:
    path = v.write_video(tmp_path / "a.gif", clip, fps=16, scale=2)
    with Image.open(path) as gif:
        assert gif.n_frames == 12 and gif.info["loop"] == 0
        total = 0
        for index, frame in enumerate(enlarged(clip, 2)):
            gif.seek(index)
            total += gif.info["duration"]
            assert psnr(np.asarray(gif.convert("RGB")), frame) > 30
    assert total == 750  # 12 frames at 16 fps, although no frame can last 62.5 ms
    assert os.listdir(tmp_path) == ["a.gif"]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_what_was_there(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str, error: type[BaseException]
) -> None:
    (tmp_path / name).write_bytes(b"before")

    def fail(*_: object) -> None:
        assert len(os.listdir(tmp_path)) == 2  # the temporary file is in the same folder
        raise error

    monkeypatch.setattr(v.os, "replace", fail)
    with pytest.raises(error):
        v.write_video(tmp_path / name, clip)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"before"


def test_interruption_while_encoding(tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):
        def communicate(self, *_: object, **__: object) -> tuple[bytes, bytes]:
            started.append(self)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            v.write_video(tmp_path / "a.mp4", clip)
    assert len(started) == 1 and started[0].poll() is not None  # ffmpeg is gone
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.avi", r"ending in .mp4 or .gif, found '.avi'"),
        ("a", "found ''"),
        ("no/a.mp4", "does not exist"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_check_output(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(v.VideoError, match=words):
        v.check_output(tmp_path / name)
    assert issubclass(v.VideoError, FreelocError)


def test_check_output_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(v.tempfile, "TemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(v.VideoError, match=r"cannot be written to.*Permission denied"):
        v.check_output(tmp_path / "a.gif")


def test_check_output_leaves_nothing(tmp_path: Path) -> None:
    assert v.check_output(str(tmp_path / "A.GIF")) == tmp_path / "A.GIF"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("frames", "options", "words"),
    [
        (np.zeros((4, 8, 8)), {}, r"shape \(4, 8, 8\)"),
        (np.zeros((0, 8, 8, 3)), {}, "none of them 0"),
        (np.zeros((4, 8, 8, 3), int), {}, "dtype int64"),
        (np.full((4, 8, 8, 3), np.nan), {}, "NaN"),
        (np.zeros((4, 8, 8, 3)), {"scale": 0}, "scale=0"),
        (np.zeros((4, 8, 8, 3)), {"scale": 1.5}, "scale=1.5"),
        (np.zeros((4, 8, 8, 3)), {"fps": 0}, "fps=0"),
        (np.zeros((4, 8, 8, 3)), {"fps": math.nan}, "fps=nan"),
        (np.zeros((4, 8, 8, 3)), {"fps": 120}, r"a\.gif: a gif has at most 100 frames per second, found fps=120"),
    ],
)
def test_bad_arguments(tmp_path: Path, frames: np.ndarray, options: dict, words: str) -> None:
    with pytest.raises(v.VideoError, match=words):
        v.write_video(tmp_path / "a.gif", frames, **options)
    assert os.listdir(tmp_path) == []


def test_rates_that_a_gif_and_a_video_can_have(tmp_path: Path) -> None:
    v.check_rate(tmp_path / "a.gif", 100)
    v.check_rate("A.mp4", 240)
    with pytest.raises(v.VideoError, match="at most 100"):
        v.check_rate("A.GIF", 100.5)
    with (
        pytest.raises(v.VideoError, match="at most 100"),
        streamed(tmp_path / "a.gif", frames=1, height=8, width=8, fps=144),
    ):
        raise AssertionError("frames were asked for")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "module"), [("a.mp4", "imageio_ffmpeg"), ("a.gif", "PIL.Image")])
def test_missing_dependency(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(v.VideoError, match=r'pip install "freeloc_fx\[cli\]"'):
        v.write_video(tmp_path / name, clip)
    assert os.listdir(tmp_path) == []


def png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_contact_sheet(tmp_path: Path, clip: np.ndarray) -> None:
    frames = enlarged(clip, 1)
    plain = png(v.contact_sheet(tmp_path / "a.png", clip, columns=3, rows=2, labels=False, scale=1))
    assert plain.shape == (2 * 64 + 3 * 4, 3 * 64 + 4 * 4, 3)
    assert (plain[4:68, 4:68] == frames[0]).all()
    assert (plain[-68:-4, -68:-4] == frames[-1]).all()
    labelled = png(v.contact_sheet(tmp_path / "b.png", clip, columns=3, rows=2, scale=1, fps=16))
    strip = labelled[68 : 68 + 18, 4:68]
    assert (strip < 100).any() and (strip == 255).any()  # dark ink on white
    assert (labelled[4:68, 4:68] == frames[0]).all()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_contact_sheet_of_fewer_frames_than_cells(tmp_path: Path, clip: np.ndarray) -> None:
    sheet = png(v.contact_sheet(tmp_path / "a.png", clip[:2], columns=8, rows=3, labels=False, scale=1))
    assert sheet.shape == (64 + 8, 2 * 64 + 12, 3)
    with pytest.raises(v.VideoError, match=r"ending in \.png"):
        v.contact_sheet(tmp_path / "a.jpg", clip)
    with pytest.raises(v.VideoError, match="columns=0"):
        v.contact_sheet(tmp_path / "a.png", clip, columns=0)


def test_side_by_side(clip: np.ndarray) -> None:
    out = v.side_by_side({"direct": clip, "a name far too long for its clip": clip[:5]})
    assert out.shape == (12, 64 + 18, 64 * 2 + 4, 3) and out.dtype == np.uint8
    assert (out[:, 18:, :64] == enlarged(clip, 1)).all()
    assert (out[11, 18:, 68:] == enlarged(clip, 1)[4]).all()  # the shorter one holds its last frame
    assert (out[0, :18, :64] < 100).any() and (out[0, :18, 68:] < 100).any()
    with pytest.raises(v.VideoError, match="one height; found a 64, b 32"):
        v.side_by_side({"a": clip, "b": clip[:, :32]}, scale=2)
    with pytest.raises(v.VideoError, match="no videos"):
        v.side_by_side({})


def test_comparison_sheet(tmp_path: Path, clip: np.ndarray) -> None:
    videos = {"direct": clip, "vrpr+tsa": clip[:3]}
    sheet = png(v.comparison_sheet(tmp_path / "a.png", videos, columns=4, scale=1, scores={"direct": 0.5}))
    assert sheet.shape == (2 * (64 + 18) + 12, 90 + 4 * 64 + 6 * 4, 3)
    assert (sheet[4:68, 98:162] == enlarged(clip, 1)[0]).all()
    assert (sheet[90:154, 98 + 136 : 162 + 136] == enlarged(clip, 1)[2]).all()
    without = png(v.comparison_sheet(tmp_path / "b.png", videos, columns=4, scale=1))
    assert (sheet[:86, :94] != without[:86, :94]).any() and (sheet[86:] == without[86:]).all()
    with pytest.raises(v.VideoError, match="found 0 and 8"):
        v.comparison_sheet(tmp_path / "c.png", {})
