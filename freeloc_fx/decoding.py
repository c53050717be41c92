"""Decode a long clip's latents in a few large calls where they are small, and hold the video once.

diffusers' AutoencoderKLWan decodes one latent frame a call and copies all frames so far after each: the copies grow
with the square of the length, and at small pictures the calls themselves cost more than what they compute. Its causal
cache carries over from any chunk of latent frames to the next, so here a chunk holds as many latent frames as have
`PIXELS` pixels, and each chunk is written into the video, which is allocated once:

    with in_chunks(pipe.vae, height, width) as chunk:  # latent frames a call takes, None where nothing was changed
        pipe(prompt, num_frames=801)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["PIXELS", "chunk_of", "decode", "in_chunks"]

PIXELS = 600_000
"""Of the video, at most, that a call makes. A latent frame's four at 832x480 have more, so that there, as in diffusers,
a call takes one; at 64x64 it takes 36. More at once was no faster: tiny-wan's decoder is quickest at 33 to 50."""


def chunk_of(vae: Any, height: int, width: int) -> int | None:
    """Latent frames a call takes for a video of (height, width) pixels; None: not the class this module knows."""
    from diffusers import AutoencoderKLWan

    if not isinstance(vae, AutoencoderKLWan):
        return None
    return max(1, PIXELS // (_frames(vae) * height * width))


def decode(vae: Any, latents: torch.Tensor, chunk: int) -> torch.Tensor:
    """What `AutoencoderKLWan._decode` makes of the latents, `chunk` latent frames a call, to rounding.

    Args:
        latents: (batch, channels, latent frames, height, width), denormalised.
        chunk: at most that many a call, at least 1; the first latent frame, which makes a single frame, is a call of
            its own, the others are dealt out evenly, since a small rest takes torch's slow convolution.

    Returns: (batch, 3, frames, height, width) in [-1, 1], in the VAE's dtype.
    """
    count = latents.shape[2]
    vae.clear_cache()
    try:
        hidden = vae.post_quant_conv(latents)
        first = _piece(vae, hidden[:, :, :1], first_chunk=True)
        each = _frames(vae)
        video = first.new_empty((*first.shape[:2], 1 + each * (count - 1), *first.shape[3:]))
        video[:, :, :1] = first
        calls = math.ceil((count - 1) / chunk)
        edges = [i * (count - 1) // calls for i in range(calls + 1)] if calls else []
        for start, end in itertools.pairwise(edges):
            made = _piece(vae, hidden[:, :, 1 + start : 1 + end])
            video[:, :, 1 + each * start : 1 + each * end] = made
        return video
    finally:
        vae.clear_cache()


def _frames(vae: Any) -> int:
    """Frames of the video that a latent frame after the first makes."""
    frames: int = 2 ** sum(vae.temperal_downsample)
    return frames


def _piece(vae: Any, hidden: torch.Tensor, **options: bool) -> torch.Tensor:
    made = vae.decoder(hidden, feat_cache=vae._feat_map, feat_idx=[0], **options)
    if vae.config.patch_size is not None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        made = unpatchify(made, patch_size=vae.config.patch_size)
    return made.clamp_(-1.0, 1.0)


@contextmanager
def in_chunks(vae: Any, height: int, width: int) -> Iterator[int | None]:
    """Within, the VAE decodes by `decode`; yields the latent frames a call takes, None where nothing was changed.

    Args:
        vae: of a pipeline. One that is no AutoencoderKLWan, that decodes in spatial tiles, and None stay as they are.
        height, width: of the video in pixels.
    """
    chunk = None if getattr(vae, "use_tiling", False) else chunk_of(vae, height, width)
    if chunk is None:
        yield None
        return

    def _decode(latents: torch.Tensor, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        video = decode(vae, latents, chunk)
        return DecoderOutput(sample=video) if return_dict else (video,)

    vae._decode = _decode  # what `decode` calls, between its own hooks and slices
    try:
        yield chunk
    finally:
        del vae._decode
