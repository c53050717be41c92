"""What fails after denoising keeps the latents, and the video made of them is the one that was lost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from slow import slow

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.latents import Latents, LatentsError

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
BY_HAND = Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"})
SIZE: dict[str, Any] = {"frames": 13, "height": 32, "width": 48, "steps": 3, "guidance": 2.0, "seed": 5}


@pytest.fixture(params=["wan", slow("joint")])
def any_pipe(request: pytest.FixtureRequest, folder: Path) -> Any:
    """Wan's, and a pipeline that is none of diffusers' own."""
    return library.load_pipeline(folder if request.param == "wan" else "tiny-joint")


class DecoderError(RuntimeError):
    """Stands for anything that a decoder may raise."""


@pytest.mark.parametrize("error", [DecoderError, slow(KeyboardInterrupt), slow(torch.OutOfMemoryError)])
def test_a_failure_while_decoding_carries_the_latents(
    any_pipe: Any, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "freeloc_fx")
    request = {**SIZE, "height": 64, "width": 64, "steps": 2}
    library.apply(any_pipe, BY_HAND.with_layers("vrpr"))
    expected = library.generate(any_pipe, PROMPT, **request)
    assert not caplog.records

    def fail(*_: Any, **__: Any) -> None:
        raise error("no video today")

    with monkeypatch.context() as patch:
        patch.setattr(any_pipe.vae, "decode", fail)
        with pytest.raises(error, match="no video today") as caught:
            library.generate(any_pipe, PROMPT, **request)
    kept: Any = caught.value.latents  # type: ignore[attr-defined]
    assert "decode_latents(pipe, error.latents)" in caplog.text and error.__name__ in caplog.text
    assert isinstance(kept, Latents) and kept.settings["seed"] == 5 and kept.plan == expected.plan
    again = Latents.load(kept.save(tmp_path / "x.safetensors"))
    assert torch.equal(again.tensor, kept.tensor) and again.settings == kept.settings
    assert expected.plan is not None and again.facts["plan"]["rewritten"] == expected.plan.rewritten

    caplog.clear()
    calls = 0
    model = any_pipe.transformer

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    with model.blocks[0].register_forward_hook(count) if hasattr(model, "blocks") else torch.no_grad():
        video = library.decode_latents(any_pipe, again)
    assert np.array_equal(video.frames, expected.frames)
    assert calls == 0 and not caplog.records  # the transformer was passed over, and that is no fault
    library.apply(any_pipe, strategy="direct")
    assert np.array_equal(library.decode_latents(any_pipe, again).frames, expected.frames)
    library.apply(any_pipe, BY_HAND.with_layers("vrpr"))
    assert np.array_equal(library.generate(any_pipe, PROMPT, **request).frames, expected.frames)


def test_latents_are_told_before_they_are_decoded(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *a, **k: order.append("decode") or decode(*a, **k))
    library.generate(
        pipe, PROMPT, **SIZE, on_latents=order.append, on_step=lambda done, total: order.append((done, total))
    )
    (kept,) = (item for item in order if isinstance(item, Latents))
    assert order == [(1, 3), (2, 3), kept, (3, 3), "decode"]
    assert kept.pipeline == "WanPipeline" and kept.plan is None and kept.tensor.shape == (1, 4, 4, 4, 6)


def test_what_fails_before_the_last_step_carries_nothing(pipe: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        library.generate(pipe, PROMPT, **SIZE, on_step=stop)
    assert not hasattr(caught.value, "latents")


def test_latents_that_are_no_video_are_not_kept(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(float("inf"))
    monkeypatch.setattr(pipe.vae, "decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(freeloc_fx.FreelocError, match="latents hold NaN or infinity") as caught:
        library.generate(pipe, PROMPT, **SIZE)
    assert not hasattr(caught.value, "latents")


def test_files_that_hold_no_latents(pipe: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    kept = Latents(torch.zeros(1, 4, 2, 2, 2), "SomePipeline", {"frames": 5, "height": 16, "width": 16})
    path = kept.save(tmp_path / "a.safetensors")
    with pytest.raises(LatentsError, match="expected those of a WanPipeline, found those of a SomePipeline"):
        library.decode_latents(pipe, Latents.load(path))
    path.write_bytes(path.read_bytes()[:-1])
    save_file({"latents": torch.zeros(2)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_text("no")
    for name in "abcd":
        with pytest.raises(LatentsError, match=rf"{name}\.safetensors: expected"):
            Latents.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(LatentsError, match="found a folder"):
        Latents.load(tmp_path)


def ltx() -> Any:
    """Latents packed into tokens."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    sides = {"block_out_channels": (8,) * 4, "layers_per_block": (1,) * 5}
    scaling = (True, True, False, False)
    return LTXPipeline(
        transformer=LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=1, caption_channels=16,
        ),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8, **sides, **{f"decoder_{name}": value for name, value in sides.items()},
            spatio_temporal_scaling=scaling, decoder_spatio_temporal_scaling=scaling, patch_size=1,
            decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=encoder(16), tokenizer=pipelines.tokenizer(),
    )  # fmt: skip


def cogvideox(**config: Any) -> Any:
    """Frames before channels, and a scheduler whose step returns two tensors. config: more of the transformer's."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDPMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    return CogVideoXPipeline(
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
            text_embed_dim=32, num_layers=1, sample_width=4, sample_height=4, sample_frames=9, max_text_seq_length=16,
            use_rotary_positional_embeddings=True, **config,
        ),
        vae=AutoencoderKLCogVideoX(
            block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2
        ),
        scheduler=CogVideoXDPMScheduler(), text_encoder=encoder(32), tokenizer=pipelines.tokenizer(),
    )  # fmt: skip


def encoder(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    words = len(pipelines.tokenizer())
    return T5EncoderModel(T5Config(vocab_size=words, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


@pytest.mark.parametrize("make", [ltx, cogvideox])
def test_pipelines_with_layouts_and_schedulers_of_their_own(make: Any) -> None:
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    kept: list[Latents] = []
    request = {"frames": 9, "height": 32, "width": 32, "steps": 2, "guidance": 2.0}
    expected = library.generate(pipe, PROMPT, **request, on_latents=kept.append)
    assert np.array_equal(library.decode_latents(pipe, kept[0]).frames, expected.frames)
