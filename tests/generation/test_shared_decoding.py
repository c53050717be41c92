"""Ranks that share out the decoding of a clip: bitwise the frames of one process, in order, on the first rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import RanksError, on_ranks
from slow import slow
from small_vaes import PATCHES, wan

from freeloc_fx.errors import FreelocError
from freeloc_fx.generation import decoding, shared_decoding
from freeloc_fx.generation.decoding import eight_bit, in_chunks, pieces
from freeloc_fx.generation.shared_decoding import calls_of, memory_of, pays
from freeloc_fx.method.shards import Shards


def whole(**options: Any) -> Any:
    vae = wan(**options)
    vae.disable_tiling()
    return vae


VAES = {"Wan": whole, "Wan in tiles": wan, "Wan 2.2": lambda: whole(**PATCHES)}


def shares(vae: Any, latents: torch.Tensor, chunk: int, ranks: int) -> list[torch.Tensor]:
    return [piece for rank in range(ranks) for piece in pieces(vae, latents, chunk, Shards(ranks, rank))]


@pytest.mark.parametrize(
    ("name", "chunk", "ranks"), [slow("Wan", 1, 2), ("Wan", 3, 3), slow("Wan in tiles", 1, 2), slow("Wan 2.2", 1, 2)]
)
@torch.no_grad()
def test_shares_of_ranks_are_the_clip(name: str, chunk: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = VAES[name]()
    memory = memory_of(vae)
    count = memory + 8
    latents = torch.randn(1, 4, count, *((5, 4) if "tiles" in name else (2, 2)))
    expected = torch.cat(list(pieces(vae, latents, chunk)), 2)
    parts = shares(vae, latents, chunk, ranks)
    found = torch.cat(parts, 2)
    assert torch.equal(found, expected)
    # Too short a memory shows: the comparison can fail.
    monkeypatch.setattr(decoding, "memory_of", lambda _: 2)
    short = torch.cat(shares(vae, latents, chunk, ranks), 2)
    assert short.shape == expected.shape and not torch.equal(short, expected)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(("count", "chunk", "memory"), [(201, 1, 38), (61, 1, 12), (26, 5, 3), (40, 7, 9)])
def test_every_call_is_one_rank_s(count: int, chunk: int, memory: int, ranks: int) -> None:
    calls = list(decoding._calls(count, chunk))
    shared = [calls_of(calls, memory, Shards(ranks, rank)) for rank in range(ranks)]
    assert [call for _, own in shared for call in own] == calls
    for dropped, own in shared:
        if own and own[0][0]:
            assert dropped[0] == (0, 1) or (dropped[0][1] - dropped[0][0] == 1 and own[0][0] - dropped[0][1] >= memory)
            assert [first for first, _ in [*dropped[1:], own[0]]] == [end for _, end in dropped]
    longest = max(sum(end - first for first, end in [*dropped, *own]) for dropped, own in shared)
    assert longest <= (count + (ranks - 1) * memory) / ranks + 2 * chunk + 2 or ranks == 8


def test_sharing_pays_for_long_clips_alone() -> None:
    assert pays(201, 38, 8) and pays(81, 38, 2)
    assert not pays(21, 38, 8) and not pays(201, 38, 1)


def on_each(rank: int, broken: bool) -> list[int]:
    torch.set_grad_enabled(False)
    vae = whole()
    size = (2 * vae.spatial_compression_ratio,) * 2
    latents = torch.randn(1, 4, 2 * memory_of(vae) + 20, 2, 2, generator=torch.Generator().manual_seed(3))
    if broken:
        latents[:, :, -1] = torch.nan
    expected = eight_bit(vae.decode(latents).sample[0]) if not broken else None
    given: list[np.ndarray] = []
    shared_decoding.AT_ONCE, decoding.PIXELS = 5, 1  # a latent frame a call
    with in_chunks(vae, *size, given.append, Shards(2, rank)):
        vae.decode(latents)
    assert rank or np.array_equal(np.concatenate(given), expected)
    return [len(part) for part in given]


def test_the_first_of_two_ranks_gets_all_frames() -> None:
    first, second = on_ranks(on_each, 2, False)
    assert second == [] and 5 in first and max(first) == 5, "its own four by four, the other's five by five"


@pytest.mark.slow
def test_what_fails_on_another_rank_ends_the_first() -> None:
    with pytest.raises(RanksError, match=rf"rank 1: (.|\n)*{FreelocError.__name__}|[Cc]onnection"):
        on_ranks(on_each, 2, True)
