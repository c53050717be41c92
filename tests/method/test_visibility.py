"""Visibility rules against a loop over all tokens."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.errors import StrategyError
from freeloc_fx.method.visibility import FULL, NONE, STRIPE, TSA, Everything, Visibility, visible_tokens

checked = settings(max_examples=60, deadline=None)


@st.composite
def rules(draw: st.DrawFn) -> TSA:
    d1 = draw(st.integers(1, 5))
    return TSA(
        d1,
        d1 + draw(st.integers(0, 5)),
        draw(st.integers(1, 10)),
        draw(st.booleans()),
        draw(st.sampled_from(["raster", "2d"])),  # type: ignore[arg-type]
    )


grids = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4))


def sees(rule: TSA, i: int, j: int, k: int, l: int, width: int) -> bool:  # noqa: E741 - the design's letters
    if (rule.sink and j == 0) or abs(i - j) < rule.d1:
        return True
    if abs(i - j) >= rule.d2:
        return False
    if rule.spatial == "raster":
        return abs(k - l) < rule.ds
    return max(abs(k // width - l // width), abs(k % width - l % width)) < rule.ds


def brute(rule: TSA, frames: int, height: int, width: int) -> np.ndarray:
    tokens = height * width
    mask = np.zeros((frames, frames, tokens, tokens), bool)
    for i, j, k, l in itertools.product(range(frames), range(frames), range(tokens), range(tokens)):  # noqa: E741
        mask[i, j, k, l] = sees(rule, i, j, k, l, width)
    return mask


def assembled(rule: Visibility, frames: int, height: int, width: int) -> np.ndarray:
    """M(i, j, k, l) from the levels and the stripe, as a lowering reads them."""
    levels, stripe = rule.levels(frames), rule.stripe(height, width)
    return (levels == FULL)[:, :, None, None] | ((levels == STRIPE)[:, :, None, None] & stripe)


@checked
@given(rules(), grids)
def test_tsa_is_the_formula(rule: TSA, grid: tuple[int, int, int]) -> None:
    frames, height, width = grid
    levels, stripe = rule.levels(frames), rule.stripe(height, width)
    assert levels.shape == (frames, frames) and levels.dtype == np.int8
    assert set(np.unique(levels).tolist()) <= {NONE, STRIPE, FULL}
    assert stripe.shape == (height * width, height * width) and stripe.dtype == np.bool_
    mask = brute(rule, frames, height, width)
    np.testing.assert_array_equal(assembled(rule, frames, height, width), mask)
    np.testing.assert_allclose(visible_tokens(rule, frames, height, width), mask.sum((1, 3)).mean(1), rtol=1e-12)


@checked
@given(rules(), grids)
def test_every_query_sees_itself_and_the_sink(rule: TSA, grid: tuple[int, int, int]) -> None:
    frames, height, width = grid
    mask = assembled(rule, frames, height, width)
    for i in range(frames):
        assert mask[i, i].all()
        assert not rule.sink or mask[i, 0].all()


def test_the_sink_is_seen_from_afar_and_only_by_request() -> None:
    assert (TSA(1, 2, 1).levels(9)[:, 0] == FULL).all()
    assert TSA(1, 2, 1, sink=False).levels(9)[:, 0].tolist() == [FULL, STRIPE] + [NONE] * 7
    assert TSA(1, 2, 1).levels(9)[0].tolist() == [FULL, STRIPE] + [NONE] * 7  # the sink frame gets no more sight


@checked
@given(rules(), grids)
def test_a_window_as_long_as_the_clip_is_dense(rule: TSA, grid: tuple[int, int, int]) -> None:
    frames, height, width = grid
    dense = Everything()
    window = TSA(frames, frames + rule.d2, rule.ds, rule.sink, rule.spatial)
    np.testing.assert_array_equal(window.levels(frames), dense.levels(frames))
    stripes = TSA(rule.d1, max(rule.d1, frames), height * width, rule.sink, rule.spatial)
    np.testing.assert_array_equal(assembled(stripes, *grid), assembled(dense, *grid))
    assert stripes.stripe(height, width).all()


@checked
@given(rules(), st.integers(2, 20))
def test_a_dense_window_one_frame_shorter_is_not_dense(rule: TSA, frames: int) -> None:
    window = TSA(frames - 1, frames - 1, rule.ds, rule.sink, rule.spatial)
    assert window.levels(frames)[0, frames - 1] == NONE


@given(grids)
@checked
def test_everything_sees_everything(grid: tuple[int, int, int]) -> None:
    frames, height, width = grid
    assert assembled(Everything(), *grid).all()
    np.testing.assert_array_equal(visible_tokens(Everything(), *grid), [frames * height * width] * frames)


def test_raster_and_2d_differ_across_rows() -> None:
    raster, square = TSA(1, 2, 2).stripe(3, 4), TSA(1, 2, 2, spatial="2d").stripe(3, 4)
    assert raster[3, 4] and not square[3, 4]  # end of one row, start of the next
    assert square[1, 5] and not raster[1, 5]  # one below the other


def test_visible_tokens_of_the_paper() -> None:
    seen = visible_tokens(TSA(8, 24, 195), 81, 30, 52)
    stripe = sum(min(1559, k + 194) - max(0, k - 194) + 1 for k in range(1560)) / 1560
    assert seen[40] == pytest.approx(16 * 1560 + 32 * stripe)
    assert seen[0] == pytest.approx(8 * 1560 + 16 * stripe)
    assert seen.shape == (81,) and seen.dtype == np.float64


def test_describe_is_json_and_rebuilds_the_rule() -> None:
    rule = TSA(2, 3, 4, False, "2d")
    described = json.loads(json.dumps(rule.describe()))
    assert described.pop("visibility") == "tsa"
    assert TSA(**described) == rule
    assert json.loads(json.dumps(Everything().describe())) == {"visibility": "everything"}
    assert isinstance(rule, Visibility) and isinstance(Everything(), Visibility)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, 1), "1 <= d1 <= d2, found d1=0, d2=2"),
        ((3, 2, 1), "1 <= d1 <= d2, found d1=3, d2=2"),
        ((1, 2, 0), r"tsa\.ds: expected at least 1 token, found 0"),
        ((1, 2.0, 1), r"tsa\.d2: expected an integer, found 2\.0"),
        ((True, 2, 1), r"tsa\.d1: expected an integer, found True"),
        ((1, 2, np.bool_(True)), r"tsa\.ds: expected an integer"),
        ((1, 2, np.int64(3)), r"tsa\.ds: expected an integer"),  # numpy integers are not JSON
        ((1, 2, 1, True, "3d"), "spatial: expected 'raster' or '2d', found '3d'"),
    ],
)
def test_tsa_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        TSA(*arguments)
