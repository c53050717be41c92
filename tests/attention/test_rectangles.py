"""Families of rectangles cover every visible pair of latent frames exactly once, whatever the table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from freeloc_fx.attention.bands import spec_bands
from freeloc_fx.attention.calls.rectangles import decompose
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.positions import VRPR, Identity
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Strategy
from freeloc_fx.method.visibility import FULL, NONE, STRIPE, TSA, Everything


def covered(table: np.ndarray) -> np.ndarray:
    """How often the families of a table visit each of its cells; each cell is addressed on its own, so that nothing
    outside the table can be cut off unseen."""
    count = np.zeros(table.shape, int)
    for family in decompose(table):
        assert family.rows > 0 and family.keys > 0 and family.count > 0
        for rows, keys in family.cells():
            assert 0 <= rows.start < rows.stop <= table.shape[0]
            assert 0 <= keys.start < keys.stop <= table.shape[1]
            count[rows, keys] += 1
    return count


def check(table: np.ndarray) -> None:
    assert np.array_equal(covered(table), table.astype(int))


@settings(max_examples=200)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))))
def test_any_table(table: np.ndarray) -> None:
    check(table)


@settings(max_examples=100)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_one_run_a_row(rows: int, keys: int, data: st.DataObject) -> None:
    table = np.zeros((rows, keys), bool)
    for row in table:
        low = data.draw(st.integers(0, keys))
        row[low : data.draw(st.integers(low, keys))] = True
    check(table)


positions = st.one_of(
    st.just(Identity()),
    st.builds(
        lambda w1, w, g1, g, how: VRPR(w1, w1 + w, g1, g1 + g, how),
        st.integers(0, 8),
        st.integers(0, 12),
        st.integers(1, 4),
        st.integers(0, 5),
        st.sampled_from(["pair", "separable"]),
    ),
)
visibilities = st.one_of(
    st.just(Everything()),
    st.builds(
        lambda d1, d, ds, sink: TSA(d1, d1 + d, ds, sink),
        st.integers(1, 10),
        st.integers(0, 12),
        st.integers(1, 6),
        st.booleans(),
    ),
)


@settings(max_examples=60)
@given(positions, visibilities, st.integers(1, 40))
def test_every_band_of_every_strategy(position: VRPR, visibility: TSA, frames: int) -> None:
    layout = RopeLayout(4, (0,), (1,), ((1.0,),))
    spec = AttentionSpec(Strategy("s", position, visibility), TokenGrid(frames, 2, 2), layout)
    levels, table = visibility.levels(frames), position.table(frames)
    total = np.zeros((frames, frames), int)
    index = np.arange(frames)
    for band in spec_bands(spec):
        check(band.levels == FULL)
        check(band.levels == STRIPE)
        seen = band.levels != NONE
        total[band.rows] += seen
        assert np.array_equal(band.levels[seen], levels[band.rows][seen])
        # What the turned q and k meet at is the remapped distance, up to nothing.
        query = index[band.rows] + (0 if band.query_turn is None else band.query_turn)
        key = index + (0 if band.key_turn is None else band.key_turn)
        assert np.array_equal((query[:, None] - key[None])[seen], table[band.rows][seen])
    assert np.array_equal(total, (levels != NONE).astype(int))


@pytest.mark.parametrize("frames", [21, 81])
def test_a_sliding_window_takes_few_calls(frames: int) -> None:
    """Whole frames are cheap to describe: calls grow far slower than pairs of frames."""
    window = TSA(10, 10, 1, sink=False).levels(frames) == FULL
    check(window)
    assert len(decompose(window)) <= 2 * frames
    assert len(decompose(np.ones((frames, frames), bool))) == 1


def test_nothing_visible_is_no_call() -> None:
    assert list(decompose(np.zeros((4, 5), bool))) == []
