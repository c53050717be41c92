"""Frequency maps of the peers: RIFLEx, PI, NTK, YaRN."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freeloc_fx.errors import StrategyError
from freeloc_fx.method.build import build
from freeloc_fx.method.frequencies import FrequencyMap, Unchanged, ranks, stretch
from freeloc_fx.method.peers import NTK, PI, RIFLEx, YaRN
from freeloc_fx.method.strategy import Geometry, Strategy

checked = settings(max_examples=50, deadline=None)


def powers(base: float, dim: int) -> np.ndarray:
    """RoPE's frequencies b^(-2p/d), (1, d/2)."""
    return base ** (-np.arange(0, dim, 2) / dim)[None]


WAN, HUNYUAN, COG = powers(10000, 44), powers(256, 16), powers(10000, 16)


@st.composite
def omegas(draw: st.DrawFn) -> np.ndarray:
    """Distinct frequencies of either sign in any order, (heads, pairs)."""
    heads, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    value = st.floats(1e-3, 3.0)
    rows = [draw(st.lists(value, min_size=pairs, max_size=pairs, unique=True)) for _ in range(heads)]
    signs = [draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=pairs, max_size=pairs)) for _ in range(heads)]
    return np.array(rows) * np.array(signs)


maps = st.sampled_from([PI, NTK, YaRN, RIFLEx])
lengths = st.tuples(st.integers(2, 21), st.integers(1, 120))


@checked
@given(omegas())
def test_ranks_count_from_the_fastest(omega: np.ndarray) -> None:
    expected = [[sum(abs(other) > abs(value) for other in row) for value in row] for row in omega.tolist()]
    found = ranks(omega).tolist()
    for row, wanted, values in zip(found, expected, np.abs(omega).tolist(), strict=True):
        assert sorted(row) == list(range(len(row)))
        for rank, count, value in zip(row, wanted, values, strict=True):
            assert rank == count or values.count(value) > 1
    assert ranks(np.array([[2.0, -3.0, 2.0]])).tolist() == [[1, 0, 2]]


@checked
@given(omegas(), maps, lengths)
@example(np.array([[-1.0, -2.0, -1.5, -1.8032503108350382, -0.5, -0.75, -0.25, -0.375]]), YaRN, (3, 1))  # rounding
def test_signs_shapes_and_the_trained_length_stay(omega: np.ndarray, kind: Any, size: tuple[int, int]) -> None:
    trained, more = size
    before = omega.copy()
    result = kind(trained).omega(omega, trained + more)
    assert result.shape == omega.shape and result.dtype == np.float64
    np.testing.assert_array_equal(np.sign(result), np.sign(omega))
    np.testing.assert_array_equal(omega, before)
    if kind is not RIFLEx:  # RIFLEx looks at the period of one component, not at the trained length
        np.testing.assert_array_equal(kind(trained).omega(omega, trained), omega)
    np.testing.assert_array_equal(Unchanged().omega(omega, trained + more), omega)


@checked
@given(omegas(), lengths)
def test_pi_keeps_the_last_frame_within_the_trained_length(omega: np.ndarray, size: tuple[int, int]) -> None:
    trained, frames = size[0], sum(size)
    result = PI(trained).omega(omega, frames)
    np.testing.assert_allclose(result * (frames - 1), omega * (frames - 1) * trained / frames)
    assert (np.abs(result) * (frames - 1) <= np.abs(omega) * trained).all()


@checked
@given(omegas(), lengths)
def test_ntk_leaves_the_fastest_and_interpolates_the_slowest(omega: np.ndarray, size: tuple[int, int]) -> None:
    trained, frames = size[0], sum(size)
    result = NTK(trained).omega(omega, frames)
    s = frames / trained
    for row, new, order in zip(omega, result, ranks(omega), strict=True):
        pairs = len(row)
        for p in range(pairs):
            (at,) = np.flatnonzero(order == p)
            factor = 1.0 if pairs == 1 else s ** (-2 * p / (2 * pairs - 2))
            assert new[at] == pytest.approx(row[at] * factor, rel=1e-12)
        assert new[order == 0] == row[order == 0]
        if pairs > 1:
            np.testing.assert_allclose(new[order == pairs - 1], row[order == pairs - 1] / s)


def test_ntk_is_a_larger_base() -> None:
    s = 81 / 21
    np.testing.assert_allclose(NTK(21).omega(WAN, 81), powers(10000 * s ** (44 / 42), 44), rtol=1e-12)


@checked
@given(omegas(), lengths, st.floats(0.05, 3), st.floats(0.05, 3))
def test_yarn_lies_between_the_model_and_pi(omega: np.ndarray, size: tuple[int, int], one: float, two: float) -> None:
    trained, frames = size[0], sum(size)
    m = YaRN(trained, max(one, two), min(one, two))
    new, old, pi = m.omega(omega, frames), np.abs(omega), np.abs(PI(trained).omega(omega, frames))
    assert (np.abs(new) <= old * (1 + 1e-12)).all() and (np.abs(new) >= pi * (1 - 1e-12)).all()
    # The share of the model's own frequency falls from pair to pair.
    kept = np.take_along_axis((np.abs(new) - pi) / (old - pi), np.argsort(ranks(omega), -1), -1)
    assert (np.diff(kept, axis=-1) <= 1e-9).all()


def yarn_of_a_base(base: float, dim: int, trained: int, fast: float, slow: float, s: float) -> np.ndarray:
    """From the base and the pair index, as the method is usually written."""

    def place(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(place(fast)), 0), min(math.ceil(place(slow)), dim // 2 - 1)
    result = []
    for p in range(dim // 2):
        omega = base ** (-2 * p / dim)
        m = 1 - min(max((p - low) / (high - low), 0), 1)
        result.append(m * omega + (1 - m) * omega / s)
    return np.array([result])


@pytest.mark.parametrize(("fast", "slow"), [(1.0, 0.6), (2.0, 0.3), (3.0, 0.1)])
def test_yarn_is_the_usual_formula_on_powers_of_a_base(fast: float, slow: float) -> None:
    expected = yarn_of_a_base(10000, 44, 21, fast, slow, 81 / 21)
    np.testing.assert_allclose(YaRN(21, fast, slow).omega(WAN, 81), expected, rtol=1e-12)


def test_yarn_ramps_over_ranks_2_to_5_on_wan() -> None:
    assert YaRN(21).ramp(WAN[0]) == (2, 5)
    new = YaRN(21).omega(WAN, 81)[0]
    np.testing.assert_array_equal(new[:3], WAN[0, :3])
    np.testing.assert_allclose(new[5:], WAN[0, 5:] * 21 / 81)
    assert YaRN(21).ramp(np.array([0.0, 1.0, 0.4, 0.01])) == (1, 2)  # a pair that does not turn is the slowest


def identified(omega: np.ndarray, repeats: int) -> int:
    """The paper's rule in plain Python: argmin_j |N_j - N|, N_j = round(2 pi / omega_j), from 1."""
    periods = [round(2 * math.pi / value) for value in sorted((abs(float(v)) for v in omega), reverse=True)]
    return min(range(len(periods)), key=lambda j: (abs(periods[j] - repeats), j)) + 1


@checked
@given(omegas(), lengths, st.integers(1, 200))
def test_riflex_lowers_one_frequency_to_a_period_longer_than_the_clip(
    omega: np.ndarray, size: tuple[int, int], repeats: int
) -> None:
    trained, frames = size[0], sum(size)
    m = RIFLEx(trained, repeats=repeats)
    for row, new, order in zip(omega, m.omega(omega, frames), ranks(omega), strict=True):
        k = identified(row, repeats)
        assert m.component(row) == k
        (at,) = np.flatnonzero(order == k - 1)
        others = np.arange(len(row)) != at
        np.testing.assert_array_equal(new[others], row[others])
        if frames > round(2 * math.pi / abs(row[at])):
            assert abs(new[at]) == pytest.approx(0.9 * 2 * math.pi / frames)
            assert abs(new[at]) * frames < 2 * math.pi  # no repetition within the clip
        else:
            assert new[at] == row[at]


def test_riflex_finds_the_authors_components() -> None:
    assert RIFLEx(33).component(HUNYUAN[0]) == 4  # N_4 = 50, trained on 33 latent frames
    assert RIFLEx(13).component(COG[0]) == 2  # N_2 = 20, trained on 13
    assert RIFLEx(21).component(WAN[0]) == 4
    assert RIFLEx(33, repeats=50).component(HUNYUAN[0]) == 4
    assert RIFLEx(99).component(np.array([1.0, 2.0])) == 2  # none is that slow: the slowest


def test_riflex_is_applied_only_beyond_the_period() -> None:
    m = RIFLEx(33, k=4)
    np.testing.assert_array_equal(m.omega(HUNYUAN, 50), HUNYUAN)
    new = m.omega(HUNYUAN, 51)
    assert new[0, 3] == pytest.approx(0.9 * 2 * math.pi / 51)
    still = np.array([[1.0, 0.0]])
    np.testing.assert_array_equal(RIFLEx(33, k=2).omega(still, 10_000), still)


def test_parts_take_their_settings() -> None:
    geometry = Geometry(21, 81, 2, 3)
    assert build("riflex", geometry).frequencies == RIFLEx(21)
    assert build("riflex", geometry, {"riflex": {"k": 6}}).frequencies == RIFLEx(21, k=6)
    assert build("pi", geometry).frequencies == PI(21)
    assert build("ntk", geometry).frequencies == NTK(21)
    assert build("yarn", geometry, {"yarn": {"beta_fast": 2}}).frequencies == YaRN(21, 2)
    both = build("riflex+tsa", geometry)
    assert both.frequencies == RIFLEx(21) and both.visibility == build("tsa", geometry).visibility
    with pytest.raises(StrategyError, match=r"'pi\+ntk': two parts set the frequencies"):
        build("pi+ntk", geometry)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RIFLEx(21, k=0), r"riflex\.k: expected an integer of at least 1, found 0"),
        (lambda: RIFLEx(21, k=1, repeats=9), "riflex: expected k or repeats, found both: k=1, repeats=9"),
        (lambda: RIFLEx(21, k=23).omega(WAN, 81), r"riflex\.k: expected 1 to 22 components of temporal RoPE, found 23"),
        (lambda: YaRN(21, 0.5, 0.6), "yarn: expected beta_fast >= beta_slow, found beta_fast=0.5, beta_slow=0.6"),
        (lambda: YaRN(21, math.inf), r"yarn\.beta_fast: expected a number above 0, found inf"),
        (lambda: YaRN(21, 1.0, 0), r"yarn\.beta_slow: expected a number above 0, found 0"),
        (lambda: PI(0), r"pi\.trained_frames: expected an integer of at least 1, found 0"),
        (lambda: NTK(2.0), r"ntk\.trained_frames: expected an integer of at least 1, found 2\.0"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        call()


@pytest.mark.parametrize("m", [RIFLEx(21, 4), RIFLEx(21), PI(21), NTK(21), YaRN(21, 2.0, 0.5), Unchanged()])
def test_describe_is_json_and_rebuilds_the_map(m: Any) -> None:
    described = json.loads(json.dumps(m.describe()))
    assert isinstance(described.pop("kind"), str)
    assert type(m)(**described) == m and hash(type(m)(**described)) == hash(m)
    assert isinstance(m, FrequencyMap)
    assert Strategy(frequencies=m).changes_nothing == isinstance(m, Unchanged)


def test_stretch() -> None:
    assert stretch(21, 84) == 4 and stretch(21, 21) == stretch(21, 5) == 1
