"""Context windows of diffusers' classes: each window is called as the class is called for a clip of its length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers_models import CASES, arguments, build
from slow import slow

from freeloc_fx.compiler.capture.conventions import frame_axis, patches
from freeloc_fx.errors import LengthError
from freeloc_fx.generation.window_arguments import WholeClip
from freeloc_fx.generation.windows import context_windows, fusion_weights, window_frames

WINDOW, STRIDE, POSITIONS = 4, 3, 8
QUICK = ("WanVACE", "CogVideoX 1.5", "AnyFlow", "Kandinsky5")
OTHERS = (
    "Wan", "Wan I2V", "SkyReelsV2", "ChronoEdit", "HunyuanVideo", "HunyuanVideo15", "MotifVideo", "CogVideoX",
    "ConsisID", "EasyAnimate", "Allegro", "Mochi", "Cosmos", "JoyImageEdit",
)  # fmt: skip


def window_of(key: str, whole: Any, example: Any, frames: list[int]) -> Any:
    """An argument of a window's call: what the clip's call has where both have one size, what a clip of the window's
    length has for tables of positions, else the window's part of the axis that is longer."""
    if "rotary" in key or "rope" in key:
        return example
    if isinstance(example, (list, tuple)):
        return type(example)(window_of(key, w, e, frames) for w, e in zip(whole, example, strict=True))
    if not isinstance(example, torch.Tensor) or whole.shape == example.shape:
        return whole
    (axis,) = [n for n, (a, b) in enumerate(zip(whole.shape, example.shape, strict=True)) if a != b]
    parts = whole.unflatten(axis, (-1, example.shape[axis] // len(frames))).index_select(axis, torch.tensor(frames))
    return parts.flatten(axis, axis + 1)


def prediction(output: Any) -> torch.Tensor:
    """The one tensor of an output."""
    if not isinstance(output, torch.Tensor):
        (output,) = output.values() if isinstance(output, dict) else output
    assert isinstance(output, torch.Tensor)
    return output


@torch.no_grad()
@pytest.mark.parametrize("name", [*QUICK, *(slow(name) for name in OTHERS)])
def test_a_window_is_called_as_a_clip_of_its_length(name: str) -> None:
    if name not in CASES:
        pytest.skip(f"this diffusers has no {name}")
    model = build(name)
    step, axis = patches(model)[0], frame_axis(model)
    whole, example = (arguments(name, model, step * n) for n in (POSITIONS, WINDOW))
    if name == "AnyFlow":
        whole["timestep"] = torch.linspace(900, 100, step * POSITIONS)[None]
    found = prediction(context_windows(model, WINDOW, STRIDE)(**whole))
    total, weight = torch.zeros_like(found), torch.zeros(step * POSITIONS)
    groups = window_frames(POSITIONS, WINDOW, STRIDE)
    assert len(groups) == 3
    for group in groups:
        frames = [place * step + k for place in group for k in range(step)]
        call = {key: window_of(key, value, example[key], frames) for key, value in whole.items()}
        made = prediction(model(**call))
        rising = fusion_weights(WINDOW, WINDOW - STRIDE).repeat_interleave(step)
        for place, frame in enumerate(frames):
            total.select(axis, frame).add_(made.select(axis, place) * rising[place])
            weight[frame] += rising[place]
    expected = total / weight.view(-1, *[1] * (4 - axis))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain = prediction(model(**whole))
    assert (plain - expected).norm() > 1e-3 * expected.norm(), "windows do not show in the output"


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "named"),
    [("WanAnimate", r"pose_hidden_states \(1, "), ("SanaWM", r"camera_conditions \(")],
)
def test_what_cannot_be_cut_is_named(name: str, named: str) -> None:
    if name not in CASES:
        pytest.skip(f"this diffusers has no {name}")
    model = build(name)
    with pytest.raises(LengthError, match=f"cannot run on one window: .*these were not cut, .*{named}"):
        context_windows(model, WINDOW, STRIDE)(**arguments(name, model, POSITIONS))


@torch.no_grad()
def test_a_first_frame_that_is_an_image_is_in_the_first_window_only() -> None:
    case = CASES["HunyuanVideo"]
    case = replace(case, config={**case.config, "image_condition_type": "token_replace"})
    model = build("HunyuanVideo", case=case)
    windowed = context_windows(model, WINDOW, STRIDE)
    short = arguments("HunyuanVideo", model, WINDOW)
    assert torch.equal(prediction(windowed(**short)), prediction(model(**short)))
    with pytest.raises(LengthError, match=r"'token_replace' takes the first latent frame .* at most 4 .* found 5"):
        windowed(**arguments("HunyuanVideo", model, WINDOW + 1))


@torch.no_grad()
def test_half_a_position_is_refused() -> None:
    model = build("CogVideoX 1.5")
    call = arguments("CogVideoX 1.5", model, 8)
    call["hidden_states"] = call["hidden_states"][:, :7]
    with pytest.raises(LengthError, match="expected a multiple of the patch's 2 latent frames, found 7"):
        context_windows(model, 2)(**call)


def test_times_of_frames_are_cut_in_any_layout() -> None:
    """Cosmos Predict2 gives a time for each frame as (batch, 1, frames, 1, 1), AnyFlow as (batch, frames)."""
    clip = WholeClip.of(build("Wan"), torch.zeros(2, 4, 8, 4, 6))
    times = torch.arange(8.0)
    found = clip.cut({"timestep": times.view(1, 1, 8, 1, 1), "r_timestep": times[None], "text": times[None]}, [2, 3, 4])
    assert found["timestep"].flatten().tolist() == found["r_timestep"].flatten().tolist() == [2, 3, 4]
    assert found["text"].shape == (1, 8)
