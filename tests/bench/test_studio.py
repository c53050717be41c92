"""bench/studio.py and bench/clips.py: the noise that contestants share, what is measured of them, the real pipeline."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import clips
import contestants as people
import numpy as np
import pytest
import tables
import torch
from studio import Job, Pipeline

from freeloc_fx import Profile
from freeloc_fx.errors import LengthError
from freeloc_fx.evaluation.report import COLUMNS
from freeloc_fx.generation.noise import default_stride, for_pipeline, freenoise

PROFILE = Profile.load("tiny-wan")

# Noise, measurements


class Latents:
    """The part of a pipeline that knows the layout of its latents."""

    vae_scale_factor_temporal, vae_scale_factor_spatial = 4, 8

    def __init__(self, frames_first: bool) -> None:
        self.frames_first = frames_first
        self.transformer = torch.nn.Module()
        self.transformer.config = type("Config", (dict,), {"in_channels": 6})(patch_size=(1, 2, 2))  # type: ignore[assignment]

    def prepare_latents(self, **k: Any) -> torch.Tensor:
        frames = (k["num_frames"] - 1) // 4 + 1
        sizes = (frames, k["num_channels_latents"]) if self.frames_first else (k["num_channels_latents"], frames)
        return torch.randn(k["batch_size"], *sizes, k["height"] // 8, k["width"] // 8, generator=k["generator"])


@pytest.mark.parametrize(("frames_first", "dim"), [(False, 2), (True, 1)])
def test_freenoise_takes_the_pipelines_layout(frames_first: bool, dim: int) -> None:
    found = for_pipeline(Latents(frames_first), 33, 32, 16, window=5, seed=3)
    shape = (1, 9, 6, 4, 2) if frames_first else (1, 6, 9, 4, 2)
    expected = freenoise(shape, 5, default_stride(5), torch.Generator().manual_seed(3), dim=dim)
    assert torch.equal(found, expected)


def test_freenoise_refuses_a_layout_without_frames() -> None:
    pipe = Latents(False)
    pipe.prepare_latents = lambda **k: torch.zeros(1, 2, 3)  # type: ignore[method-assign]
    with pytest.raises(LengthError, match="5 axes with 9 frames"):
        for_pipeline(pipe, 33, 32, 16, window=5)


def test_the_papers_stride() -> None:
    assert (default_stride(16), default_stride(21), default_stride(1)) == (4, 5, 1)


def test_every_score_of_a_video_is_a_known_column() -> None:
    pytest.importorskip("cv2")
    video = clips.real_clip(0, 48)
    scores, curve = tables.measure(video, clips.prompt_of(0), period=24)
    assert set(scores) == {n for n, c in COLUMNS.items() if c.kind != "cost"}
    assert scores["composite"] is not None and scores["composite"] > 0.8 and scores["no_repeat"] == 1.0
    assert scores["quality"] is not None and scores["quality"] > 0.8
    assert set(curve) == {"at", *tables.CURVE} and {len(v) for v in curve.values()} == {1}
    assert "no_repeat" not in tables.measure(video, clips.prompt_of(0), period=100)[0]
    json.dumps([scores, curve], allow_nan=False)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no high-water mark to reset here")
def test_peak_memory_is_that_of_the_run_each_time() -> None:
    def run() -> int:
        return int(np.ones(40_000_000, np.uint8).sum())

    for _ in range(2):  # what the first one left behind does not hide the second
        result, grown = clips.peak_growth(run)
        assert result == 40_000_000 and grown is not None and 36e6 < grown < 80e6
    assert (clips.peak_growth(lambda: None)[1] or 0) < 5e6


# The real pipeline


@pytest.mark.slow
def test_the_pipeline_films_contestants_at_pipeline_level() -> None:
    studio = Pipeline("tiny-wan")
    assert studio.short == 81 and studio.period > 81
    known, _ = people.contestants(studio.profile, studio.layers, 1)
    found = {}
    for name in ("direct", "freenoise", "context-windows", "profile", "direct"):
        film = studio.film(Job(known[name][0], 97, 0), 1, 3.0)
        assert film.frames.shape == (97, 64, 64, 3) and film.captured == (name == "profile")
        if name in found:  # what others put on was taken off
            assert np.array_equal(found[name], film.frames)
        found[name] = film.frames
    assert len({f.tobytes() for f in found.values()}) == 4
    assert not studio.film(Job(known["direct"][0], 97, 0), 1, 3.0).captured


def test_the_pipeline_undoes_a_contestant() -> None:
    model = torch.nn.Linear(1, 1)
    pipe = SimpleNamespace(transformer=model, transformer_2=None)
    originals = people.originals_of(pipe)
    people.Contestant("w", None, stride=2).put_on(pipe, originals, 4)
    assert pipe.transformer is not model
    people.Contestant("direct", None).put_on(pipe, originals, 4)
    assert pipe.transformer is model and set(originals) == {"transformer"}
