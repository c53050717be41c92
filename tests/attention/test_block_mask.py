"""Block masks built from frame intervals against `create_block_mask`, which evaluates every pair of tokens."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from freeloc_fx.attention.flex import block_mask
from freeloc_fx.attention.flex.attend import _mask
from freeloc_fx.attention.flex.block_mask import block_states, ordered
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.attention.flex.site import describe_site
from freeloc_fx.attention.flex.tables import masks, site_tables
from freeloc_fx.method.build import build
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import FULL, NONE, STRIPE, TSA


def evaluated(visible: torch.Tensor, block: int | tuple[int, int]) -> BlockMask:
    """visible: bool (versions, query tokens, key tokens)."""

    def mask(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return visible[h, q, k]

    return create_block_mask(mask, None, *visible.shape, device="cpu", BLOCK_SIZE=block)


def check(levels: np.ndarray, stripe: np.ndarray, n: int, block: int | tuple[int, int]) -> None:
    table = np.repeat(np.repeat(levels, n, 0), n, 1)
    tiled = np.tile(stripe, levels.shape)
    expected = evaluated(torch.from_numpy((table == FULL) | ((table == STRIPE) & tiled))[None], block)
    some, every = block_states(levels, stripe, n, n, (block, block) if isinstance(block, int) else block)
    for full, blocks in ((False, some & ~every), (True, every)):
        count, index = ordered(blocks[None])
        assert torch.equal(count, expected.full_kv_num_blocks if full else expected.kv_num_blocks)
        assert torch.equal(index, expected.full_kv_indices if full else expected.kv_indices)
        with mock.patch.object(block_mask, "_LARGE", -1):
            fewer, narrow = ordered(blocks[None], fixed=False)
        most = narrow.shape[-1]
        assert torch.equal(fewer, count) and most == max(1, int(count.max()))
        looked_at = torch.arange(most) < count[..., None]  # by the kernel
        assert torch.equal(narrow[looked_at], index[..., :most][looked_at]) and not narrow[~looked_at].any()


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
    some, every = block_states(rule.levels(6), rule.stripe(2, 4), 8, 8, (8, 8))
    assert not (some & ~every).any()
    assert every.sum(1).tolist() == [2, 3, 3, 3, 3, 2]


@settings(max_examples=30)
@given(
    st.sampled_from(["tsa", "vrpr", "vrpr+tsa", "window", "clip", "longdiff"]),
    st.integers(6, 14),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.integers(0, 9), st.integers(0, 20)),
    st.sampled_from([4, 8, (16, 4), 128]),
    st.booleans(),
)
def test_every_version_of_every_call(
    name: str, frames: int, size: tuple[int, int], text: tuple[int, int], block: int | tuple[int, int], padded: bool
) -> None:
    """All visible pairs are in one version of one call, and the block masks are those of the mask functions."""
    strategy = build(name, Geometry(5, frames, *size))
    grid = TokenGrid(frames, *size, *text)
    spec = AttentionSpec(strategy, grid, RopeLayout(16, (0,), (1,), ((1.0,),)))
    options = FlexOptions(block=block)
    site = describe_site(spec, (1, 1, grid.sequence, 16), torch.float32, padded=padded, options=options)
    times = torch.zeros(grid.sequence, grid.sequence, dtype=torch.int64)
    valid = torch.ones(1, grid.sequence, dtype=torch.bool)
    padding = torch.arange(grid.text_first + grid.video, grid.sequence)[-3:]
    valid[0, padding] = not padded
    for member, member_form in enumerate(site.form.members):
        values = {**site_tables(site, 0, torch.device("cpu")), "valid": valid}
        for number, call in enumerate(member_form.calls):
            mask = _mask(site.form, call, f"{member}.{number}", 1, values)
            if mask is None:
                times += 1
                continue
            index = torch.arange(grid.sequence)
            zero, versions = torch.zeros((), dtype=torch.long), torch.arange(call.versions)
            visible = mask.mask_mod(zero, versions[:, None, None], index[:, None], index)
            visible = visible.expand(call.versions, -1, -1)
            times += visible.sum(0)
            expected = evaluated(visible, block)
            found, wanted = mask.full_kv_num_blocks, expected.full_kv_num_blocks
            assert found is not None and wanted is not None
            if not call.padded:
                assert torch.equal(mask.to_dense(), expected.to_dense()) and torch.equal(found, wanted)
            else:  # which keys are padding is not known beforehand: a block that is computed whole has none
                assert bool((mask.to_dense() >= expected.to_dense()).all()) and bool((found <= wanted).all())
    assert int(times.max()) <= len(site.form.members)
    seen = times > 0
    assert bool(seen.diagonal()[valid[0]].all())
    assert bool(seen[:, ~valid[0]].logical_not().all()) or not padded


@pytest.mark.parametrize("name", ["tsa", "vrpr+tsa"])
def test_a_long_clip_takes_little_memory(name: str) -> None:
    """81 latent frames of 832x480: 126,360 tokens, whose dense mask would be 16 GB. All calls of a layer together.

    The time is `bench/block_masks.py`'s to show.
    """
    frames, height, width = 81, 30, 52
    spec = AttentionSpec(
        build(name, Geometry(21, frames, height, width)),
        TokenGrid(frames, height, width),
        RopeLayout(4, (0,), (1,), ((1.0,),)),
    )
    site = describe_site(spec, (1, 1, spec.grid.sequence, 4), torch.bfloat16)
    stripe = spec.strategy.visibility.stripe(height, width)
    tracemalloc.start()
    try:
        kept = [masks(site, spec, call, stripe) for call in site.calls[0]]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(kept) == (1 if name == "tsa" else 3)
    assert peak <= 120e6, peak
