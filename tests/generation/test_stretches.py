"""Frames of other VAEs, and of Wan's in tiles, one stretch after the other: bitwise what the VAE itself makes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from slow import slow
from torch import nn

from freeloc_fx.generation import running
from freeloc_fx.generation.decoding import eight_bit, in_chunks
from freeloc_fx.generation.stretches import stretch_of, why_at_once

UP = ("HunyuanVideoUpBlock3D",) * 4


def made(cls: str, **config: Any) -> Any:
    torch.manual_seed(0)
    vae = getattr(diffusers, cls)(**config).eval().requires_grad_(False)
    for weight in vae.parameters():  # untrained, its frames hardly depend on one another
        if weight.ndim > 1:
            nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    return vae


def cogvideox() -> Any:
    return made(
        "AutoencoderKLCogVideoX", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=2,
    )  # fmt: skip


def hunyuan() -> Any:
    vae = made(
        "AutoencoderKLHunyuanVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4,
    )  # fmt: skip
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = 12, 8
    return vae


def ltx(framewise: bool = True) -> Any:
    vae = made(
        "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    vae.use_framewise_decoding = framewise
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = 24, 16
    return vae


def wan(**options: Any) -> Any:
    vae = made(
        "AutoencoderKLWan", base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4, **options,
    )  # fmt: skip
    # Latents of a side: 4 a tile, 3 of them new.
    size = 4 * vae.spatial_compression_ratio, 3 * vae.spatial_compression_ratio
    vae.enable_tiling(size[0], size[0], size[1], size[1])
    return vae


PATCHES: dict[str, Any] = {
    "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8,
    "decoder_base_dim": 8,
}  # fmt: skip
VAES = {
    "CogVideoX": (cogvideox, 2),
    "HunyuanVideo": (hunyuan, 2),
    "LTX, framewise": (ltx, 2),
    "Wan in tiles": (wan, None),
    "Wan 2.2 in tiles": (lambda: wan(**PATCHES), None),
}


QUICK = ("CogVideoX", "HunyuanVideo", "Wan in tiles")


@pytest.mark.parametrize("frames", [slow(1), slow(2), 7])
@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in VAES])
@torch.no_grad()
def test_stretches_are_the_vae_s_own_frames(name: str, frames: int) -> None:
    make, stretch = VAES[name]
    vae = make()
    # Two rows of tiles and two columns of Wan's; of others, whatever is small.
    latents = torch.randn(1, 4, frames, *((4, 5) if stretch is None else (2, 3)))
    expected = vae.decode(latents).sample
    assert expected.std() > 0.02
    given: list[np.ndarray] = []
    with in_chunks(vae, 10**4, 10**4, given.append) as chunk:  # a picture so large that each call takes a frame
        last = vae.decode(latents, return_dict=False)[0]
    assert chunk == (stretch or 1) and (stretch is None or stretch_of(vae) == stretch)
    assert np.array_equal(np.concatenate(given), eight_bit(expected[0]))
    assert torch.equal(last, expected[:, :, -1:])
    assert frames < 7 or max(map(len, given)) <= expected.shape[2] // 2, "in pieces"
    assert "_decode" not in vars(vae)
    assert torch.equal(vae.decode(latents).sample, expected), "the VAE is as it was"


@torch.no_grad()
def test_tiles_of_several_latent_frames_a_call() -> None:
    vae = wan()
    latents = torch.randn(1, 4, 6, 5, 4)
    expected = vae.decode(latents).sample
    given: list[np.ndarray] = []
    with in_chunks(vae, 100, 100, given.append) as chunk:
        vae.decode(latents)
    assert chunk == 15 and [len(part) for part in given] == [1, 20]
    off = np.abs(np.concatenate(given).astype(int) - eight_bit(expected[0]))
    assert off.max() <= 1, "up to rounding"


def test_whole_clips_say_why() -> None:
    whole = ltx(False)
    assert stretch_of(whole) is None and "use_framewise_decoding = True" in why_at_once(whole)
    tiled = cogvideox()
    tiled.enable_tiling()
    assert stretch_of(tiled) is None and "disable_tiling" in why_at_once(tiled)
    assert "no exact stretches" in why_at_once(object())


class Whole:
    """A pipeline whose VAE makes all frames at once."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def __call__(self, num_frames: int, height: int, width: int, **_: Any) -> Any:
        class Result:
            frames = np.full((1, num_frames, height, width, 3), 0.25, np.float32)

        return Result


def test_one_line_says_that_all_frames_are_held(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    settings, given = {"frames": 33, "height": 4, "width": 6}, []
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        video, chunk, _ = running._run(Whole(ltx(False)), settings, None, given.append)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("all frames are held at once: AutoencoderKLLTXVideo decodes a whole clip at once")
    assert len(video) == 0 and chunk is None
    assert [len(part) for part in given] == [16, 16, 1] and int(given[0][0, 0, 0, 0]) == 64
