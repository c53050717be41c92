"""Position maps against a pure-Python reading of the formulas."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.errors import StrategyError
from freeloc_fx.method.frame_times import FrameTimes
from freeloc_fx.method.peers import Clip, Group
from freeloc_fx.method.positions import VRPR, Band, Identity, PositionMap

checked = settings(max_examples=80, deadline=None)


@st.composite
def vrprs(draw: st.DrawFn, quantise: str | None = None) -> VRPR:
    w1 = draw(st.integers(0, 12))
    g1 = draw(st.integers(1, 6))
    return VRPR(
        w1,
        w1 + draw(st.integers(0, 12)),
        g1,
        g1 + draw(st.integers(0, 9)),
        quantise or draw(st.sampled_from(["pair", "separable"])),  # type: ignore[arg-type]
    )


frame_counts = st.integers(1, 40)


def tier(m: VRPR, d: int) -> tuple[int, int]:
    """Group size and offset of a distance, from the paper's three cases."""
    if d <= m.w1:
        return 1, 0
    if d <= m.w2:
        return m.g1, m.w1 - m.w1 // m.g1
    return m.g2, m.w1 - m.w1 // m.g1 + m.w2 // m.g1 - m.w2 // m.g2


def brute(m: VRPR, i: int, j: int) -> int:
    if i < j:
        return -brute(m, j, i)
    group, offset = tier(m, i - j)
    floor = (i - j) // group if m.quantise == "pair" else i // group - j // group
    return floor + offset


@checked
@given(vrprs(), frame_counts)
def test_vrpr_table_is_the_formula(m: VRPR, frames: int) -> None:
    expected = [[brute(m, i, j) for j in range(frames)] for i in range(frames)]
    table = m.table(frames)
    assert table.shape == (frames, frames) and table.dtype == np.float64
    np.testing.assert_array_equal(table, expected)
    assert m.reach(frames) == max(abs(p) for row in expected for p in row)


@checked
@given(vrprs(), st.integers(1, 60))
def test_vrpr_is_odd_monotone_continuous_and_the_identity_near(m: VRPR, last: int) -> None:
    d = np.arange(-last, last + 1)
    p = m.of_distance(d)
    np.testing.assert_array_equal(p, -p[::-1])
    assert set(np.diff(p).tolist()) <= {0, 1}
    near = np.abs(d) <= m.w1
    np.testing.assert_array_equal(p[near], d[near])
    assert (np.abs(p) <= np.abs(d)).all()


@pytest.mark.parametrize("g1", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("g2", [7, 8, 9])
def test_vrpr_is_continuous_at_its_boundaries(g1: int, g2: int) -> None:
    for w1 in range(15):
        for w2 in range(w1, 25):
            at = VRPR(w1, w2, g1, g2).of_distance(np.array([w1, w1 + 1, w2, w2 + 1]))
            assert at[1] - at[0] in (0, 1) and at[3] - at[2] in (0, 1)


@checked
@given(vrprs("separable"), frame_counts)
def test_separable_is_odd_and_in_size_pair_or_one_more(m: VRPR, frames: int) -> None:
    pair = np.abs(VRPR(m.w1, m.w2, m.g1, m.g2).table(frames))
    table = m.table(frames)
    np.testing.assert_array_equal(table, -table.T)
    index = np.arange(frames)
    distance = np.abs(index[:, None] - index[None, :])
    assert set((np.abs(table) - pair).ravel().tolist()) <= {0.0, 1.0}
    assert (np.abs(table) <= distance).all()
    group = np.where(distance <= m.w1, 1, np.where(distance <= m.w2, m.g1, m.g2))
    np.testing.assert_array_equal(np.abs(table)[distance % group == 0], pair[distance % group == 0])


def test_separable_and_pair_do_differ() -> None:
    pair, separable = VRPR(10, 14, 2, 8).table(81), VRPR(10, 14, 2, 8, "separable").table(81)
    assert np.abs(pair - separable).max() == 1
    assert 0.1 < (pair != separable).mean() < 0.9


@checked
@given(vrprs(), frame_counts)
def test_bands_partition_all_pairs_and_give_the_table(m: VRPR, frames: int) -> None:
    count = np.zeros((frames, frames), int)
    table = np.full((frames, frames), np.nan)
    for band in m.bands(frames):
        assert band.query.shape == band.key.shape == (frames,)
        assert band.query.dtype == band.key.dtype == np.float64
        assert band.pairs.shape == (frames, frames) and band.pairs.dtype == np.bool_ and band.pairs.any()
        count += band.pairs
        table[band.pairs] = (band.query[:, None] - band.key[None, :])[band.pairs]
    np.testing.assert_array_equal(count, 1)
    np.testing.assert_array_equal(table, m.table(frames))


@checked
@given(vrprs("separable"), frame_counts)
def test_separable_has_at_most_one_band_a_tier_and_direction(m: VRPR, frames: int) -> None:
    assert len(list(m.bands(frames))) <= 5


def test_pair_has_a_band_for_each_residue() -> None:
    assert len(list(VRPR(10, 14, 2, 8).bands(81))) == 1 + 2 * 2 + 2 * 8


@given(st.integers(1, 30))
@checked
def test_identity(frames: int) -> None:
    expected = [[i - j for j in range(frames)] for i in range(frames)]
    table = Identity().table(frames)
    assert table.dtype == np.float64
    np.testing.assert_array_equal(table, expected)
    (band,) = Identity().bands(frames)
    assert isinstance(band, Band) and band.pairs.all()
    np.testing.assert_array_equal(band.query[:, None] - band.key[None, :], expected)


def test_of_distance_takes_numbers_and_arrays() -> None:
    m = VRPR(10, 14, 2, 8)
    assert [int(m.of_distance(d)) for d in (0, 10, 11, 12, 14, 15, 16, 80, -80)] == [0, 10, 10, 11, 12, 12, 13, 21, -21]
    assert int(m.of_distance(np.array(-16, np.int32))) == -13
    assert m.of_distance(np.zeros((2, 3), np.int8)).shape == (2, 3)


def test_describe_is_json_and_rebuilds_the_map() -> None:
    m = VRPR(3, 5, 2, 4, "separable")
    described = json.loads(json.dumps(m.describe()))
    assert described.pop("map") == "vrpr"
    assert VRPR(**described) == m
    assert json.loads(json.dumps(Identity().describe())) == {"map": "identity"}
    assert isinstance(m, PositionMap) and isinstance(Identity(), PositionMap)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 3, 1, 2), "0 <= w1 <= w2, found w1=-1, w2=3"),
        ((4, 3, 1, 2), "0 <= w1 <= w2, found w1=4, w2=3"),
        ((1, 3, 0, 2), "1 <= g1 <= g2, found g1=0, g2=2"),
        ((1, 3, 3, 2), "1 <= g1 <= g2, found g1=3, g2=2"),
        ((1.0, 3, 1, 2), r"vrpr\.w1: expected an integer, found 1\.0"),
        ((1, 3, True, 2), r"vrpr\.g1: expected an integer, found True"),
        ((1, 3, 1, np.bool_(True)), r"vrpr\.g2: expected an integer"),
        ((1, 3, 1, np.int64(2)), r"vrpr\.g2: expected an integer"),  # numpy integers are not JSON
        ((1, "3", 1, 2), r"vrpr\.w2: expected an integer, found '3'"),
        ((1, 3, 1, 2, "exact"), "quantise: expected 'pair' or 'separable', found 'exact'"),
    ],
)
def test_vrpr_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        VRPR(*arguments)


@given(
    st.lists(st.integers(-64, 64 * 12).map(lambda n: n / 64), min_size=1, max_size=3),
    st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.integers(0, 3),
    st.sampled_from(["pair", "separable"]),
)  # fmt: skip
def test_bands_are_the_table_for_frames_between_whole_ones(
    beside: list[float], w1: int, wider: int, g1: int, coarser: int, quantise: Any
) -> None:
    """Every pair is in one band, and a band says of it what the table says: also where a group of one has fractions."""
    clip = FrameTimes((*beside, *map(float, range(9))), len(beside), 9)
    for m in (VRPR(w1, w1 + wider, g1, g1 + coarser, quantise), Clip(w1), Group(w1 + 1, g1)):
        table, seen = m.table(clip), np.zeros((len(clip.times),) * 2, int)
        for band in m.bands(clip):
            found = band.query[:, None] - band.key[None, :]
            np.testing.assert_array_equal(found[band.pairs], table[band.pairs])
            seen += band.pairs
        assert (seen == 1).all()
