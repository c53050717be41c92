"""Frames that go from the VAE to the file as they are decoded: the same file, and no copy of the clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from freeloc_fx.errors import FreelocError
from freeloc_fx.generation import pipelines
from freeloc_fx.generation.decoding import eight_bit
from freeloc_fx.generation.encoding import VideoError
from freeloc_fx.generation.streaming import streamed
from freeloc_fx.generation.video import contact_sheet, sheet_of, write_video

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipelines.load_pipeline("tiny-wan")


def test_a_streamed_clip_is_the_held_one(pipe: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"frames": 41, "steps": 1}
    held = pipelines.generate(pipe, PROMPT, **asked)
    write_video(tmp_path / "held.mp4", held.frames)
    contact_sheet(tmp_path / "held.png", held.frames)
    given: list[int] = []
    with streamed(tmp_path / "streamed.mp4", frames=41, height=64, width=64) as film:

        def take(frames: np.ndarray) -> None:
            given.append(len(frames))
            film.add(frames)

        video = pipelines.generate(pipe, PROMPT, on_frames=take, **asked)
    sheet_of(tmp_path / "streamed.png", film.chosen)
    assert sum(given) == 41 and len(given) > 1, "in pieces"
    assert video.frames.shape == (0, 64, 64, 3)
    for suffix in ("mp4", "png"):
        assert (tmp_path / f"held.{suffix}").read_bytes() == (tmp_path / f"streamed.{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held.mp4", "held.png", "streamed.mp4", "streamed.png"]


def test_a_streamed_gif_is_the_held_one(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (33, 10, 14, 3), np.uint8)
    frames[20] = frames[19]  # Pillow joins equal frames
    write_video(tmp_path / "held.gif", frames, 16.0)
    with streamed(tmp_path / "streamed.gif", frames=33, height=10, width=14) as film:
        for start in range(0, 33, 7):
            film.add(frames[start : start + 7])
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["held.gif"]
    assert (tmp_path / "held.gif").read_bytes() == (tmp_path / "streamed.gif").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_clip_that_breaks_off_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError), streamed(tmp_path / f"clip.{suffix}", frames=5, height=4, width=6) as film:
        film.add(np.zeros((2, 4, 6, 3), np.uint8))
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_eight_bits_are_those_of_the_writer() -> None:
    video = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    floats = ((video * 0.5 + 0.5).clamp(0, 1)).permute(1, 2, 3, 0).numpy()
    assert np.array_equal(eight_bit(video), (np.clip(floats, 0, 1) * 255).round().astype(np.uint8))
    video[0, 0, 0, 0] = float("nan")
    with pytest.raises(FreelocError, match="NaN or infinity"):
        eight_bit(video)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), "expected 5 frames, found 2"),
        (np.zeros((6, 4, 4, 3), np.uint8), "expected the video's 5 frames, found 6 so far"),
        (np.zeros((5, 4, 6, 3), np.uint8), "expected uint8 (4, 4, 3), found uint8 (4, 6, 3)"),
        (np.zeros((5, 4, 4, 3), np.float32), "found float32"),
    ],
)
def test_what_is_not_the_clip_that_was_announced(frames: np.ndarray, words: str, tmp_path: Path) -> None:
    with (
        pytest.raises(VideoError) as caught,
        streamed(tmp_path / "clip.mp4", frames=5, height=4, width=4) as film,
    ):
        film.add(frames)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing half written is left"
