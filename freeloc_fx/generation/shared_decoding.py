"""Ranks that share out the decoding of a clip by Wan's VAE: neighbouring frames each, all of them handed to the first.

The decoder is causal and of finite memory: a frame depends on so many latent frames before its own and on no other. A
rank decodes that many before its share and drops what they make; then its cache, and with it every number, is that of
one process, which has decoded everything before.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from freeloc_fx.method.shards import Shards

__all__ = ["Calls", "calls_of", "handed_to_first", "memory_of", "pays", "same_on_all"]

Calls = Sequence[tuple[int, int]]
"""First and end latent frame of each call of a decoder."""
AT_ONCE = 16
"""Frames that are sent together."""
WORTH = 0.8
"""Share of the whole clip's calls below which one rank's calls, those for its memory included, are worth sharing."""


def memory_of(vae: Any) -> int:
    """Say on how many latent frames before its own a decoded frame depends, at most.

    Args:
        vae: an AutoencoderKLWan.

    Returns:
        Latent frames.
    """
    frames, needed = 1, 0.0
    for name, module in vae.decoder.named_modules():
        if not isinstance(module, torch.nn.Conv3d):
            continue
        needed += (module.kernel_size[0] - 1) / frames
        if name.endswith("time_conv"):  # what follows has twice the frames
            frames *= 2
    return math.ceil(needed) + 1


def pays(count: int, memory: int, ranks: int) -> bool:
    """Tell whether ranks that share out a clip are quicker than one.

    Args:
        count: latent frames of the clip.
        memory: as `memory_of` gives it.
        ranks: that share.

    Returns:
        Whether they are, by a fifth at least.
    """
    return ranks > 1 and _each(count, memory, ranks) < WORTH * count


def _each(count: int, memory: int, ranks: int) -> int:
    """Latent frames that each rank decodes, those for its memory included."""
    return math.ceil((count + (ranks - 1) * memory) / ranks)


def calls_of(calls: Calls, memory: int, shards: Shards) -> tuple[Calls, Calls]:
    """Share out the calls of a decoder: each rank makes about as many, and the first needs none for its memory.

    Args:
        calls: (first, end) latent frames of every call, in order.
        memory: as `memory_of` gives it.
        shards: the ranks.

    Returns:
        This rank's calls whose frames are dropped, and those whose frames are its share. What is dropped begins with a
        single latent frame, unless it begins with the clip.
    """
    count = calls[-1][1]
    each = _each(count, memory, shards.ranks)
    edges = [0, *(each + index * max(each - memory, 1) for index in range(shards.ranks))]
    edges[-1] = max(count, edges[-1])
    first, last = edges[shards.rank], edges[shards.rank + 1]
    own = [call for call in calls if first <= call[0] < last]
    if not own or not own[0][0]:
        return [], own
    before = [call for call in calls if call[0] < own[0][0]]
    needed = [call for call in before if call[1] > own[0][0] - memory]
    if needed[0][0] == 0:
        return needed, own
    return [(needed[0][0] - 1, needed[0][0]), *needed], own


def same_on_all(latents: torch.Tensor) -> torch.Tensor:
    """Give every rank the first one's latents, which may differ in rounding where kernels are not deterministic.

    Args:
        latents: of this rank.
    """
    latents = latents.contiguous()
    if dist.get_backend() != "nccl" or latents.is_cuda:
        dist.broadcast(latents, 0)
    return latents


def handed_to_first(frames: Iterator[np.ndarray], take: Callable[[np.ndarray], None], shards: Shards) -> None:
    """Give the frames of all ranks to the first one, in order. Others keep theirs in a file until it asks for them.

    Args:
        frames: of this rank, uint8 (frames, height, width, 3).
        take: gets all frames on the first rank.
        shards: the ranks.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    if shards.rank == 0:
        for part in frames:
            take(part)
        for rank in range(1, shards.ranks):
            shape = torch.zeros(3, dtype=torch.long, device=device)
            dist.recv(shape, rank)
            count, height, width = shape.tolist()
            for start in range(0, count, AT_ONCE):
                size = (min(AT_ONCE, count - start), height, width, 3)
                clip = torch.empty(size, dtype=torch.uint8, device=device)
                dist.recv(clip, rank)
                take(clip.cpu().numpy())
        return
    with tempfile.TemporaryFile() as file:
        found = [0, 0, 0]
        for part in frames:
            file.write(np.ascontiguousarray(part).reshape(-1).data)
            found = [found[0] + len(part), *part.shape[1:3]]
        file.flush()
        dist.send(torch.tensor(found, device=device), 0)
        if not found[0]:
            return
        kept = np.memmap(file, np.uint8, "r", shape=(*found, 3))
        for start in range(0, found[0], AT_ONCE):
            dist.send(torch.from_numpy(np.array(kept[start : start + AT_ONCE])).to(device), 0)
