"""Probes of models and pipelines other than one Wan: layers without video, two transformers, what cannot be probed."""

from __future__ import annotations

import copy
import functools
import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers_models import CASES, arguments, build
from pipelines import save
from slow import slow

import freeloc_fx
from freeloc_fx import Profile, context_windows, probe, transform
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.errors import CaptureError, TransformError
from freeloc_fx.generation import pipelines as library


def generate(name: str, model: Any, frames: int, seed: int) -> torch.Tensor:
    with torch.no_grad():
        found = model(**arguments(name, model, frames))
    while not isinstance(found, torch.Tensor):
        found = found[0]
    return found


def probed(name: str, model: Any) -> Profile:
    step = CASES[name].patch[0]
    lengths = {"trained_frames": 4 * step, "target_frames": 8 * step}
    return probe(model, generate=functools.partial(generate, name), every=1, **lengths)


@pytest.mark.parametrize("name", ["Kandinsky5", slow("Kandinsky6"), slow("SanaWM")])
def test_layers_without_attention_of_video_keep_their_numbers(name: str) -> None:
    model = build(name)
    found = probed(name, model)
    assert found.layer_count == len(layer_table(model)) > len(found.sensitivities or ())
    made = transform(model, found, backend="eager")
    assert torch.isfinite(generate(name, made, 8 * CASES[name].patch[0], 0)).all()


@pytest.mark.skipif("Cosmos3" not in CASES, reason="an older diffusers has no Cosmos3OmniTransformer")
def test_keys_with_text_that_is_no_query_cannot_be_probed() -> None:
    with pytest.raises(
        CaptureError, match="keys hold text beside the video's queries cannot be probed: give a profile"
    ):
        probed("Cosmos3", build("Cosmos3"))


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return library.load_pipeline(save(tmp_path))


@pytest.fixture
def two(pipe: Any) -> Any:
    """As Wan 2.2, with transformers that do something."""
    with torch.no_grad():
        for name, value in pipe.transformer.named_parameters():
            if "scale_shift" in name:
                value.normal_()
    second = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for value in second.parameters():
            value.add_(0.1 * torch.randn_like(value))
    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    made: Any = diffusers.WanPipeline(**parts, transformer_2=second, boundary_ratio=0.9)
    made.set_progress_bar_config(disable=True)
    return made


def videos(pipe: Any, **changes: Any) -> list[np.ndarray]:
    """What the reward sees."""
    seen: list[np.ndarray] = []

    def reward(video: Any, seed: int) -> float:
        seen.append(np.array(video, float))
        return 0.0

    given = {"trained_frames": 2, "target_frames": 8, "steps": 2, "height": 32, "width": 32}
    probe(pipe, prompts=["a red circle"], reward=reward, **given, **changes)
    return seen


def test_an_enabled_pipeline_is_probed_untouched(two: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected = videos(two)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "is not, so" in r.getMessage()]
    freeloc_fx.enable(two, Profile(2, "tsa"), backend="eager")
    enabled = two.transformer, two.transformer_2
    assert all(map(np.array_equal, videos(two), expected))
    assert (two.transformer, two.transformer_2) == enabled


@pytest.mark.slow
def test_a_candidate_is_tried_on_both_transformers(two: Any) -> None:
    seen = videos(two, candidates=["window"], seeds=(0, 1, 2))
    freeloc_fx.enable(two, Profile(2), strategy="window", backend="eager")
    expected = [
        library.generate(two, "a red circle", frames=29, height=32, width=32, steps=2, seed=seed).frames
        for seed in (0, 1, 2)
    ]
    assert all(any(np.array_equal(video, each) for each in seen) for video in expected)


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_context_windows_are_not_probed(two: Any, name: str) -> None:
    setattr(two, name, context_windows(getattr(two, name), 4, 2))
    with pytest.raises(TransformError, match=rf"probe: {name} \(.*\) runs in context windows, where it never sees a"):
        probe(two, prompts=["a red circle"], trained_frames=2)


@pytest.mark.slow
def test_a_pipeline_may_have_its_second_transformer_alone(two: Any) -> None:
    parts = {name: part for name, part in two.components.items() if name != "transformer"}
    alone = diffusers.WanPipeline(**parts, transformer=None, boundary_ratio=1.0)
    alone.set_progress_bar_config(disable=True)
    assert all(np.isfinite(video).all() for video in videos(alone))
