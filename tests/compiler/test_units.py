"""The warning about a trained length that was given in frames of the video where latent frames were meant."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from models import wan
from transformed import run

from freeloc_fx import Profile, transform

MESSAGE = (
    "WanTransformer3DModel: profile 'by hand': trained_frames={trained} counts latent frames, so this clip of {frames} "
    "latent frames is within the trained length and nothing is rewritten; if {trained} was meant as frames of the "
    "video, write trained_frames={meant} (for a VAE that makes 4 of one)"
)


def warnings_of(caplog: pytest.LogCaptureFixture, profile: Profile, *lengths: int) -> list[str]:
    """What is said while a fresh Wan runs at these lengths."""
    changed = transform(wan(), profile, backend="eager")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        for frames in lengths:
            run(changed, frames=frames)
    return said(caplog)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Messages of this library, at least warnings."""
    return [r.getMessage() for r in caplog.records if r.name == "freeloc_fx" and r.levelno >= logging.WARNING]


def test_once_for_a_model_and_length(caplog: pytest.LogCaptureFixture) -> None:
    profile = Profile(trained_frames=49, layers="vrpr")
    told = [MESSAGE.format(trained=49, frames=frames, meant=13) for frames in (20, 16)]
    assert warnings_of(caplog, profile, 20, 20, 16, 20, 16) == told
    assert warnings_of(caplog, profile, 20) == told[:1], "another model is told again"


def test_once_for_a_length_whatever_else_differs(caplog: pytest.LogCaptureFixture) -> None:
    changed = transform(wan(), Profile(trained_frames=49, layers="vrpr"), backend="eager")
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        for batch in (1, 2):
            run(changed, frames=20, batch=batch)
    assert len(said(caplog)) == 1


def test_a_clip_that_is_short_in_video_frames_too(caplog: pytest.LogCaptureFixture) -> None:
    """13 latent frames are 49 frames of the video: what such a model was trained on."""
    profile = Profile(trained_frames=49, layers="vrpr")
    assert warnings_of(caplog, profile, 13, 5) == []
    assert len(warnings_of(caplog, profile, 14)) == 1


def test_a_length_that_models_are_trained_on_in_latent_frames(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, Profile(trained_frames=33, layers="vrpr"), 33, 20) == []
    assert len(warnings_of(caplog, Profile(trained_frames=34, layers="vrpr"), 20)) == 1


def test_a_profile_that_was_made_for_the_model(caplog: pytest.LogCaptureFixture) -> None:
    model = wan()
    made: dict[str, Any] = {"class": "WanTransformer3DModel", "config": {"num_layers": len(model.blocks)}}
    assert warnings_of(caplog, Profile(trained_frames=49, layers="vrpr", model=made), 20) == []


def test_where_something_is_rewritten(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, Profile(trained_frames=49, layers="vrpr"), 50) == []


def test_outputs_are_those_of_the_model_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model = wan()
    changed = transform(model, Profile(trained_frames=49, layers="vrpr"), backend="eager")
    assert torch.equal(run(changed, frames=20), run(model, frames=20))
