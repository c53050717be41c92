"""VRPR's tiers for windows: the law on every visible pair, and no setting that loses less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.method import solve
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.solve_window import vrpr_sparse, window
from freeloc_fx.method.visibility import FULL, NONE, TSA, Everything


def lost(setting: VRPR, count: np.ndarray) -> float:
    """Mean squared relative error over the window's pairs, counted pair by pair."""
    reach = int(np.flatnonzero(count)[-1])
    positions = [int(setting.of_distance(d)) for d in range(-reach, reach + 1)]
    total = 0.0
    for d in range(1, reach + 1):
        size = positions.count(int(setting.of_distance(d)))
        total += count[d] / d * (size**2 - 1) / (12 * d**2)
    return total


@settings(max_examples=60)
@given(st.integers(2, 12), st.integers(1, 40), st.integers(1, 8), st.integers(0, 10), st.integers(1, 4), st.booleans())
def test_the_law_holds_where_attention_looks(trained: int, more: int, d1: int, width: int, ds: int, sink: bool) -> None:
    frames = trained + more
    rule = TSA(d1, d1 + width, ds, sink)
    found = vrpr_sparse(trained, rule, frames, 2, 2)
    seen = rule.levels(frames) != NONE
    assert np.abs(found.table(frames)[seen]).max() <= trained - 1


@settings(max_examples=25)
@given(st.integers(2, 7), st.integers(2, 20), st.integers(1, 5), st.integers(0, 8), st.booleans())
def test_nothing_with_one_far_position_loses_less(trained: int, more: int, d1: int, width: int, sink: bool) -> None:
    frames = trained + more
    rule = TSA(d1, d1 + width, 1, sink)
    count = window(rule, frames, 2, 2)
    reach = int(np.flatnonzero(count)[-1])
    if reach == frames - 1:
        assert vrpr_sparse(trained, rule, frames, 2, 2) == solve.vrpr(trained, frames)
        return
    found = lost(vrpr_sparse(trained, rule, frames, 2, 2), count)
    for w1 in range(trained):
        for g1 in range(1, reach + 2):
            other = VRPR(w1, max(w1, reach), g1, max(frames, g1))
            if other.of_distance(frames - 1) <= trained - 1:
                assert found <= lost(other, count) + 1e-12


def test_a_window_within_the_trained_length_stays_as_it_is() -> None:
    rule = TSA(8, 16, 2)
    found = vrpr_sparse(21, rule, 201, 4, 4)
    d = np.arange(16)
    assert np.array_equal(found.of_distance(d), d)
    assert found.of_distance(200) == 20


def test_the_papers_window_keeps_most_of_its_resolution() -> None:
    """With D2 = 24 beyond 21 trained frames only a few distances share a position, whatever the length."""
    for frames in (41, 81, 201, 321):
        found = vrpr_sparse(21, solve.tsa(21, 30, 52), frames, 30, 52)
        positions = found.of_distance(np.arange(24))
        assert len(np.unique(positions)) == 21 and positions.max() == 20
        assert solve.vrpr(21, frames).w1 < found.w1


def test_everything_is_the_general_answer() -> None:
    assert vrpr_sparse(21, Everything(), 81, 4, 4) == solve.vrpr(21, 81)
    assert vrpr_sparse(21, TSA(90, 90, 1), 81, 4, 4) == solve.vrpr(21, 81)


@pytest.mark.parametrize("sink", [False, True])
def test_a_window_counts_pairs(sink: bool) -> None:
    rule = TSA(2, 4, 1, sink)
    levels = rule.levels(9)
    if sink:
        levels[:, 0] = NONE
    expected = np.zeros(9)
    for i in range(9):
        for j in range(9):
            expected[abs(i - j)] += 1.0 if levels[i, j] == FULL else 0.25 if levels[i, j] != NONE else 0.0
    np.testing.assert_allclose(window(rule, 9, 2, 2), expected)
