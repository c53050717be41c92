"""Two generations at once, in threads: of one pipeline, and of two that share a VAE."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import save

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.generation import decoding
from freeloc_fx.generation.running import generate


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import WanPipeline

    folder: Path = save(tmp_path_factory.mktemp("pipeline"))
    made = WanPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    made.transformer = freeloc_fx.transform(made.transformer, Profile(trained_frames=2, layers="vrpr"), backend="eager")
    return made


def test_threads_take_turns_at_what_cannot_be_shared(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import WanPipeline

    def run(one: Any, seed: int) -> np.ndarray:
        frames: np.ndarray = generate(one, "a red circle", frames=17, height=32, width=32, steps=2, seed=seed).frames
        return frames

    expected = [run(pipe, seed) for seed in (0, 1)]
    assert not np.array_equal(*expected)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = WanPipeline(**{**pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    piece: Callable[..., Any] = decoding.wan_decode_piece

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)  # the other thread's turn, if it may
        return piece(*args, **kwargs)

    monkeypatch.setattr(decoding, "wan_decode_piece", slow)
    for second in (pipe, other):
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(run, (pipe, second), (0, 1)))
        assert all(map(np.array_equal, found, expected))
