"""Rates of temporal RoPE beyond whole turns: counted where the graph shows how positions are made, else what needs them
is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_models import arguments, build
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DiT, analysed, latents

import freeloc_fx
from freeloc_fx import Profile, transform
from freeloc_fx.errors import CaptureError, MatchFailure
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.rope.measure import Rotations
from freeloc_fx.method.rope.rates import conventional, count_turns


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**inputs)[0]
    return result


class Fast(DiT):
    """Rates that turn more than once from frame to frame; tables made in the graph, or held as they are."""

    rates = (40.0, 9.0, 2.5, 0.7, 0.01)

    def __init__(self, held: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.held = None
        if held is not None:
            self.held = super().tables(held)

    def omega(self, axis: int) -> torch.Tensor:
        return torch.tensor(self.rates, dtype=torch.float64) if axis == 0 else super().omega(axis)

    def tables(self, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        return super().tables(shape) if self.held is None else self.held


def test_turns_are_counted_where_the_graph_counts_frames() -> None:
    for site in analysed(Fast(), {"hidden_states": latents(8, 2, 3)}):
        assert site.rope is not None and site.rope.whole_turns
        assert np.allclose(site.rope.omega[0], Fast.rates, atol=1e-3)


def test_an_axis_as_long_as_the_clip_is_told_from_it() -> None:
    for site in analysed(Fast(), {"hidden_states": latents(6, 6, 6)}):
        assert site.rope is not None and np.allclose(site.rope.omega[0], Fast.rates, atol=1e-3)


@pytest.mark.parametrize("name", ["LTX", "LTX2", "LTX2 split"])
def test_rates_of_ltx_are_those_of_its_formula(name: str) -> None:
    model = build(name)
    site = freeloc_fx.plan(model, Profile(trained_frames=5, layers="pi"), frames=8, height=2, width=3).sites[0]
    count = site.heads * site.head_dim // 6
    seconds = 8 / 25 if name == "LTX" else 8 / 24
    rates = math.pi / 2 * 1e4 ** (np.arange(count) / (count - 1)) * 2 * seconds / 20
    found = np.abs(np.asarray(site.rope.omega)).ravel()
    assert site.rope.whole_turns and rates.max() > 2 * math.pi
    assert np.allclose(np.sort(found[found > 0]), rates, rtol=1e-4)


def test_interpolated_positions_are_those_of_slower_time() -> None:
    """LTX takes the length of a latent frame in seconds: half of it is what "pi" does at twice the trained length."""
    model = build("LTX")
    long = arguments("LTX", model, 10)
    seconds, *space = long["rope_interpolation_scale"]
    changed = transform(model, Profile(trained_frames=5, layers="pi"), backend="eager", attention="reference")
    expected = run(model, long | {"rope_interpolation_scale": (seconds / 2, *space)})
    assert float((run(changed, long) - expected).norm() / expected.norm()) <= 1e-3
    assert float((run(model, long) - expected).norm() / expected.norm()) > 1e-2


@pytest.mark.parametrize("part", ["pi", "ntk", "yarn", "riflex"])
def test_fractions_of_a_frame_are_refused_where_turns_cannot_be_counted(part: str) -> None:
    model = Fast(held=(8, 2, 3))
    given = {"hidden_states": latents(8, 2, 3)}
    changed = transform(model, Profile(trained_frames=4, layers=f"{part}+temp"), backend="eager")
    with torch.no_grad(), pytest.raises(CaptureError, match=rf"blocks\.0\.attention: {part} need RoPE's rates.*vrpr"):
        changed(**given)
    with torch.no_grad():
        early = Profile(trained_frames=4, layers="vrpr", schedule=[{"steps": 1, "layers": part}])
        with pytest.raises(CaptureError, match=rf"{part} need RoPE's rates"):
            freeloc_fx.plan(model, early, frames=8, height=2, width=3)
        # Whole frames, and lengths that are not long, ask for no more than is known.
        assert transform(model, Profile(trained_frames=4, layers="vrpr+tsa"), backend="eager")(**given).isfinite().all()
        short = transform(model, Profile(trained_frames=8, layers=part), backend="eager")
        assert torch.equal(short(**given), model(**given))


def test_rates_as_rope_defines_them_need_no_count() -> None:
    def layout(*rows: tuple[float, ...]) -> RopeLayout:
        return RopeLayout(8, tuple(range(len(rows[0]))), tuple(range(4, 4 + len(rows[0]))), rows)

    assert conventional(layout((1.0, 0.1, 0.01)))
    assert conventional(layout((1.0005, 0.4, 0.16, 0.011, 0.0049))), "slow pairs are rough in half precision"
    assert conventional(layout((0.01, -0.1, 1.0), (0.5, 0.05, 0.005)))
    assert not conventional(layout((1.0, 0.5, 0.1))), "no powers of a base"
    assert not conventional(layout((3.0, 0.3, 0.03))), "faster than a radian a frame"


def clip(omega: np.ndarray, shift: float, frames: int, text: int) -> Rotations:
    """A clip of one token a frame, moved by `shift` frames."""
    place = np.concatenate([np.zeros(text), np.arange(frames) + shift])
    phase = np.exp(1j * omega[:, None] * place[:, None])
    phase[:, :text] = 1
    pairs = omega.shape[1]
    return Rotations(np.arange(pairs), np.arange(pairs) + pairs, phase[:1], 0.0, (), lambda tokens: phase[:, tokens])


RATE = st.floats(-3000, 3000, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(RATE, min_size=2, max_size=6),
    st.integers(2, 9),
    st.integers(0, 3),
)
def test_any_rate_is_counted(rates: list[float], frames: int, text: int) -> None:
    omega = np.array([rates, rates[::-1]])
    aliased = np.angle(np.exp(1j * omega))
    pairs = omega.shape[1]
    layout = RopeLayout(
        2 * pairs, tuple(range(pairs)), tuple(range(pairs, 2 * pairs)), tuple(map(tuple, aliased)), whole_turns=False
    )
    grid = TokenGrid(frames, 1, 1, text)
    found = count_turns(layout, grid, clip(omega, 0, frames, text), lambda shift: clip(omega, shift, frames, text))
    assert found is not None and found.whole_turns
    assert np.allclose(found.omega if len(found.omega) == 2 else [found.omega[0]] * 2, omega, atol=1e-6)
    assert count_turns(layout, grid, clip(omega, 0, frames, text), lambda _: MatchFailure("none")) is None


def test_what_moves_at_another_rate_is_not_the_clip() -> None:
    omega = np.array([[3.0, 10.0]])
    layout = RopeLayout(4, (0, 1), (2, 3), ((3.0, 10.0 - 4 * math.pi),), whole_turns=False)
    grid = TokenGrid(6, 1, 1)
    assert count_turns(layout, grid, clip(omega, 0, 6, 0), lambda shift: clip(omega, shift, 6, 0)) is not None
    assert count_turns(layout, grid, clip(omega, 0, 6, 0), lambda shift: clip(omega, shift / 2, 6, 0)) is None
    assert count_turns(layout, grid, clip(omega, 0, 6, 0), lambda _: clip(omega, 0, 6, 0)) is None, "nothing moved"
