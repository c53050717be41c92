"""Noise that a scheduler adds on the way: of the request's seed, whoever draws it, and said where it is a loss."""

from __future__ import annotations

import copy
import inspect
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pipelines import save
from test_latents import cogvideox

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.generation.noise import for_pipeline
from freeloc_fx.generation.running import generate
from freeloc_fx.generation.step_noise import _ADDING, adds_noise, seeded_steps


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = save(tmp_path_factory.mktemp("pipeline"))
    made = diffusers.WanPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def noisy(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline with a scheduler that adds noise, to which it hands no generator."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    return pipe


def frames(pipe: Any, seed: int) -> np.ndarray:
    size: dict[str, int] = {"frames": 17, "height": 32, "width": 32, "steps": 3}
    video: np.ndarray = generate(pipe, "a red circle", seed=seed, **size).frames
    return video


def test_a_seed_is_one_video_whatever_was_drawn_before(noisy: Any) -> None:
    torch.manual_seed(1)
    first = frames(noisy, 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert np.array_equal(frames(noisy, 5), first)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own noise is left alone
    assert not np.array_equal(frames(noisy, 6), first)
    assert "step" not in vars(noisy.scheduler)


def test_strategies_are_compared_under_the_same_noise(noisy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the trained length a profile changes nothing, so that the videos are equal to the bit."""
    expected = frames(noisy, 5)
    made = freeloc_fx.transform(noisy.transformer, Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager")
    monkeypatch.setattr(noisy, "transformer", made)
    assert np.array_equal(frames(noisy, 5), expected)


def test_noise_on_the_way_is_not_the_initial_noise_again(noisy: Any) -> None:
    """Latents of the caller's may be drawn from the same seed."""
    start = torch.randn(1, 16, 5, 4, 4, generator=torch.Generator().manual_seed(5))
    with seeded_steps(noisy, 5):
        noisy.scheduler.set_timesteps(3)
        zero = torch.zeros_like(start)
        drawn = noisy.scheduler.step(zero, noisy.scheduler.timesteps[0], zero, return_dict=False)[0]
    assert drawn.std() > 0.5
    assert abs(correlation(drawn, start)) < 0.1


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_nor_in_a_pipeline_that_hands_its_generator_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """CogVideoX does, and FreeNoise's latents of a seed leave that seed's generator as it was."""
    pipe = cogvideox()
    pipe.set_progress_bar_config(disable=True)
    latents = for_pipeline(pipe, 33, 32, 32, window=3, seed=5)
    step, drawn = type(pipe.scheduler).step, []

    def watched(self: Any, *args: Any, generator: torch.Generator, **kwargs: Any) -> Any:
        drawn.append(torch.randn(latents.shape, generator=generator.clone_state()))
        return step(self, *args, generator=generator, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", watched)
    generate(pipe, "a red circle", frames=33, height=32, width=32, steps=2, guidance=1.0, seed=5, latents=latents)
    frames = latents.shape[1]
    assert max(abs(correlation(drawn[0][:, f], latents[:, f])) for f in range(frames)) < 0.6  # 64 numbers a frame
    assert abs(correlation(drawn[0], latents)) < 0.2


def test_a_generator_that_is_handed_over_stays(noisy: Any) -> None:
    sample, at = torch.ones(1, 4, 3, 2, 2), 0
    results = []
    for seed in (1, 2):
        with seeded_steps(noisy, seed):
            noisy.scheduler.set_timesteps(3)
            given = torch.Generator().manual_seed(9)
            results.append(noisy.scheduler.step(sample, noisy.scheduler.timesteps[at], sample, generator=given)[0])
    assert torch.equal(*results)


def test_a_copy_of_the_scheduler_makes_its_own_steps(noisy: Any) -> None:
    """LTX-2 copies it for the audio."""
    sample = torch.ones(1, 4, 3, 2, 2)
    with seeded_steps(noisy, 1):
        noisy.scheduler.set_timesteps(3)
        other = copy.deepcopy(noisy.scheduler)
        assert "generator" in inspect.signature(other.step).parameters
        first = noisy.scheduler.step(sample, noisy.scheduler.timesteps[0], sample)[0]
        second = other.step(sample, other.timesteps[0], sample)[0]
        assert (noisy.scheduler.step_index, other.step_index) == (1, 1)
        assert not torch.equal(first, second)
        other.step(sample, other.timesteps[1], sample)
        assert (noisy.scheduler.step_index, other.step_index) == (1, 2)


def test_a_copy_that_outlives_its_generation_follows_the_next_seed(noisy: Any) -> None:
    sample = torch.ones(1, 4, 3, 2, 2)
    with seeded_steps(noisy, 1):
        noisy.scheduler = copy.deepcopy(noisy.scheduler)
    found = []
    for seed in (7, 7, 8):
        with seeded_steps(noisy, seed):
            noisy.scheduler.set_timesteps(3)
            found.append(noisy.scheduler.step(sample, noisy.scheduler.timesteps[0], sample)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_second_scheduler_follows_the_seed_too(noisy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LTX-2 takes one for the audio."""
    sample, found = torch.ones(1, 4, 3, 2, 2), []
    monkeypatch.setattr(noisy, "audio_scheduler", copy.deepcopy(noisy.scheduler), raising=False)
    for before in (1, 2):
        torch.manual_seed(before)
        with seeded_steps(noisy, 3):
            noisy.audio_scheduler.set_timesteps(3)
            found.append(noisy.audio_scheduler.step(sample, noisy.audio_scheduler.timesteps[0], sample)[0])
    assert torch.equal(*found)


def test_a_step_that_somebody_replaced_is_left_alone_and_said(noisy: Any, caplog: pytest.LogCaptureFixture) -> None:
    mine = noisy.scheduler.step = lambda *args, **kwargs: None
    with caplog.at_level(logging.WARNING, "freeloc_fx"), seeded_steps(noisy, 1):
        assert noisy.scheduler.step is mine
    assert "FlowMatchEulerDiscreteScheduler has had its step replaced" in caplog.text


def test_schedulers_that_are_named_exist_and_a_class_of_ones_own_counts() -> None:
    missing = {name for name in _ADDING if not hasattr(diffusers, name)}
    assert missing <= {"FlowMatchLCMScheduler", "DPMSolverSDEScheduler"}  # of later versions; of an extra of diffusers

    class Mine(diffusers.LCMScheduler):
        config = None

    assert adds_noise(object.__new__(Mine)) and not adds_noise(None) and not adds_noise(SimpleNamespace(config=None))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("FlowMatchLCMScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("CMStochasticIterativeScheduler", {}),
        ("DDPMParallelScheduler", {}),
        ("DDIMScheduler", {}),
        ("DDPMScheduler", {}),
        ("LCMScheduler", {}),
        ("TCDScheduler", {}),
    ],
)
def test_which_schedulers_add_noise(name: str, settings: dict[str, Any]) -> None:
    found = []
    for seed in (1, 2):
        scheduler = getattr(diffusers, name)(**settings)
        scheduler.set_timesteps(4)
        sample = torch.full((1, 4, 8, 8), 0.5)
        torch.manual_seed(seed)
        for at in scheduler.timesteps[:3]:
            sample = scheduler.step(torch.ones_like(sample) * 0.1, at, sample)[0]
        found.append(sample)
    assert adds_noise(scheduler) == (not torch.equal(*found))


@pytest.mark.parametrize("how", ["own", "noisy"])
def test_what_freenoise_repeats_is_said_to_be_lost(
    how: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = request.getfixturevalue("pipe" if how == "own" else "noisy")
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        for_pipeline(chosen, 17, 32, 32, window=2)
    said = [r.getMessage() for r in caplog.records if "FreeNoise" in r.getMessage()]
    assert len(said) == (how == "noisy")
    assert all("FlowMatchEulerDiscreteScheduler" in words for words in said)
