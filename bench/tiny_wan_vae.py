"""Whole-clip forward passes of AutoencoderKLWan, for training it quickly.

diffusers runs the Wan VAE in chunks of four frames with a cache for each causal convolution. Over a whole clip the same
modules give the same result in one pass, which a CPU does several times faster; `train_vae.py` checks the equality
before it trains.

Only the time_conv layers mix frames here: the earlier taps of every 3x3x3 convolution are zero and stay zero. With
them, a VAE trained on 17 frames learned to keep colours in its causal memory instead of the latents, and lost them on
longer clips. Without, a latent frame holds its own content, whatever the length.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, patchify, unpatchify
from torch import nn

BASE_DIM = 32
"""Channels of the VAE's widest pictures. With 16 and 12 channels of latents, training levelled off at 28.1 dB."""
Z_DIM = 16
"""Channels of a latent."""


def make_vae(base_dim: int = BASE_DIM) -> AutoencoderKLWan:
    """tiny-wan's next VAE, or a narrower one, with random weights."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=Z_DIM,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
    )


def earlier(model: str) -> Path:
    """The pipeline folder that new trainings start from: the one that earlier trainings have come to, which is kept
    beside this script until it is good enough to be shipped, else the embedded one."""
    from freeloc_fx.generation import tiny_joint, tiny_wan

    kept = Path(__file__).resolve().parent / "training" / model
    if (kept / "model_index.json").exists():
        return kept
    return Path((tiny_wan if model == "tiny-wan" else tiny_joint).path())


def earlier_vae() -> AutoencoderKLWan:
    """The VAE of `earlier`, float32."""
    vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(earlier("tiny-wan") / "vae", torch_dtype=torch.float32)
    return vae


@torch.no_grad()
def forget_history(vae: AutoencoderKLWan) -> None:
    """Zero the taps that look at earlier frames in every 3x3x3 convolution."""
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size == (3, 3, 3):
            module.weight[:, :, :-1] = 0


def _conv(layer: WanCausalConv3d, x: torch.Tensor) -> torch.Tensor:
    """A 3x3x3 convolution whose earlier taps are zero, as the 2-D convolution it then is."""
    b, _, t, _, _ = x.shape
    y = F.conv2d(x.transpose(1, 2).flatten(0, 1), layer.weight[:, :, -1], layer.bias, padding=1)
    return y.unflatten(0, (b, t)).transpose(1, 2)


def _norm(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`WanRMS_norm` over the channels; F.normalize, which that calls, takes several times as long on CPU."""
    length = x.float().square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt().to(x.dtype)
    return x * length * layer.scale * layer.gamma + layer.bias


def _resnet(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    shortcut = block.conv_shortcut(x)
    x = _conv(block.conv1, block.nonlinearity(_norm(block.norm1, x)))
    return _conv(block.conv2, block.nonlinearity(_norm(block.norm2, x))) + shortcut


def _middle(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = _resnet(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _resnet(resnet, attention(x))
    return x


def _spatial(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    b, _, t, _, _ = x.shape
    x = layer.resample(x.transpose(1, 2).flatten(0, 1))
    return x.unflatten(0, (b, t)).transpose(1, 2)


def _down(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    x = _spatial(layer, x)
    if layer.mode == "downsample3d":  # the first frame stands alone, then pairs with one frame of history
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], 2) if x.shape[2] > 1 else x
    return x


def _up(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        b, c, t, h, w = x.shape
        rest = layer.time_conv(x[:, :, 1:]).reshape(b, 2, c, t - 1, h, w)
        rest = torch.stack((rest[:, 0], rest[:, 1]), 3).reshape(b, c, 2 * (t - 1), h, w)
        x = torch.cat([x[:, :, :1], rest], 2)
    return _spatial(layer, x)


def encode(vae: AutoencoderKLWan, x: torch.Tensor) -> torch.Tensor:
    """Video (B, 3, 4n+1, H, W) in [-1, 1] -> mean and log-variance (B, 2 z_dim, n+1, H/8, W/8)."""
    encoder = vae.encoder
    x = _conv(encoder.conv_in, patchify(x, vae.config.patch_size))
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else _resnet(layer, x)
    x = encoder.nonlinearity(_norm(encoder.norm_out, _middle(encoder.mid_block, x)))
    return vae.quant_conv(_conv(encoder.conv_out, x))


def decode(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """Latents (B, z_dim, n+1, h, w) -> video (B, 3, 4n+1, 8h, 8w), not clamped."""
    decoder = vae.decoder
    x = _middle(decoder.mid_block, _conv(decoder.conv_in, vae.post_quant_conv(z)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        for layer in block.upsamplers or ():
            x = _up(layer, x)
    x = _conv(decoder.conv_out, decoder.nonlinearity(_norm(decoder.norm_out, x)))
    return unpatchify(x, vae.config.patch_size)
