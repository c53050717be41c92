"""VAEs of few channels, whose frames depend on one another enough to tell stretches of them apart."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

__all__ = ["PATCHES", "cogvideox", "hunyuan", "ltx", "wan"]


def made(cls: str, **config: Any) -> Any:
    torch.manual_seed(0)
    vae = getattr(diffusers, cls)(**config).eval().requires_grad_(False)
    for weight in vae.parameters():  # untrained, its frames hardly depend on one another
        if weight.ndim > 1:
            nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    return vae


def cogvideox(tiles: bool = False) -> Any:
    """tiles: of 4 latents a side, 3 of which are new."""
    vae = made(
        "AutoencoderKLCogVideoX", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=2,
    )  # fmt: skip
    if tiles:
        vae.enable_tiling(32, 32, 0.25, 0.25)
    return vae


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


PATCHES: dict[str, Any] = {
    "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 8,
    "dim_mult": [1, 2, 2], "temperal_downsample": [True, True],
}  # fmt: skip
"""Of Wan 2.2's VAE."""


def wan(**options: Any) -> Any:
    """In tiles of 4 latents a side, 3 of which are new."""
    shape = {"dim_mult": [1, 1, 1, 2], "temperal_downsample": [False, True, True]}
    vae = made(
        "AutoencoderKLWan", base_dim=4, z_dim=4, num_res_blocks=1, attn_scales=[], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, scale_factor_spatial=8, **(shape | options),
    )  # fmt: skip
    vae.enable_tiling(32, 32, 24, 24)
    return vae
