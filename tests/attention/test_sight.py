"""Bits and bounds against the tables that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.attention.flex.attend import _mask
from freeloc_fx.attention.flex.sight import WORD, bounds, packed
from freeloc_fx.attention.flex.site import describe_site
from freeloc_fx.attention.flex.tables import site_tables
from freeloc_fx.method.frame_times import Frames
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.peers.anchors import Anchors
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Strategy
from freeloc_fx.method.visibility import FULL, STRIPE, TSA


@settings(max_examples=40)
@given(st.integers(1, 140), st.integers(1, 5), st.integers(0, 1000))
def test_words_hold_every_pair(keys: int, rows: int, seed: int) -> None:
    table = np.random.default_rng(seed).random((2, rows, keys)) < 0.5
    words = packed(table)
    assert words.shape == (-(-keys // WORD), 2, rows) and words.dtype == np.int32
    for key in range(keys):
        assert np.array_equal((words[key // WORD].astype(np.int64) >> (key % WORD)) & 1, table[..., key])


def allowed(limits: np.ndarray) -> np.ndarray:
    found = np.ones((limits.shape[-1],) * 2, bool)
    for low, high, at in limits:
        found &= (at >= low[:, None]) & (at < high[:, None])
    return found


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.sampled_from(["raster", "2d"]))
def test_bounds_of_the_stripes_that_there_are(height: int, width: int, ds: int, spatial: Any) -> None:
    stripe = TSA(1, 2, ds, spatial=spatial).stripe(height, width)
    limits = bounds(stripe, height, width)
    assert limits is not None and np.array_equal(allowed(limits), stripe)


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.05, 1), st.integers(0, 1000))
def test_bounds_say_what_the_table_says_or_nothing(height: int, width: int, share: float, seed: int) -> None:
    table = np.random.default_rng(seed).random((height * width,) * 2) < share
    limits = bounds(table, height, width)
    if limits is not None:
        assert np.array_equal(allowed(limits), table)


def test_rows_that_see_nothing_have_bounds_too() -> None:
    limits = bounds(np.zeros((6, 6), bool), 2, 3)
    assert limits is not None and not allowed(limits).any()


@dataclass(frozen=True)
class Knights:
    """A visibility of somebody's own: along the stripe a token sees what a knight's move reaches, and itself."""

    def levels(self, frames: Frames) -> np.ndarray:
        index = np.arange(frames if isinstance(frames, int) else len(frames.clip))
        return np.where(np.abs(index[:, None] - index) < 2, FULL, STRIPE).astype(np.int8)

    def stripe(self, height: int, width: int) -> np.ndarray:
        y, x = np.divmod(np.arange(height * width), width)
        dy, dx = np.abs(y[:, None] - y), np.abs(x[:, None] - x)
        return (dy * dx == 2) | (dy + dx == 0)

    def describe(self) -> dict[str, Any]:
        return {"visibility": "knights"}


@pytest.mark.parametrize(
    ("rule", "axes"), [(TSA(2, 9, 3), 1), (TSA(2, 9, 2, spatial="2d"), 2), (Knights(), 0), (Anchors(1, 1, 3), 0)]
)
@pytest.mark.parametrize("frames", [6, 40])
def test_the_mask_function_of_any_visibility(rule: Any, axes: int, frames: int) -> None:
    grid = TokenGrid(frames, 3, 4)
    spec = AttentionSpec(Strategy("own", visibility=rule), grid, RopeLayout(16, (0,), (1,), ((1.0,),)))
    site = describe_site(spec, (1, 1, grid.sequence, 16), torch.float32)
    assert site.form.members[0].axes == axes
    mask = _mask(site.form, site.form.members[0].calls[0], "0.0", 1, site_tables(site, 0, torch.device("cpu")))
    assert mask is not None
    index, zero = torch.arange(grid.sequence), torch.zeros((), dtype=torch.long)
    found = mask.mask_mod(zero, zero, index[:, None], index).expand(grid.sequence, grid.sequence)
    levels = np.kron(rule.levels(frames), np.ones((12, 12), int))
    expected = (levels == FULL) | ((levels == STRIPE) & np.tile(rule.stripe(3, 4), (frames, frames)))
    assert np.array_equal(found.numpy(), expected)
