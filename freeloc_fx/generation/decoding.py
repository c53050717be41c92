"""Decode a long clip's latents in a few large calls where they are small, and hold the video once.

diffusers' AutoencoderKLWan decodes one latent frame a call and copies all frames so far after each: the copies grow
with the square of the length, and at small pictures the calls themselves cost more than what they compute. Its causal
cache carries over from any chunk of latent frames to the next, so here a chunk holds as many latent frames as have
`PIXELS` pixels, and each chunk is written into the video, which is allocated once:

    with in_chunks(pipe.vae, height, width) as chunk:  # latent frames a call takes; None where nothing is changed
        pipe(prompt, num_frames=801)

With somebody who takes the frames as they come, 8-bit and on the host, no chunk outlives the next one's decoding, and
what is held does not grow with the clip but for its latents. That holds in spatial tiles as well, each of which has a
causal cache of its own, and for other VAEs as far as `stretches` knows them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from freeloc_fx.compat_diffusers import wan_cache, wan_decode_piece, wan_frames
from freeloc_fx.compiler.capture.swapped import swapped
from freeloc_fx.errors import FreelocError
from freeloc_fx.method.shards import Shards

from .shared_decoding import Calls, calls_of, handed_to_first, memory_of, pays, same_on_all
from .stretches import stretch_of, stretches

__all__ = ["PIXELS", "chunk_of", "decode", "eight_bit", "in_chunks", "pieces"]


PIXELS = 600_000
"""Of the video, at most, that a call makes. A latent frame's four at 832x480 have more, so that there, as in diffusers,
a call takes one; at 64x64 it takes 36. More at once was no faster: tiny-wan's decoder is quickest at 33 to 50."""


def chunk_of(vae: Any, height: int, width: int) -> int | None:
    """Choose how many latent frames a call of the decoder takes.

    Args:
        vae: of a pipeline.
        height: of the video in pixels.
        width: of the video in pixels.

    Returns:
        Latent frames, at least 1; None for a VAE that is no AutoencoderKLWan.
    """
    from diffusers import AutoencoderKLWan

    if not isinstance(vae, AutoencoderKLWan):
        return None
    return max(1, PIXELS // (wan_frames(vae) * height * width))


def pieces(vae: Any, latents: torch.Tensor, chunk: int, shards: Shards | None = None) -> Iterator[torch.Tensor]:
    """Decode as `AutoencoderKLWan._decode` does, up to rounding, with several latent frames a call, in tiles where the
    VAE is set to.

    Args:
        vae: an AutoencoderKLWan.
        latents: (batch, channels, latent frames, height, width), denormalised, in the VAE's dtype.
        chunk: latent frames a call takes at most, at least 1. The first latent frame, which makes a single frame, is a
            call of its own; the others are dealt out evenly, since a small rest takes torch's slow convolution.
        shards: ranks that share out the frames, where that pays (see `shared_decoding`); this rank's are given. None
            for one process.

    Yields:
        Stretches of the video in order, (batch, 3, frames, height, width) in [-1, 1], in the VAE's dtype.
    """
    try:
        if _tiled(vae, latents):
            decoders = _tiles(vae, latents)
        else:
            hidden = vae.post_quant_conv(latents)
            decoders = [_Decoder(vae, lambda start, end: hidden[:, :, start:end])]
        dropped: Calls = []
        calls: Calls = list(_calls(latents.shape[2], chunk))
        if shards is not None:
            dropped, calls = calls_of(calls, memory_of(vae), shards)
        for start, end in dropped:
            for decoder in decoders:
                decoder(start, end)
        for start, end in calls:
            yield _blended(vae, [decoder(start, end) for decoder in decoders]).clamp_(-1.0, 1.0)
    finally:
        vae.clear_cache()


def _calls(count: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Which latent frames a call takes: (first, end)."""
    yield 0, 1
    calls = math.ceil((count - 1) / chunk)
    yield from itertools.pairwise(1 + i * (count - 1) // calls for i in range(calls + 1)) if calls else ()


class _Decoder:
    """Decodes a part of the picture, call by call, in patches where the VAE makes patches.

    Args:
        vae: an AutoencoderKLWan.
        hidden: gives that part's latents, first to end, after `post_quant_conv`.
        place: row and column among the tiles.
    """

    def __init__(self, vae: Any, hidden: Callable[[int, int], torch.Tensor], place: tuple[int, int] = (0, 0)) -> None:
        self.vae, self.hidden, self.place = vae, hidden, place
        self.cache = wan_cache(vae)
        self.begun = False

    def __call__(self, start: int, end: int) -> tuple[tuple[int, int], torch.Tensor]:
        options = {} if self.begun else {"first_chunk": True}
        self.begun = True
        return self.place, wan_decode_piece(self.vae, self.hidden(start, end), self.cache, **options)


def _tiled(vae: Any, latents: torch.Tensor) -> bool:
    """Whether the VAE's own `_decode` would take a picture in tiles."""
    space = vae.spatial_compression_ratio
    least = vae.tile_sample_min_height // space, vae.tile_sample_min_width // space
    return bool(vae.use_tiling) and (latents.shape[3] > least[0] or latents.shape[4] > least[1])


def _tiles(vae: Any, latents: torch.Tensor) -> list[_Decoder]:
    """The overlapping tiles of a picture that `AutoencoderKLWan.tiled_decode` would decode, row by row."""
    space = vae.spatial_compression_ratio
    high, wide = vae.tile_sample_min_height // space, vae.tile_sample_min_width // space
    down, right = vae.tile_sample_stride_height // space, vae.tile_sample_stride_width // space
    height, width = latents.shape[3:]

    def part(i: int, j: int) -> Callable[[int, int], torch.Tensor]:
        tile = latents[:, :, :, i : i + high, j : j + wide]
        return lambda start, end: vae.post_quant_conv(tile[:, :, start:end])

    return [
        _Decoder(vae, part(i, j), (i // down, j // right))
        for i in range(0, height, down)
        for j in range(0, width, right)
    ]


def _blended(vae: Any, made: list[tuple[tuple[int, int], torch.Tensor]]) -> torch.Tensor:
    """One stretch of the video of what its tiles made, blended as `AutoencoderKLWan.tiled_decode` does."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    patch = vae.config.patch_size or 1
    tiles = dict(made)
    if len(tiles) == 1:
        picture = tiles[0, 0]
    else:
        down, right = vae.tile_sample_stride_height // patch, vae.tile_sample_stride_width // patch
        over = vae.tile_sample_min_height // patch - down, vae.tile_sample_min_width // patch - right
        rows: dict[int, list[torch.Tensor]] = {}
        for (i, j), tile in tiles.items():  # blended in place, in this order
            if i:
                tile = vae.blend_v(tiles[i - 1, j], tile, over[0])
            if j:
                tile = vae.blend_h(tiles[i, j - 1], tile, over[1])
            rows.setdefault(i, []).append(tile[:, :, :, :down, :right])
        picture = torch.cat([torch.cat(row, -1) for row in rows.values()], 3)
    return unpatchify(picture, patch_size=patch) if vae.config.patch_size is not None else picture


def decode(vae: Any, latents: torch.Tensor, chunk: int) -> torch.Tensor:
    """Decode by `pieces` into one tensor.

    Args:
        vae: as of `pieces`.
        latents: as of `pieces`.
        chunk: as of `pieces`.

    Returns:
        The video, (batch, 3, frames, height, width) in [-1, 1], in the VAE's dtype.
    """
    video, done = None, 0
    for made in pieces(vae, latents, chunk):
        if video is None:
            frames = 1 + wan_frames(vae) * (latents.shape[2] - 1)
            video = made.new_empty((*made.shape[:2], frames, *made.shape[3:]))
        video[:, :, done : done + made.shape[2]] = made
        done += made.shape[2]
    assert video is not None, "latents of no frame cannot be made"
    return video


def eight_bit(video: torch.Tensor) -> np.ndarray:
    """Give frames as a pipeline and the video file's writer together make them of a VAE's output.

    Args:
        video: (3, frames, height, width) in [-1, 1], floating point.

    Returns:
        uint8 RGB on the host, (frames, height, width, 3).

    Raises:
        FreelocError: they are not finite.
    """
    if not torch.isfinite(video).all():
        raise FreelocError(
            f"the video holds NaN or infinity ({torch.isnan(video).float().mean().item():.1%} NaN); "
            "try float32 instead of a half-precision dtype, or less guidance"
        )
    scaled = (video * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
    return np.ascontiguousarray(scaled.float().mul(255).round().to(torch.uint8).cpu().numpy())


@contextmanager
def in_chunks(
    vae: Any,
    height: int,
    width: int,
    on_frames: Callable[[np.ndarray], None] | None = None,
    shards: Shards | None = None,
) -> Iterator[int | None]:
    """Let a VAE decode by `decode` within a `with` block. Blocks may be nested; the inner one's size then holds.

    Args:
        vae: of a pipeline. None stays as it is; so does, where nobody takes the frames, one that is no AutoencoderKLWan
            or decodes in spatial tiles, and where somebody does, one that `stretches.why_at_once` is about.
        height: of the video in pixels.
        width: of the video in pixels.
        on_frames: takes the frames as they come, uint8 (frames, height, width, 3); the VAE then returns the last frame
            alone, and decodes one clip a call. None: the VAE returns them all.
        shards: ranks that decode the same latents and take frames: they share the work where that pays, and the first
            one's `on_frames` gets all frames. None for one process.

    Yields:
        Latent frames that a call takes; None where nothing is changed.
    """
    in_tiles = getattr(vae, "use_tiling", False)
    chunk = None if in_tiles and on_frames is None else chunk_of(vae, height, width)
    streams: Callable[..., Iterator[torch.Tensor]] | None = None
    if chunk is not None:
        streams = partial(pieces, chunk=chunk)
    elif on_frames is not None and vae is not None and (chunk := stretch_of(vae)) is not None:
        streams = stretches
    if chunk is None or streams is None:
        yield None
        return

    def handed_over(latents: torch.Tensor, *given: Any) -> torch.Tensor:
        assert on_frames is not None
        if latents.shape[0] != 1:
            raise ValueError(f"on_frames: expected the latents of one clip, found {latents.shape[0]}")
        if shards is None or not isinstance(streams, partial):
            for made in streams(vae, latents, *given):
                on_frames(eight_bit(made[0]))
            return made[:, :, -1:]
        if not pays(latents.shape[2], memory_of(vae), shards.ranks):
            if shards.rank == 0:
                for made in streams(vae, latents):
                    on_frames(eight_bit(made[0]))
        else:
            own = (eight_bit(made[0]) for made in streams(vae, same_on_all(latents), shards=shards))
            handed_to_first(own, on_frames, shards)
        return latents.new_zeros(1, 3, 1, height, width)

    def _decode(latents: torch.Tensor, *given: Any, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        video = decode(vae, latents, chunk) if on_frames is None else handed_over(latents, *given)
        return DecoderOutput(sample=video) if return_dict else (video,)

    with swapped(vae, "_decode", _decode):  # what the VAE's `decode` calls, between its own hooks and slices
        yield chunk
