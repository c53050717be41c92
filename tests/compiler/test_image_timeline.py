"""An image-to-video Wan, its pipeline's own call, twice its trained length, three texts: compiled once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipelines import Z_DIM, save

import freeloc_fx
from freeloc_fx import Profile, plans
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.generation import pipelines as library

TEXTS = ("a red circle", "a white square over navy grid", "a circle and a square")
FRAMES = 41  # eleven latent frames


def image_pipe(folder: Any) -> Any:
    """A WanImageToVideoPipeline with an image encoder, random weights."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    plain = library.load_pipeline(save(folder))
    torch.manual_seed(1)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=2 * Z_DIM + 4,
        out_channels=Z_DIM, text_dim=16, freq_dim=16, ffn_dim=24, num_layers=2, cross_attn_norm=True,
        rope_max_seq_len=64, image_dim=8, added_kv_proj_dim=12,
    ).eval()  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=32, patch_size=2
    )  # 257 tokens
    return WanImageToVideoPipeline(
        tokenizer=plain.tokenizer, text_encoder=plain.text_encoder, vae=plain.vae, scheduler=plain.scheduler,
        transformer=transformer, image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )  # fmt: skip


def call(pipe: Any, texts: dict[int, str], steps: int, blend: int = 8) -> torch.Tensor:
    from PIL import Image

    inputs = freeloc_fx.timeline(pipe, texts, num_frames=FRAMES, blend=blend)
    found: torch.Tensor = pipe(
        image=Image.new("RGB", (32, 32), (200, 30, 40)), **inputs, num_frames=FRAMES, height=32, width=32,
        num_inference_steps=steps, output_type="latent", guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    return found


@pytest.mark.slow
def test_compiled_once(tmp_path: Any) -> None:
    pipe = image_pipe(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    profile = Profile(trained_frames=5, layers="vrpr+tsa")
    freeloc_fx.enable(pipe, profile, backend="inductor")
    marks = dict(zip((0, 12, 28), TEXTS, strict=True))
    compiled = call(pipe, marks, 3)
    state = state_of(pipe.transformer)
    assert state is not None
    pieces = state.backend.artefacts.compiled
    assert len(plans(pipe.transformer)) == 1 and pieces > 0, "one capture for the steps, both with and without guidance"
    moved = call(pipe, dict(zip((0, 8, 20), reversed(TEXTS), strict=True)), 2, blend=0)
    assert len(plans(pipe.transformer)) == 1 and state.backend.artefacts.compiled == pieces
    freeloc_fx.enable(pipe, profile, backend="eager")
    torch.testing.assert_close(call(pipe, marks, 3), compiled, rtol=1e-3, atol=1e-3)
    again = call(pipe, dict(zip((0, 8, 20), reversed(TEXTS), strict=True)), 2, blend=0)
    torch.testing.assert_close(again, moved, rtol=1e-3, atol=1e-3)


def test_the_image_and_three_texts_reach_the_clip(tmp_path: Any) -> None:
    pipe = image_pipe(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    freeloc_fx.enable(pipe, Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager")
    marks = dict(zip((0, 12, 28), TEXTS, strict=True))
    found = call(pipe, marks, 1)
    assert torch.isfinite(found).all()
    other = call(pipe, {**marks, 28: TEXTS[0]}, 1)
    assert len(plans(pipe.transformer)) == 1 and not torch.equal(other, found)
    # Two layers, one step: what changes at latent frame 7 comes from there, and most of it stays there.
    change = (other - found).abs().mean((0, 1, 3, 4))
    assert change[7:].mean() > 2 * change[:4].mean()
