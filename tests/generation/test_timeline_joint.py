"""Texts over time through pipelines of joint models, and through encoders of other kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.errors import TimelineError
from freeloc_fx.generation.pipelines import load_pipeline
from freeloc_fx.generation.telling import schedule_of

FIRST, SECOND = "a red circle bounces slowly over a navy grid", "a white square bounces quickly over teal dots"
FRAMES = 25  # seven latent frames


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = load_pipeline("tiny-joint")
    made.set_progress_bar_config(disable=True)
    freeloc_fx.enable(made, Profile(trained_frames=3, layers="vrpr+tsa+temp"), backend="eager")
    return made


def video(pipe: Any, inputs: dict[str, Any], guidance: float = 3.0) -> torch.Tensor:
    found: torch.Tensor = pipe(
        **inputs, num_frames=FRAMES, height=32, width=32, num_inference_steps=1, output_type="latent",
        guidance_scale=guidance, generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    return found


def test_one_text_is_the_plain_call_bitwise(pipe: Any) -> None:
    plain = video(pipe, {"prompt": FIRST})
    assert torch.equal(video(pipe, freeloc_fx.timeline(pipe, {0: FIRST}, num_frames=FRAMES)), plain)
    twice = freeloc_fx.timeline(pipe, {0: FIRST, 12: FIRST}, num_frames=FRAMES)
    assert torch.equal(video(pipe, twice), plain), "a text that goes on is one text"


def test_texts_are_packed_and_so_is_the_negative_prompt(pipe: Any) -> None:
    inputs = freeloc_fx.timeline(pipe, {0: FIRST, 12: SECOND}, num_frames=FRAMES, blend=4)
    texts = schedule_of(inputs["prompt_embeds"])
    assert texts is not None and texts.negative is not None
    mask = inputs["prompt_attention_mask"]
    sizes = [len(pipe.tokenizer(text).input_ids) for text in (FIRST, SECOND)]
    assert texts.starts == (0, sizes[0], mask.shape[1]) and texts.shown == sum(sizes) == int(mask.sum())
    assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=True)
    alone, own = pipe.encode_prompt([SECOND])
    torch.testing.assert_close(inputs["prompt_embeds"][:, sizes[0] : sum(sizes)], alone[own.bool()][None].detach())
    found = video(pipe, inputs)
    other = freeloc_fx.timeline(pipe, {0: FIRST, 12: SECOND}, num_frames=FRAMES, blend=4, negative_prompt=SECOND)
    assert not torch.allclose(video(pipe, other), found)
    assert not torch.allclose(video(pipe, {"prompt": FIRST}), found)


def test_a_batch_of_unequal_texts_is_refused(pipe: Any) -> None:
    with pytest.raises(TimelineError, match="equally many tokens in this model, found"):
        freeloc_fx.timeline(pipe, {0: [FIRST, "red"], 12: [SECOND, "white"]}, num_frames=FRAMES)


def test_embeddings_without_a_mask(pipe: Any) -> None:
    with pytest.raises(ValueError, match="the mask of their tokens"):
        pipe(prompt_embeds=torch.zeros(1, 4, 8), num_frames=FRAMES, num_inference_steps=1)
    with pytest.raises(ValueError, match="found neither"):
        pipe(num_frames=FRAMES, num_inference_steps=1)
