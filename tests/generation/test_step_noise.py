"""Noise that a scheduler adds on the way: of the request's seed, whoever draws it, and said where it is a loss."""

from __future__ import annotations

import copy
import inspect
import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pipelines import save

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.generation.noise import for_pipeline
from freeloc_fx.generation.running import generate
from freeloc_fx.generation.step_noise import adds_noise, seeded_steps


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
    """With latents of the caller's the seed's generator has drawn nothing yet."""
    start = torch.randn(1, 16, 5, 4, 4, generator=torch.Generator().manual_seed(5))
    drawn: list[torch.Tensor] = []
    with seeded_steps(noisy, 5):
        noisy.scheduler.set_timesteps(3)
        zero = torch.zeros_like(start)
        drawn.append(noisy.scheduler.step(zero, noisy.scheduler.timesteps[0], zero, return_dict=False)[0])
    assert drawn[0].std() > 0.5
    assert abs(torch.corrcoef(torch.stack([drawn[0].flatten(), start.flatten()]))[0, 1]) < 0.1


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
    """LTX-2 copies it for the audio, SkyReels-V2 for each frame."""
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


def test_a_step_that_somebody_replaced_is_left_alone(noisy: Any) -> None:
    mine = noisy.scheduler.step = lambda *args, **kwargs: None
    with seeded_steps(noisy, 1):
        assert noisy.scheduler.step is mine


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
        for at in scheduler.timesteps[:2]:
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
