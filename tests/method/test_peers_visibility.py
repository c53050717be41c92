"""Visibility rules of the peers: sliding window, rotating anchors."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.errors import StrategyError
from freeloc_fx.method.build import build
from freeloc_fx.method.peers import Anchors, Window
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import FULL, NONE, TSA, Everything, Rotating, Visibility

checked = settings(max_examples=50, deadline=None)
frame_counts = st.integers(1, 30)
windows = st.builds(Window, st.integers(0, 9), st.booleans())
anchors = st.builds(Anchors, st.integers(0, 5), st.integers(0, 3), st.integers(1, 12), st.integers(0, 14))


def seen(rule: Any, frames: int, i: int) -> set[int]:
    """Key frames of one query frame, in plain Python."""
    if isinstance(rule, Window):
        near = {j for j in range(frames) if abs(i - j) <= rule.window}
        return near | {0} if rule.sink else near
    keys = {(rule.phase + n * rule.every) % frames for n in range(math.ceil(frames / rule.every))}
    first = {j for j in range(frames) if j < rule.first}
    start = max(0, min(i - rule.window, frames - 1 - 2 * rule.window))
    local = {j for j in range(start, start + 2 * rule.window + 1) if j < frames}
    return keys | first | local


@checked
@given(windows | anchors, frame_counts, st.integers(0, 20))
def test_levels_are_the_rule_and_every_query_sees_itself(rule: Any, frames: int, step: int) -> None:
    rule = rule.at(step) if isinstance(rule, Anchors) else rule
    levels = rule.levels(frames)
    assert levels.shape == (frames, frames) and levels.dtype == np.int8
    for i, row in enumerate(levels.tolist()):
        assert set(row) <= {NONE, FULL}
        assert {j for j, level in enumerate(row) if level == FULL} == seen(rule, frames, i)
        assert row[i] == FULL
    assert rule.stripe(2, 3).shape == (6, 6) and rule.stripe(2, 3).all()


@checked
@given(st.integers(0, 9), st.booleans(), frame_counts)
def test_a_window_is_tsa_without_stripes_and_dense_when_long(window: int, sink: bool, frames: int) -> None:
    tsa = TSA(window + 1, window + 1, 1, sink)
    np.testing.assert_array_equal(Window(window, sink).levels(frames), tsa.levels(frames))
    np.testing.assert_array_equal(Window(frames + window, sink).levels(frames), Everything().levels(frames))


def test_the_window_is_the_baselines_scaled() -> None:
    assert build("window", Geometry(21, 81, 30, 52)).visibility == Window(12, True)
    assert build("window", Geometry(7, 70, 4, 4)).visibility == Window(4)
    assert build("window", Geometry(2, 70, 4, 4)).visibility == Window(1)
    own = {"window": {"window": 5, "sink": False}}
    assert build("clip+window", Geometry(7, 70, 4, 4), own).visibility == Window(5, False)
    with pytest.raises(StrategyError, match=r"'tsa\+window': two parts set the visibility"):
        build("tsa+window", Geometry(7, 70, 4, 4))


@checked
@given(anchors, frame_counts, st.integers(0, 40))
def test_anchors_repeat_after_their_period(rule: Anchors, frames: int, step: int) -> None:
    assert rule.at(step) == rule.at(step + rule.period) == rule.at(step + 3).at(step)
    assert len({rule.at(n) for n in range(3 * rule.period)}) == rule.period
    assert rule.at(0) == rule
    if rule.rotate == 0:
        assert rule.period == 1
    every = [rule.at(n).anchors(frames) for n in range(rule.period)]
    if math.gcd(rule.every, rule.rotate) == 1:  # the grid has been everywhere
        assert np.logical_or.reduce(every).all()


@checked
@given(st.integers(5, 21), st.integers(1, 120))
def test_the_budget_is_the_trained_length(trained: int, more: int) -> None:
    frames = trained + more
    strategy = build("anchors", Geometry(trained, frames, 2, 2))
    for step in range(0, strategy.period, 3):
        count = (strategy.at(step).visibility.levels(frames) == FULL).sum(1)
        assert count.max() <= trained
    # One key frame more would exceed it.
    rule = strategy.visibility
    assert isinstance(rule, Anchors) and rule.every >= 1
    if rule.every > 1:
        total = rule.first + 2 * rule.window + 1
        assert total + math.ceil(frames / rule.every) <= trained < total + math.ceil(frames / (rule.every - 1))


def test_strategies_rotate_and_all_others_stay() -> None:
    geometry = Geometry(21, 81, 2, 2)
    strategy = build("clip+anchors", geometry, {"anchors": {"every": 6, "rotate": 4}})
    assert strategy.period == 3 and strategy.describe()["period"] == 3
    assert strategy.at(0) == strategy == strategy.at(3) != strategy.at(1)
    assert strategy.at(1).positions == strategy.positions and strategy.at(1).visibility == Anchors(5, 1, 6, 4, 4)
    assert len({json.dumps(strategy.at(step).describe()) for step in range(9)}) == 3
    mixed = build("longdiff+anchors", geometry)
    assert mixed.period == 9 and len({mixed.at(step) for step in range(20)}) == 9
    assert all(member.visibility == Anchors(5, 1, 9, 1, 2) for member in mixed.at(11).members)
    for name in ("vrpr+tsa", "freelong", "window"):
        still = build(name, geometry)
        assert still.period == 1 and still.at(7) is still
    for step in (-1, 1.0, True):
        with pytest.raises(StrategyError, match="expected a step from 0"):
            strategy.at(step)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Window(-1), r"window\.window: expected an integer of at least 0, found -1"),
        (lambda: Window(1, 1), r"window\.sink: expected true or false, found 1"),  # type: ignore[arg-type]
        (lambda: Anchors(1, 1, 0), r"anchors\.every: expected an integer of at least 1, found 0"),
        (lambda: Anchors(1, 1, 3, phase=-1), r"anchors\.phase: expected an integer of at least 0, found -1"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        call()


@pytest.mark.parametrize("rule", [Window(3, False), Anchors(2, 1, 7, 3, 5)])
def test_describe_is_json_and_rebuilds_the_rule(rule: Any) -> None:
    described = json.loads(json.dumps(rule.describe()))
    assert described.pop("visibility") in ("window", "anchors")
    assert type(rule)(**described) == rule
    assert isinstance(rule, Visibility)
    assert isinstance(rule, Rotating) == isinstance(rule, Anchors)
