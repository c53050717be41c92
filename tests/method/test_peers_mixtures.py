"""Mixtures (LongDiff's mean, FreeLong's spectral blend) and UltraViCo's decay."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.errors import StrategyError
from freeloc_fx.method.build import build
from freeloc_fx.method.decay import ScoreDecay
from freeloc_fx.method.mixture import Mean
from freeloc_fx.method.peers import Anchors, SpectralBlend, UltraViCo, Window
from freeloc_fx.method.peers.freelong_plus import windows
from freeloc_fx.method.positions import Identity
from freeloc_fx.method.strategy import Geometry, Mixture, Strategy
from freeloc_fx.method.visibility import Everything

checked = settings(max_examples=25, deadline=None)
grids = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 5))
WAN = Geometry(21, 81, 30, 52)
ALL = 1e9  # a cutoff that lets everything pass


def outputs(count: int, grid: tuple[int, int, int], seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, math.prod(grid), 4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def named(count: int) -> tuple[Strategy, ...]:
    return tuple(Strategy(f"number {n}") for n in range(count))


def transform(axis: int, sign: int) -> np.ndarray:
    """The matrix of a discrete Fourier transform."""
    n = np.arange(axis)
    return np.exp(sign * 2j * math.pi * np.outer(n, n) / axis)


def literal(values: list[torch.Tensor], grid: tuple[int, int, int], cutoffs: tuple[float, ...], d: float) -> np.ndarray:
    """The blend frequency by frequency, with transforms written as matrices."""

    def fourier(x: np.ndarray, sign: int) -> np.ndarray:
        t, h, w = (transform(axis, sign) for axis in grid)
        return np.einsum("bhtyxc,at,dy,ex->bhadec", x, t, h, w)

    def relative(axis: int, index: int) -> float:  # 1 is the highest frequency
        return 2 * min(index, axis - index) / axis

    def low(b: int, t: int, y: int, x: int) -> float:
        if b < 0:
            return 0.0
        if b == len(cutoffs):
            return 1.0
        ft, fh, fw = (relative(axis, index) for axis, index in zip(grid, (t, y, x), strict=True))
        return math.exp(-((ft / cutoffs[b]) ** 2) / 2 - (fh / d) ** 2 / 2 - (fw / d) ** 2 / 2)

    total: Any = 0
    for b, value in enumerate(values):
        x = value.double().numpy().reshape(2, 3, *grid, 4)
        band = np.array(
            [
                [[low(b, t, y, x) - low(b - 1, t, y, x) for x in range(grid[2])] for y in range(grid[1])]
                for t in range(grid[0])
            ]
        )
        assert (band >= -1e-12).all()
        total = total + fourier(x, -1) * band[..., None]
    result = fourier(total, 1) / math.prod(grid)
    assert np.abs(result.imag).max() < 1e-9
    return np.asarray(result.real.reshape(2, 3, math.prod(grid), 4))


@checked
@given(grids, st.lists(st.floats(0.05, 2), min_size=1, max_size=3), st.floats(0.1, 2), st.integers(0, 99))
def test_the_blend_is_one_band_from_each(
    grid: tuple[int, int, int], cutoffs: list[float], spatial: float, seed: int
) -> None:
    rising = tuple(sorted(cutoffs))
    values = outputs(len(rising) + 1, grid, seed)
    found = SpectralBlend(named(len(values)), rising, spatial).combine(values, *grid)
    assert found.shape == values[0].shape and found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), literal(values, grid, rising, spatial), atol=1e-9)


@checked
@given(grids, st.integers(0, 99))
def test_an_all_pass_filter_is_the_global_one(grid: tuple[int, int, int], seed: int) -> None:
    whole, part = outputs(2, grid, seed)
    blend = SpectralBlend(named(2), (ALL,), ALL)
    torch.testing.assert_close(blend.combine([whole, part], *grid), whole, atol=1e-9, rtol=0)
    narrow = SpectralBlend(named(2), (1e-3,), 1e-3).combine([whole, part], *grid)
    # Nothing but the mean over the whole clip comes from the global one.
    expected = part + (whole - part).mean(2, keepdim=True)
    torch.testing.assert_close(narrow, expected, atol=1e-9, rtol=0)


@checked
@given(grids, st.integers(1, 4))
def test_equal_outputs_and_a_single_strategy_stay(grid: tuple[int, int, int], count: int) -> None:
    (value,) = outputs(1, grid)
    blend = SpectralBlend(named(count), tuple(0.1 * n for n in range(1, count)))
    for mixture in (blend, Mean(named(count))):
        torch.testing.assert_close(mixture.combine([value] * count, *grid), value, atol=1e-9, rtol=0)
    assert Mean(named(1)).combine([value], *grid) is value
    assert SpectralBlend(named(1), ()).combine([value], *grid) is value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixtures_keep_the_dtype_and_leave_their_inputs(dtype: torch.dtype) -> None:
    grid = (5, 2, 3)
    values = outputs(3, grid, dtype=dtype)
    before = [value.clone() for value in values]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for mixture in (Mean(named(3)), SpectralBlend(named(3), (0.1, 0.3))):
        found = mixture.combine(values, *grid)
        exact = mixture.combine([value.double() for value in values], *grid)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)
        assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))


def test_the_mean_is_the_average_of_the_softmaxes() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 2, 3, 6, 6, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 3, 6, 4, generator=generator, dtype=torch.float64)
    found = Mean(named(3)).combine([s.softmax(-1) @ v for s in scores], 3, 1, 2)
    torch.testing.assert_close(found, scores.softmax(-1).mean(0) @ v)


def test_mixtures_refuse() -> None:
    (value,) = outputs(1, (2, 1, 3))
    for mixture in (Mean(named(2)), SpectralBlend(named(2))):
        assert isinstance(mixture, Mixture)
        with pytest.raises(StrategyError, match="expected 2 outputs, one a strategy, found 1"):
            mixture.combine([value], 2, 1, 3)
        with pytest.raises(StrategyError, match=r"\(batch, heads, 8, head_dim\), found \(2, 3, 6, 4\) as number 0"):
            mixture.combine([value, value], 2, 2, 2)
        with pytest.raises(StrategyError, match="as number 1"):
            mixture.combine([value, value[:1]], 2, 1, 3)
    with pytest.raises(StrategyError, match=r"mean\.strategies: expected a tuple of at least one strategy"):
        Mean(())
    with pytest.raises(StrategyError, match=r"expected strategies without a mixture, found 'longdiff'"):
        Mean((build("longdiff", WAN),))
    with pytest.raises(StrategyError, match=r"freelong\.cutoffs: expected a tuple of 2 cutoffs"):
        SpectralBlend(named(3))
    with pytest.raises(StrategyError, match=r"freelong\.cutoffs: expected rising numbers"):
        SpectralBlend(named(3), (0.5, 0.25))
    with pytest.raises(StrategyError, match=r"freelong\.cutoffs\.0: expected a number above 0, found 0"):
        SpectralBlend(named(2), (0,))
    with pytest.raises(StrategyError, match="'x': a mixture leaves the temperature to the strategies it mixes"):
        Strategy("x", temperature=2.0, mixture=Mean(named(2)))


# What the parts make of them


def test_freelong_mixes_global_and_local() -> None:
    strategy = build("freelong", WAN)
    mixture = strategy.mixture
    assert isinstance(mixture, SpectralBlend) and (mixture.cutoffs, mixture.spatial) == ((0.25,), 0.25)
    whole, part = strategy.members
    assert whole.changes_nothing and not strategy.changes_nothing
    assert part.visibility == Window(10, sink=False) and part.positions == Identity()
    own = {"freelong": {"cutoff": 0.5, "window": 8, "spatial": 1.0}}
    changed = build("freelong", WAN, own).mixture
    assert isinstance(changed, SpectralBlend) and (changed.cutoffs, changed.spatial) == ((0.5,), 1.0)
    assert changed.strategies[1].visibility == Window(3, sink=False)


def test_freelong_plus_has_a_band_a_window_and_freelong_as_a_case() -> None:
    assert windows(21, 81) == (81, 42, 21) and windows(21, 42) == (42, 21) and windows(21, 22) == (22, 21)
    assert windows(21, 200) == (200, 168, 84, 42, 21)
    mixture = build("freelong++", WAN).mixture
    assert isinstance(mixture, SpectralBlend) and mixture.cutoffs == (0.125, 0.25)
    assert [member.visibility for member in mixture.strategies] == [
        Everything(),
        Window(20, sink=False),
        Window(10, sink=False),
    ]
    one = build("freelong++", WAN, {"freelong++": {"windows": [81, 21]}})
    assert one.mixture == build("freelong", WAN).mixture
    for own, message in (
        ({"windows": [21, 81]}, "expected falling lengths"),
        ({"windows": [82, 21]}, r"windows\.0: expected at most the 81 frames, found 82"),
        ({"windows": []}, "expected a list of at least one value"),
    ):
        with pytest.raises(StrategyError, match=message):
            build("freelong++", WAN, {"freelong++": own})


def test_other_parts_reach_every_strategy_mixed() -> None:
    strategy = build("freelong+vrpr+ultravico", WAN)
    assert strategy.positions == Identity() and strategy.decay is None
    for member in strategy.members:
        assert member.positions == build("vrpr", WAN).positions and member.decay == UltraViCo(21)
    assert [m.visibility for m in strategy.members] == [Everything(), Window(10, sink=False)]
    assert all(isinstance(m.visibility, Anchors) for m in build("anchors+longdiff", WAN).members)
    for name, field in (
        ("freelong+tsa", "visibility"),
        ("window+freelong", "visibility"),
        ("vrpr+longdiff", "positions"),
    ):
        with pytest.raises(StrategyError, match=f"two parts set the {field}"):
            build(name, WAN)
    with pytest.raises(StrategyError, match="two parts set the mixture"):
        build("freelong+longdiff", WAN)


def test_temperature_is_that_of_what_each_strategy_sees() -> None:
    whole, part = build("freelong+temp", WAN).members
    assert whole.temperature == build("direct+temp", WAN).temperature > 1
    same = build("window+temp", WAN, {"window": {"window": 10, "sink": False}})
    assert part.temperature == same.temperature < 1
    assert [m.temperature for m in build("freelong+temp", WAN, {"temperature": 1.5}).members] == [1.5, 1.5]
    assert build("freelong+++temp", WAN).members[-1].temperature == part.temperature


@pytest.mark.parametrize("name", ["longdiff", "freelong", "freelong++", "longdiff+anchors+temp", "freelong+riflex"])
def test_describe_is_json_and_tells_mixtures_apart(name: str) -> None:
    strategy = build(name, WAN)
    described = json.loads(json.dumps(strategy.describe()))
    assert described["name"] == name and described["map"] == "identity" and described["temperature"] == 1.0
    assert [m["name"] for m in described["mixture"]["strategies"]] == [m.name for m in strategy.members]
    other = json.loads(json.dumps(build(name, Geometry(20, 81, 30, 52)).describe()))
    assert described != other
    assert hash(strategy) == hash(build(name, WAN)) and strategy == build(name, WAN)


# UltraViCo

decays = st.builds(
    UltraViCo,
    st.integers(1, 20),
    st.floats(0.1, 1),
    st.floats(0.1, 1),
    st.integers(0, 5),
    st.none() | st.integers(1, 30),
)


@checked
@given(decays, st.integers(1, 40))
def test_the_decay_is_the_rule_symmetric_and_one_within_the_window(decay: UltraViCo, frames: int) -> None:
    table = decay.table(frames)
    assert table.dtype == np.float64 and table.shape == (frames, frames)
    np.testing.assert_array_equal(table, table.T)
    for i in range(frames):
        for j in range(frames):
            d = abs(i - j)
            period = decay.period
            near = period and any(abs(d - n * period) <= decay.gamma for n in range(frames + 2))
            expected = 1.0 if d <= decay.trained_frames / 2 else decay.beta if near else decay.alpha
            assert table[i, j] == expected


def test_ultravico_takes_its_settings() -> None:
    assert build("ultravico", WAN).decay == UltraViCo(21, 0.9)
    own = {"alpha": 0.95, "beta": 0.6, "gamma": 4, "period": 50}
    strategy = build("ultravico+tsa", WAN, {"ultravico": own})
    assert strategy.decay == UltraViCo(21, **own) and not strategy.changes_nothing
    assert isinstance(strategy.decay, ScoreDecay)
    assert json.loads(json.dumps(strategy.describe()))["decay"] == {"kind": "ultravico", "trained_frames": 21, **own}
    with pytest.raises(StrategyError, match=r"ultravico\.period: missing; beta holds near multiples of the period"):
        build("ultravico", WAN, {"ultravico": {"beta": 0.6}})
    for bad in (0, 1.01, math.nan, "0.9"):
        with pytest.raises(StrategyError, match=r"ultravico\.alpha: expected a number above 0 and at most 1"):
            build("ultravico", WAN, {"ultravico": {"alpha": bad}})
