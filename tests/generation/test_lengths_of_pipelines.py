"""Lengths of video as each pipeline makes them: frames that its VAE gives, latent frames that its model is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_models import build
from test_latents import cogvideox

import freeloc_fx
from freeloc_fx import Profile, plans
from freeloc_fx.cli.common import Job
from freeloc_fx.cli.finished import FinishedVideos
from freeloc_fx.compiler.capture.timed_texts import TimedTexts
from freeloc_fx.errors import LengthError, TimelineError
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.encoding import VideoError
from freeloc_fx.generation.noise import for_pipeline
from freeloc_fx.generation.request import Facts, check_frames, check_request
from freeloc_fx.generation.telling import _length, telling
from freeloc_fx.method.timeline import TextSchedule

SIZE: dict[str, Any] = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def padding() -> Any:
    """A CogVideoX 1.5, whose pipeline fills the latent frames up to pairs."""
    made = cogvideox(patch_size=2, patch_size_t=2, patch_bias=False)
    made.set_progress_bar_config(disable=True)
    freeloc_fx.enable(made, Profile(trained_frames=2, layers="vrpr+tsa"), backend="eager")
    return made


@pytest.mark.parametrize("frames", [9, 17])
def test_cogvideox_makes_as_many_frames_as_it_is_asked_for(frames: int) -> None:
    pipe = cogvideox()
    pipe.set_progress_bar_config(disable=True)
    assert check_frames(Facts.of(pipe), frames) == (frames - 1) // 4 + 1
    assert len(library.generate(pipe, "a red circle", frames=frames, steps=1, guidance=1.0, **SIZE).frames) == frames


@pytest.mark.parametrize(("frames", "near"), [(5, "1 and 9"), (13, "9 and 17"), (85, "81 and 89")])
def test_cogvideox_is_not_asked_for_frames_that_its_vae_makes_too_many_of(frames: int, near: str) -> None:
    """It decodes two latent frames at a time, the first of all to one frame where their number is odd."""
    pipe = cogvideox()
    with pytest.raises(LengthError, match=f"frames={frames}: this model makes 8n.1 frames, the nearest are {near}"):
        check_request(pipe, frames, 32, 32)
    latents = torch.zeros(1, 4, (frames - 1) // 4 + 1, 2, 2)
    if frames < 20:
        assert pipe.vae.decode(latents).sample.shape[2] == frames + 3, "diffusers gives what is asked for now"


@pytest.mark.parametrize("frames", [9, 17])
def test_a_plan_knows_of_latent_frames_that_a_pipeline_fills_up(padding: Any, frames: int) -> None:
    planned = freeloc_fx.plan_for(padding, frames, 32, 32)
    video = library.generate(padding, "a red circle", frames=frames, steps=2, guidance=1.0, **SIZE)
    ran = plans(padding.transformer)[-1]
    assert ran == video.plan and len(video.frames) == frames
    assert (planned.grid.frames, planned.rewritten) == (ran.grid.frames, ran.rewritten)
    assert 2 * ran.grid.frames == (frames - 1) // 4 + 2


def test_noise_is_for_what_the_model_is_given(padding: Any) -> None:
    noise = for_pipeline(padding, 17, 32, 32, window=4)
    assert noise.shape[1] == 6
    video = library.generate(padding, "a red circle", frames=17, steps=1, guidance=1.0, latents=noise, **SIZE)
    assert len(video.frames) == 17


def allegro() -> Any:
    from diffusers import AllegroPipeline, AutoencoderKLAllegro, EulerAncestralDiscreteScheduler

    vae = AutoencoderKLAllegro(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, latent_channels=4)
    return AllegroPipeline(None, None, vae, build("Allegro"), EulerAncestralDiscreteScheduler())


@pytest.mark.parametrize(("frames", "latent"), [(24, 6), (25, 7), (88, 22), (23, 7), (22, 6)])
def test_allegro_makes_any_number_of_frames(frames: int, latent: int) -> None:
    pipe = allegro()
    assert check_request(pipe, frames, 64, 96)[0] == latent
    made = pipe.prepare_latents(1, 4, frames, 64, 96, torch.float32, torch.device("cpu"), None)
    assert made.shape[2] == latent


def test_other_frames_than_were_asked_for_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipeline whose lengths nobody knows; `freeloc compare` keeps no such video."""
    pipe = cogvideox()
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(Facts, "every", property(lambda facts: facts.temporal))
    video = library.generate(pipe, "a red circle", frames=13, steps=1, guidance=1.0, **SIZE)
    assert "CogVideoXPipeline: 13 frames were asked for, and it made 16" in caplog.messages
    job = Job("tiny-wan", None, 13, 32, 32, 1, 1.0, None, torch.float32, "cpu", "eager", "auto", (4, 4, 4))
    with pytest.raises(
        VideoError, match=r"direct, seed 0: expected a video of \(13, 32, 32, 3\), found \(16, 32, 32, 3\)"
    ):
        FinishedVideos(tmp_path / "parts", job, "a red circle").put("direct", 0, video, {})


@pytest.mark.parametrize("made", [9, 17, 81])
def test_a_timeline_of_another_length_names_the_length_that_it_was_made_for(padding: Any, made: int) -> None:
    latent = sum(Facts.of(padding).latent_frames(made))
    texts = TimedTexts.of(torch.zeros(1, 8, 4), TextSchedule(np.ones((latent, 1)), (0, 8), 8))
    refused = pytest.raises(TimelineError, match=f"made for num_frames={made}, and the call is for num_frames=97")
    with refused, telling(padding, (), {"prompt_embeds": texts, "num_frames": 97}):
        pass


@pytest.mark.parametrize("frames", [5, 25, 89])
def test_the_length_of_a_timeline_of_allegro(frames: int) -> None:
    """Several lengths have as many latent frames, and texts are told for one of them."""
    facts = Facts.of(allegro())
    assert _length(facts, sum(facts.latent_frames(frames))) == frames


@pytest.mark.parametrize("frames", [1, 9, 17, 49, 81])
def test_video_frames_of_positions_in_time(padding: Any, frames: int) -> None:
    for facts in (Facts.of(padding), Facts.of(cogvideox()), Facts.read("tiny-wan")):
        assert facts.video_frames(facts.profile_frames(frames)) == frames
    with pytest.raises(LengthError, match=r"6 latent frames, frames=21: this model makes 8n.1 frames"):
        Facts.of(cogvideox()).video_frames(6, "6 latent frames, frames")


def test_a_probe_of_lengths_that_the_pipeline_does_not_make_ends_before_it_begins() -> None:
    with pytest.raises(LengthError, match=r"6 latent frames, frames=21: this model makes 8n.1 frames, .* 17 and 25"):
        freeloc_fx.probe(cogvideox(), prompts=["a red circle"], trained_frames=3, lengths=[6])


def test_texts_over_time_want_lengths_that_begin_with_one_frame() -> None:
    pipe = allegro()
    freeloc_fx.enable(pipe, Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager")
    with pytest.raises(LengthError, match=r"num_frames=24: expected 4n.1 frames, by which texts are told"):
        freeloc_fx.timeline(pipe, {0: "a red circle", 12: "a white square"}, num_frames=24)
