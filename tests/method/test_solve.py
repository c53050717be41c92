"""Solved settings against a search over all of them, and beside the paper's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import freeloc_fx
from freeloc_fx.errors import SolveError
from freeloc_fx.method import solve
from freeloc_fx.method.positions import VRPR

checked = settings(max_examples=60, deadline=None)
quantises = st.sampled_from(["pair", "separable"])


def brute_loss(m: VRPR, frames: int) -> float:
    """The docstring's sum, one distance at a time."""
    above = below = 0.0
    everything = range(1 - frames, frames)
    p = {d: int(m.of_distance(d)) for d in everything}
    for d in range(1, frames):
        size = sum(p[e] == p[d] for e in everything)
        above += (frames - d) / d * (size**2 - 1) / (12 * d**2)
        below += (frames - d) / d
    return above / below if below else 0.0


@st.composite
def lengths(draw: st.DrawFn, most: int) -> tuple[int, int]:
    trained = draw(st.integers(2, most))
    return trained, trained + draw(st.integers(1, 4 * most))


@checked
@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 5), st.integers(0, 5), st.integers(1, 30))
def test_loss_is_its_formula(w1: int, middle: int, g1: int, more: int, frames: int) -> None:
    m = VRPR(w1, w1 + middle, g1, g1 + more)
    assert solve.loss(m, frames) == pytest.approx(brute_loss(m, frames), abs=1e-12)


def test_loss_of_the_identity_is_zero_and_grouping_costs() -> None:
    assert solve.loss(VRPR(40, 40, 1, 1), 41) == 0.0
    assert solve.loss(VRPR(5, 10, 2, 8), 1) == 0.0
    assert 0 < solve.loss(VRPR(10, 10, 1, 2), 41) < solve.loss(VRPR(10, 10, 1, 3), 41)
    assert solve.loss(VRPR(10, 10, 1, 4), 41) < solve.loss(VRPR(4, 4, 1, 4), 41)  # near distances need precision


@cache
def searched(trained: int, frames: int, quantise: Any) -> float:
    """Smallest loss over every setting there is, by trying them."""
    best = np.inf
    for w1 in range(trained):
        for w2 in range(w1, frames):
            for g1 in range(1, frames + 1):
                for g2 in range(g1, frames + 1):
                    m = VRPR(w1, w2, g1, g2, quantise)
                    if int(m.of_distance(frames - 1)) >= trained:  # a cheap part of the bound first
                        continue
                    value = solve.loss(m, frames)
                    if value < best and m.reach(frames) < trained:
                        best = value
    return best


@pytest.mark.parametrize("quantise", ["pair", "separable"])
@pytest.mark.parametrize(("trained", "frames"), [(2, 3), (2, 7), (3, 10), (4, 9), (5, 11), (6, 8), (7, 10)])
def test_no_setting_is_better(trained: int, frames: int, quantise: Any) -> None:
    m = solve.vrpr(trained, frames, quantise)
    assert m.reach(frames) <= trained - 1
    assert solve.loss(m, frames) == pytest.approx(searched(trained, frames, quantise), rel=1e-9)


@checked
@given(lengths(30), quantises, st.data())
def test_solved_settings_keep_the_law_and_no_random_setting_beats_them(
    pair: tuple[int, int], quantise: Any, data: st.DataObject
) -> None:
    trained, frames = pair
    m = solve.vrpr(trained, frames, quantise)
    assert m.quantise == quantise
    assert all(type(v) is int for v in (m.w1, m.w2, m.g1, m.g2))
    assert np.abs(m.table(frames)).max() <= trained - 1
    w1 = data.draw(st.integers(0, trained - 1))
    w2 = data.draw(st.integers(w1, frames - 1))
    g1 = data.draw(st.integers(1, frames))
    for g2 in range(g1, frames + 1):
        other = VRPR(w1, w2, g1, g2, quantise)
        if other.reach(frames) <= trained - 1:
            assert solve.loss(m, frames) <= solve.loss(other, frames) * (1 + 1e-6)
            break


@checked
@given(st.integers(2, 40), st.integers(1, 40), quantises)
def test_within_the_trained_length_it_is_the_identity(trained: int, frames: int, quantise: Any) -> None:
    frames = min(frames, trained)
    index = np.arange(frames)
    table = solve.vrpr(trained, frames, quantise).table(frames)
    np.testing.assert_array_equal(table, index[:, None] - index[None, :])


@checked
@given(lengths(30))
def test_a_clip_always_fits_so_there_is_always_an_answer(pair: tuple[int, int]) -> None:
    trained, frames = pair
    clip = VRPR(trained - 1, trained - 1, 1, frames)
    assert clip.reach(frames) == trained - 1
    assert solve.loss(solve.vrpr(trained, frames), frames) <= solve.loss(clip, frames) * (1 + 1e-6)


def test_separable_can_reach_one_further_than_pair() -> None:
    tiers = (3, 8, 3, 30)
    assert VRPR(*tiers).reach(20) == 4
    assert VRPR(*tiers, "separable").reach(20) == 5


@pytest.mark.parametrize(
    ("frames", "expected"), [(41, (11, 24, 2, 7)), (81, (10, 27, 3, 12)), (201, (9, 48, 6, 34)), (321, (10, 56, 7, 81))]
)
def test_answers_for_wan(frames: int, expected: tuple[int, int, int, int]) -> None:
    assert solve.vrpr(21, frames) == VRPR(*expected)
    assert solve.vrpr(21, frames, "separable") == VRPR(*expected, "separable")


def test_beside_the_paper() -> None:
    given = freeloc_fx.Profile.load("wan2.1-t2v-1.3b").vrpr
    assert isinstance(given, Mapping)
    twice, four = (solve.agreement(given[frames], 21, frames) for frames in (41, 81))
    assert twice["given"]["setting"] == [12, 20, 2, 8] and four["given"]["setting"] == [10, 14, 2, 8]
    assert twice["bound"] == four["bound"] == 20
    assert twice["given"]["reach"] == 19 and twice["within"]
    # The paper's setting for 4x leaves the trained range by one.
    assert four["given"]["reach"] == 21 and not four["within"]
    for found in (twice, four):
        assert found["solved"]["reach"] == 20
        assert found["solved"]["loss"] < found["given"]["loss"] < 2 * found["solved"]["loss"]
        # Alike in the tiers that matter most: the near tier and the size of the first groups.
        assert abs(found["solved"]["setting"][0] - found["given"]["setting"][0]) <= 1
        assert abs(found["solved"]["setting"][2] - found["given"]["setting"][2]) <= 1


def test_it_is_quick() -> None:
    for trained, frames in ((21, 321), (33, 1281)):
        begin = time.process_time()
        solve._vrpr.__wrapped__(trained, frames, "pair")
        assert time.process_time() - begin < 3  # about 0.05 and 0.3 s on an idle core


def test_answers_are_cached() -> None:
    assert solve.vrpr(9, 33) is solve.vrpr(np.int64(9), np.int32(33))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 9), "trained_frames: expected an integer of at least 2, found 1"),
        ((-3, 9), "trained_frames: expected an integer of at least 2, found -3"),
        ((True, 9), "trained_frames: expected an integer of at least 2, found True"),
        ((np.bool_(True), 9), "trained_frames: expected an integer"),
        ((21.0, 9), r"trained_frames: expected an integer of at least 2, found 21\.0"),
        ((None, 9), "trained_frames: expected an integer of at least 2, found None"),
        ((21, 0), "frames: expected an integer of at least 1, found 0"),
        ((21, "81"), "frames: expected an integer of at least 1, found '81'"),
        ((21, True), "frames: expected an integer of at least 1, found True"),
        ((21, 81, "exact"), "quantise: expected 'pair' or 'separable', found 'exact'"),
    ],
)
def test_vrpr_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(SolveError, match=r"solve\.vrpr " + message):
        solve.vrpr(*arguments)


def seen(trained: int, tokens: int, d1: int, d2: int, ds: int) -> float:
    """Tokens an interior query sees, relative to the trained context."""
    dense, stripes, sink = 2 * d1 - 1, 2 * (d2 - d1), 1
    return ((dense + sink) * tokens + stripes * (2 * ds - 1)) / (trained * tokens)


def test_tsa_of_the_paper() -> None:
    assert solve.tsa(21, 30, 52) == solve.PAPER_TSA
    assert solve.tsa(21, 52, 30) == solve.PAPER_TSA
    assert seen(21, 1560, 8, 24, 195) == pytest.approx(1.1419, abs=1e-4)


def test_tsa_of_a_tiny_grid() -> None:
    assert solve.tsa(21, 4, 4).ds == 2
    assert solve.tsa(2, 1, 1).ds == 1


@checked
@given(st.integers(2, 100), st.integers(1, 60), st.integers(1, 60))
def test_tsa_spends_the_papers_budget(trained: int, height: int, width: int) -> None:
    rule, tokens = solve.tsa(trained, height, width), height * width
    budget = seen(21, 1560, 8, 24, 195)
    assert abs(rule.d1 - 8 * trained / 21) <= 0.5 or rule.d1 == 1
    assert abs(rule.d2 - 24 * trained / 21) <= 0.5 or rule.d2 == rule.d1 + 1
    assert rule.sink and rule.spatial == "raster"
    assert seen(trained, tokens, rule.d1, rule.d2, rule.ds + 1) > budget
    if rule.ds > 1:
        assert seen(trained, tokens, rule.d1, rule.d2, rule.ds) <= budget * (1 + 1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 4, 4), "trained_frames: expected an integer of at least 2, found 1"),
        ((21, 0, 4), "height: expected an integer of at least 1, found 0"),
        ((21, 4, -1), "width: expected an integer of at least 1, found -1"),
        ((21, 4, 2.0), r"width: expected an integer of at least 1, found 2\.0"),
        ((21, True, 4), "height: expected an integer of at least 1, found True"),
    ],
)
def test_tsa_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(SolveError, match=r"solve\.tsa " + message):
        solve.tsa(*arguments)


def test_loss_refuses() -> None:
    with pytest.raises(SolveError, match=r"solve\.loss frames: expected an integer of at least 1, found 0"):
        solve.loss(VRPR(1, 2, 1, 2), 0)
