"""Stretches of a clip from VAEs other than Wan's, in order, as the VAE itself makes them.

CogVideoX's decoder keeps what it needs of earlier frames, and decodes two latent frames a call; in spatial tiles each
tile keeps its own, together more than the whole picture would, by as much as tiles overlap. HunyuanVideo's blends
overlapping stretches. diffusers collects either before it returns; here each is given as soon as it is there. LTX's
decodes a whole clip at once unless its `use_framewise_decoding` says otherwise: its stretches are another video.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["stretch_of", "stretches", "why_at_once"]


def _cached(vae: Any) -> bool:
    """Whether a decoder carries a cache from one batch of latent frames to the next."""
    from diffusers import AutoencoderKLCogVideoX

    known: Any = AutoencoderKLCogVideoX
    return isinstance(vae, known)


def _blended(vae: Any) -> bool:
    """Whether a decoder blends overlapping stretches of frames."""
    from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLLTXVideo

    known: Any = (AutoencoderKLHunyuanVideo, AutoencoderKLLTXVideo)
    return isinstance(vae, known) and bool(vae.use_framewise_decoding)


def stretch_of(vae: Any) -> int | None:
    """Choose how many latent frames a call of the decoder takes.

    Args:
        vae: of a pipeline, as it is set up.

    Returns:
        Latent frames; None for a VAE that makes all frames at once.
    """
    if _cached(vae):
        return int(vae.num_latent_frames_batch_size)
    if _blended(vae):
        return int(vae.tile_sample_stride_num_frames // vae.temporal_compression_ratio)
    return None


def why_at_once(vae: Any) -> str:
    """Say why a VAE's frames cannot be had one stretch after the other.

    Args:
        vae: for which `stretch_of` gives None.

    Returns:
        A clause, with what would change it.
    """
    name = type(vae).__name__
    from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLLTXVideo

    if isinstance(vae, AutoencoderKLHunyuanVideo | AutoencoderKLLTXVideo):
        return (
            f"{name} decodes a whole clip at once, and stretches of it would be another video (its own attribute "
            "use_framewise_decoding = True makes that one)"
        )
    if getattr(vae, "use_tiling", False):
        return f"{name} decodes tile by tile, each over the whole clip (vae.disable_tiling() for stretches)"
    return f"{name} decodes a whole clip at once, and no exact stretches of it are known"


def stretches(vae: Any, latents: torch.Tensor, *given: Any) -> Iterator[torch.Tensor]:
    """Decode as the VAE's own `_decode` does.

    Args:
        vae: for which `stretch_of` gives a number.
        latents: (batch, channels, latent frames, height, width), in the VAE's dtype.
        *given: what its decoder takes beside them.

    Yields:
        Stretches of the video in order, (batch, 3, frames, height, width), in the VAE's dtype.
    """
    if _cached(vae):
        yield from _by_cache(vae, latents)
    else:
        yield from _by_blending(vae, latents, *given)


def _by_cache(vae: Any, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    batch, frames = int(vae.num_latent_frames_batch_size), latents.shape[2]
    # The first batch is the larger one.
    edges = [0, *range(min(batch + frames % batch, frames), frames, batch), frames]
    places = _places(vae, latents)
    caches: dict[tuple[int, int], Any] = dict.fromkeys(places)
    for first, last in itertools.pairwise(edges):
        made = {}
        for place, (rows, columns) in places.items():
            part = latents[:, :, first:last, rows, columns]
            part = part if vae.post_quant_conv is None else vae.post_quant_conv(part)
            made[place], caches[place] = vae.decoder(part, conv_cache=caches[place])
        yield made[0, 0] if len(made) == 1 else _put_together(vae, made)


def _places(vae: Any, latents: torch.Tensor) -> dict[tuple[int, int], tuple[slice, slice]]:
    """Row and column of each tile that the VAE's own `tiled_decode` takes -> its latents; one of all where it is not in
    tiles."""
    height, width = latents.shape[3:]
    high, wide = vae.tile_latent_min_height, vae.tile_latent_min_width
    if not vae.use_tiling or (height <= high and width <= wide):
        return {(0, 0): (slice(None), slice(None))}
    down = int(high * (1 - vae.tile_overlap_factor_height))
    right = int(wide * (1 - vae.tile_overlap_factor_width))
    return {
        (i // down, j // right): (slice(i, i + high), slice(j, j + wide))
        for i in range(0, height, down)
        for j in range(0, width, right)
    }


def _put_together(vae: Any, tiles: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """Tiles of one stretch, blended in place and cut as `tiled_decode` does."""
    over = int(vae.tile_sample_min_height * vae.tile_overlap_factor_height)
    beside = int(vae.tile_sample_min_width * vae.tile_overlap_factor_width)
    high, wide = vae.tile_sample_min_height - over, vae.tile_sample_min_width - beside
    rows: dict[int, list[torch.Tensor]] = {}
    for (i, j), tile in tiles.items():  # row by row
        if i:
            tile = vae.blend_v(tiles[i - 1, j], tile, over)
        if j:
            tile = vae.blend_h(tiles[i, j - 1], tile, beside)
        rows.setdefault(i, []).append(tile[:, :, :, :high, :wide])
    return torch.cat([torch.cat(row, 4) for row in rows.values()], 3)


def _by_blending(vae: Any, latents: torch.Tensor, *given: Any) -> Iterator[torch.Tensor]:
    from diffusers import AutoencoderKLLTXVideo

    ratio, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    at_once, stride = vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames
    frames = latents.shape[2]
    left = (frames - 1) * ratio + 1
    if frames <= at_once // ratio:  # as the VAE itself does with a short clip
        yield _tile(vae, latents, space, given)
        return
    # HunyuanVideo leaves out the first frame of a stretch after the first, LTX the last one.
    kept = slice(None, -1) if isinstance(vae, AutoencoderKLLTXVideo) else slice(1, None)
    before: torch.Tensor | None = None
    for start in range(0, frames, stride // ratio):
        made = _tile(vae, latents[:, :, start : start + at_once // ratio + 1], space, given)
        count = stride + 1
        if before is not None:
            made, count = vae.blend_t(before, made[:, :, kept], at_once - stride), stride
        yield made[:, :, : min(count, left)]
        left -= min(count, left, made.shape[2])
        before = made
        if not left:
            return


def _tile(vae: Any, latents: torch.Tensor, space: int, given: tuple[Any, ...]) -> torch.Tensor:
    """One stretch, in spatial tiles where the VAE is set to and the picture is large."""
    least = vae.tile_sample_min_height // space, vae.tile_sample_min_width // space
    if vae.use_tiling and (latents.shape[-1] > least[1] or latents.shape[-2] > least[0]):
        made: torch.Tensor = vae.tiled_decode(latents, *given, return_dict=True).sample
        return made
    after = getattr(vae, "post_quant_conv", None)
    decoded: torch.Tensor = vae.decoder(latents if after is None else after(latents), *given)
    return decoded
