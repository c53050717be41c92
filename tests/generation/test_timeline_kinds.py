"""Texts over time through the pipelines of diffusers themselves, by kind: what they encode is made up, all else is run.

Each kind is called with guidance, so that the negative prompt reaches the model as the pipeline passes it.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers_models import build
from slow import slow

import freeloc_fx
from freeloc_fx import Profile, plans
from freeloc_fx.errors import TimelineError
from freeloc_fx.generation.telling import schedule_of

CHANNELS = 16
TEXTS = {0: "a red circle", 12: "a white square over a grid"}


def states(text: str, tokens: int, channels: int = CHANNELS) -> torch.Tensor:
    """Text states that depend on the text alone."""
    seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(text))
    return torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(seed))


def encoded(prompt: list[str], tokens: int, channels: int = CHANNELS) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded states and their mask, one token a word and one more."""
    counts = torch.tensor([len(text.split()) + 1 for text in prompt])
    mask = (torch.arange(tokens)[None] < counts[:, None]).long()
    return torch.cat([states(text, tokens, channels) for text in prompt]), mask


def mochi() -> Any:
    class Pipe(diffusers.MochiPipeline):
        def encode_prompt(self, prompt: Any, *args: Any, **given: Any) -> Any:  # type: ignore[override]
            if prompt is None:
                return super().encode_prompt(prompt, *args, **given)
            found, mask = encoded(prompt, 16)
            return found, mask.bool(), None, None

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return Pipe(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=build("Mochi"))


def cogvideox(name: str) -> Any:
    class Pipe(diffusers.CogVideoXPipeline):
        def encode_prompt(self, prompt: Any, *args: Any, **given: Any) -> Any:  # type: ignore[override]
            if prompt is None:
                return super().encode_prompt(prompt, *args, **given)
            return encoded(prompt, 8, 8)[0], None

    return Pipe(
        scheduler=diffusers.CogVideoXDDIMScheduler(), vae=None, text_encoder=None, tokenizer=None,
        transformer=build(name),
    )  # fmt: skip


def kandinsky() -> Any:
    class Pipe(diffusers.Kandinsky5T2VPipeline):
        def encode_prompt(self, prompt: Any, *args: Any, **given: Any) -> Any:  # type: ignore[override]
            if prompt is None:
                return super().encode_prompt(prompt, *args, **given)
            counts = [len(text.split()) + 1 for text in prompt]
            found = torch.cat([states(text, max(counts)) for text in prompt])
            totals = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
            return found, torch.cat([states(text, 1, 8)[:, 0] for text in prompt]), totals

    return Pipe(
        transformer=build("Kandinsky5"), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def ltx() -> Any:
    class Pipe(diffusers.LTXPipeline):
        def encode_prompt(self, prompt: Any, *args: Any, **given: Any) -> Any:  # type: ignore[override]
            if prompt is None:
                return super().encode_prompt(prompt, *args, **given)
            found, mask = encoded(prompt, 16)
            return found, mask, None, None

    return Pipe(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None,
        transformer=build("LTX"),
    )  # fmt: skip


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Mochi": (mochi, {"num_frames": 31, "height": 32, "width": 32}),
    "CogVideoX": (lambda: cogvideox("CogVideoX"), {"num_frames": 21, "height": 64, "width": 64}),
    "CogVideoX 1.5": (lambda: cogvideox("CogVideoX 1.5"), {"num_frames": 17, "height": 64, "width": 64}),
    "Kandinsky5": (kandinsky, {"num_frames": 21, "height": 32, "width": 32}),
    "LTX": (ltx, {"num_frames": 33, "height": 64, "width": 64}),
}


@pytest.mark.parametrize("kind", ["Mochi", "CogVideoX 1.5", *map(slow, ("Kandinsky5", "CogVideoX", "LTX"))])
def test_a_timeline_runs_with_guidance(kind: str) -> None:
    make, size = KINDS[kind]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    freeloc_fx.enable(pipe, Profile(trained_frames=3, layers="vrpr"), backend="eager")
    told = {"num_frames": size["num_frames"], "negative_prompt": "blur"}

    def video(texts: dict[int, str], **more: Any) -> torch.Tensor:
        inputs = freeloc_fx.timeline(pipe, texts, **{**told, **more})
        found: torch.Tensor = pipe(
            **inputs, **size, num_inference_steps=2, guidance_scale=3.0, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).frames  # fmt: skip
        return found

    found = video(TEXTS)
    assert torch.isfinite(found).all()
    captured = len(plans(pipe.transformer))
    assert captured <= 2, "one capture for all steps, and one where the negative prompt has a call of its own"
    assert not torch.allclose(video({**TEXTS, 12: "another text of as many words"}), found, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(video(TEXTS, negative_prompt="noise"), found, rtol=1e-4, atol=1e-4)
    assert len(plans(pipe.transformer)) == captured


def test_where_texts_lie_depends_on_the_kind() -> None:
    pipe = mochi()
    freeloc_fx.enable(pipe, Profile(trained_frames=3, layers="vrpr"), backend="eager")
    texts = schedule_of(freeloc_fx.timeline(pipe, TEXTS, num_frames=31, negative_prompt="blur")["prompt_embeds"])
    assert texts is not None
    assert (texts.starts, texts.shown, texts.negative) == ((0, 4, 32), 11, (0, 2, 4))
    pipe = kandinsky()
    freeloc_fx.enable(pipe, Profile(trained_frames=3, layers="vrpr"), backend="eager")
    made = freeloc_fx.timeline(pipe, TEXTS, num_frames=21, negative_prompt="blur")
    texts = schedule_of(made["prompt_embeds_qwen"])
    assert texts is not None and (texts.starts, texts.one) == ((0, 4, 11), 2)
    assert made["prompt_cu_seqlens"].tolist() == [0, 11] and made["negative_prompt_cu_seqlens"].tolist() == [0, 2]
    with pytest.raises(TimelineError, match="has a negative prompt of its own"):
        freeloc_fx.timeline(pipe, TEXTS, num_frames=21)
    with pytest.raises(TimelineError, match="the texts have 11 tokens together, and so has the negative prompt"):
        freeloc_fx.timeline(pipe, TEXTS, num_frames=21, negative_prompt="ten words " * 5)
    pipe = cogvideox("CogVideoX 1.5")
    freeloc_fx.enable(pipe, Profile(trained_frames=3, layers="vrpr"), backend="eager")
    texts = schedule_of(freeloc_fx.timeline(pipe, TEXTS, num_frames=17, blend=0)["prompt_embeds"])
    assert texts is not None and texts.weights[:, 1].tolist() == [0, 0, 0, 0, 0, 1], "a latent frame is put in front"
