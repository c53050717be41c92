"""Texts over time that leave the pipeline they were made for are an error, and not a mixture of all texts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.compiler.capture.timed_texts import TimedTexts
from freeloc_fx.errors import TimelineError
from freeloc_fx.generation.telling import schedule_of

FRAMES = 25
SMALL: dict[str, Any] = {
    "height": 32, "width": 32, "num_frames": FRAMES, "num_inference_steps": 2, "output_type": "latent",
}  # fmt: skip


def video(pipe: Any, inputs: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = pipe(**inputs, **SMALL, generator=torch.Generator().manual_seed(0)).frames
    return found


@pytest.fixture
def given(pipe: Any) -> dict[str, Any]:
    freeloc_fx.enable(pipe, Profile(trained_frames=3, layers="vrpr+tsa"), backend="eager")
    return freeloc_fx.timeline(
        pipe, {0: "a red circle", 12: "a white square over navy grid"}, num_frames=FRAMES, max_sequence_length=16
    )


MOVES: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda x: x.to(torch.float64).to(torch.float32),
    "device": lambda x: x.to("cpu").cpu(),
    "clone": lambda x: x.clone().detach().contiguous(),
    "deepcopy": copy.deepcopy,
    "share_memory_": lambda x: x.clone().share_memory_(),
    "float": lambda x: x.double().float(),
}


@pytest.mark.parametrize("name", MOVES)
def test_moved_texts_are_the_same_texts(pipe: Any, given: dict[str, Any], name: str) -> None:
    expected = video(pipe, given)
    moved = MOVES[name](given["prompt_embeds"])
    assert schedule_of(moved) is schedule_of(given["prompt_embeds"])
    assert torch.equal(video(pipe, {**given, "prompt_embeds": moved}), expected)


def scaled_in_place(x: Any) -> Any:
    x *= 1.1
    return x


def filled(x: Any) -> Any:
    x[:, :1] = 0
    return x


def written(x: Any) -> Any:
    torch.add(x.plain(), 1, out=x)
    return x


CHANGES = [
    written,
    lambda x: x[:, :8], lambda x: x * 1.1, lambda x: torch.cat([x, x], 1),
    lambda x: x.mul_(1.1), scaled_in_place, filled,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_texts_are_refused(pipe: Any, given: dict[str, Any], change: Callable[[Any], Any]) -> None:
    with pytest.raises(TimelineError, match="its texts were changed before the call"):
        video(pipe, {**given, "prompt_embeds": change(given["prompt_embeds"])})


@pytest.mark.parametrize(
    "make",
    [
        torch.zeros_like,
        lambda embeds: embeds.new_zeros(embeds.shape),
        lambda embeds: torch.zeros(embeds.shape).to(embeds),
        lambda embeds: torch.zeros(embeds.shape).type_as(embeds),
    ],
)
def test_other_texts_may_take_after_them(pipe: Any, given: dict[str, Any], make: Callable[[Any], torch.Tensor]) -> None:
    zeros = torch.zeros(given["prompt_embeds"].shape)
    expected = video(pipe, {**given, "negative_prompt_embeds": zeros})
    made = make(given["prompt_embeds"])
    assert type(made) is torch.Tensor
    assert torch.equal(video(pipe, {**given, "negative_prompt_embeds": made}), expected)


def test_arguments_by_name(given: dict[str, Any]) -> None:
    embeds = given["prompt_embeds"]
    assert schedule_of(torch.clone(input=embeds)) is schedule_of(embeds)


def test_texts_can_be_looked_at(given: dict[str, Any]) -> None:
    embeds = given["prompt_embeds"]
    assert embeds.shape[::2] == (1, 16) and embeds.dtype == torch.float32 and "TimedTexts" in repr(embeds)
    assert torch.equal(embeds, embeds) and embeds.numpy().shape == embeds.shape and float(embeds.sum()) != 0


def test_no_other_call_takes_them(pipe: Any, given: dict[str, Any]) -> None:
    """A second pipeline of the same components, a call of the model by hand, and the pipeline once it is disabled."""
    another = diffusers.WanPipeline(**pipe.components)
    with pytest.raises(
        TimelineError, match=r"reached WanTransformer3DModel \(encoder_hidden_states\) outside of a call"
    ):
        video(another, given)
    with torch.no_grad(), pytest.raises(TimelineError, match="reached WanTransformer3DModel"):
        pipe.transformer(
            hidden_states=torch.randn(1, 4, 7, 4, 4),
            timestep=torch.ones(1),
            encoder_hidden_states=given["prompt_embeds"],
        )
    freeloc_fx.disable(pipe)
    with pytest.raises(TimelineError, match=r"reached a layer of a model \(linear\) outside of a call"):
        video(pipe, given)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.Conv1d(2, 2, 1)], ids=str)
def test_no_layer_takes_them_or_what_was_made_of_them(layer: nn.Module) -> None:
    embeds = TimedTexts.of(torch.randn(1, 2, 4), None)  # type: ignore[arg-type]
    for made in (embeds, embeds.repeat(2, 1, 1).view(2, 2, 4), torch.cat([embeds, torch.zeros(1, 2, 4)])):
        with pytest.raises(TimelineError, match="reached a layer of a model"):
            layer(made)
    with pytest.raises(TimelineError, match="reached a layer of a model"):
        embeds @ torch.zeros(4, 4)
