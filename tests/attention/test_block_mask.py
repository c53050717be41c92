"""Block masks built from frame intervals against `create_block_mask`, which evaluates every pair of tokens."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from freeloc_fx.attention.bands import spec_bands
from freeloc_fx.attention.flex.block_mask import block_mask
from freeloc_fx.method.build import build
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import FULL, NONE, STRIPE, TSA


def evaluated(levels: np.ndarray, stripe: np.ndarray, n: int, block: int | tuple[int, int]) -> BlockMask:
    table = np.repeat(np.repeat(levels, n, 0), n, 1)
    tiled = np.tile(stripe, levels.shape)
    visible = torch.from_numpy((table == FULL) | ((table == STRIPE) & tiled))

    def mask(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return visible[q, k]

    rows, keys = visible.shape
    return create_block_mask(mask, None, None, rows, keys, device="cpu", BLOCK_SIZE=block)


def blocks(mask: BlockMask, full: bool) -> list[set[int]]:
    """The key blocks of each query block."""
    count = mask.full_kv_num_blocks if full else mask.kv_num_blocks
    index = mask.full_kv_indices if full else mask.kv_indices
    assert count is not None and index is not None
    return [set(row[:c].tolist()) for row, c in zip(index[0, 0], count[0, 0], strict=True)]


def columns(mask: BlockMask, full: bool) -> list[set[int]]:
    """The query blocks of each key block, which the backward pass and some kernels walk."""
    count = mask.full_q_num_blocks if full else mask.q_num_blocks
    index = mask.full_q_indices if full else mask.q_indices
    assert count is not None and index is not None
    return [set(row[:c].tolist()) for row, c in zip(index[0, 0], count[0, 0], strict=True)]


def check(levels: np.ndarray, stripe: np.ndarray, n: int, block: int | tuple[int, int]) -> None:
    found, expected = block_mask(levels, stripe, n, block=block), evaluated(levels, stripe, n, block)
    assert found.shape == expected.shape
    assert found.BLOCK_SIZE == expected.BLOCK_SIZE
    for full in (False, True):
        assert blocks(found, full) == blocks(expected, full)
        assert columns(found, full) == columns(expected, full)
        for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
            name = f"full_{name}" if full else name
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.to_dense(), expected.to_dense())
    rows, keys = (torch.arange(size * n) for size in levels.shape)
    zero = torch.zeros((), dtype=torch.long)
    pairs = (zero, zero, rows[:, None], keys[None])
    assert torch.equal(found.mask_mod(*pairs), expected.mask_mod(*pairs))


@settings(max_examples=40)
@given(st.data())
def test_any_levels(data: st.DataObject) -> None:
    rows, keys = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    n = data.draw(st.integers(1, 14))
    seed = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    levels = seed.choice([NONE, STRIPE, FULL], (rows, keys)).astype(np.int8)
    stripe = seed.random((n, n)) < data.draw(st.sampled_from([0.1, 0.5, 0.95, 1.0]))
    check(levels, stripe, n, data.draw(st.sampled_from([4, 8, 16, 32, (8, 4), (16, 32)])))


@settings(max_examples=25)
@given(
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(["raster", "2d"]),
    st.integers(1, 16),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([8, 16]),
)
def test_tiered_sparse_attention(
    d1: int, d: int, ds: int, sink: bool, spatial: str, frames: int, height: int, width: int, block: int
) -> None:
    rule = TSA(d1, d1 + d, ds, sink, spatial)  # type: ignore[arg-type]
    check(rule.levels(frames), rule.stripe(height, width), height * width, block)


@pytest.mark.parametrize("tokens", [16, 100, 128, 130])
def test_the_real_block_size(tokens: int) -> None:
    rule = TSA(2, 4, 20)
    check(rule.levels(9), rule.stripe(1, tokens), tokens, 128)


def test_full_blocks_are_told_apart_from_partial_ones() -> None:
    """A block that is wholly visible carries no mask function; frames that fill blocks exactly have no partial ones."""
    rule = TSA(2, 2, 1, sink=False)
    mask = block_mask(rule.levels(6), rule.stripe(2, 4), 8, block=8)
    assert int(mask.kv_num_blocks.sum()) == 0
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_num_blocks[0, 0].tolist() == [2, 3, 3, 3, 3, 2]


@pytest.mark.parametrize("name", ["tsa", "vrpr+tsa"])
def test_a_long_clip_takes_little_memory(name: str) -> None:
    """81 latent frames of 832x480: 126,360 tokens, whose dense mask would be 16 GB. All bands of a layer together.

    The time is `bench/block_masks.py`'s to show.
    """
    frames, height, width = 81, 30, 52
    spec = AttentionSpec(
        build(name, Geometry(21, frames, height, width)),
        TokenGrid(frames, height, width),
        RopeLayout(4, (0,), (1,), ((1.0,),)),
    )
    bands, stripe = spec_bands(spec), spec.strategy.visibility.stripe(height, width)
    tracemalloc.start()
    try:
        kept = [block_mask(band.levels, stripe, spec.grid.tokens) for band in bands]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(kept) == len(bands)
    assert peak <= 100e6, peak
