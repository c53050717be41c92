"""Lowerings of long attention: the reference against an oracle written from the formulas, the others against it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brute
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from freeloc_fx.attention import op
from freeloc_fx.attention.bands import spec_bands
from freeloc_fx.attention.calls import calls
from freeloc_fx.attention.flex import flex
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.spec import AttentionSpec, number, register
from freeloc_fx.attention.tiles import tiles
from freeloc_fx.errors import CaptureError
from freeloc_fx.meta import RopeLayout, TokenGrid
from freeloc_fx.positions import VRPR, Identity
from freeloc_fx.strategy import Strategy
from freeloc_fx.visibility import TSA, Everything

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Lowering = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One random attention: raw q, k, v, a RoPE, a grid and a strategy as plain numbers."""

    batch: int
    heads: int
    grid: tuple[int, int, int]
    pairs: tuple[int, int, int]  # temporal, height, width
    half: bool
    per_head: bool
    plain: int  # channels that RoPE leaves alone
    vrpr: dict[str, Any] | None
    tsa: dict[str, Any] | None
    temperature: float
    seed: int = 0

    @property
    def dim(self) -> int:
        return 2 * sum(self.pairs) + self.plain

    @property
    def rope(self) -> brute.Rope3D:
        count = sum(self.pairs)
        places = [(p, p + count) if self.half else (2 * p, 2 * p + 1) for p in range(count)]
        t, h, _ = self.pairs
        by_axis = (tuple(places[:t]), tuple(places[t : t + h]), tuple(places[t + h :]))
        omega = []
        for axis in by_axis:
            row = np.array([100.0 ** (-p / max(len(axis), 1)) for p in range(len(axis))])
            factors = 1 + 0.3 * np.arange(self.heads) * self.per_head
            omega.append(factors[:, None] * row[None])
        return brute.Rope3D(*by_axis, *omega)

    @property
    def strategy(self) -> Strategy:
        return Strategy(
            "case",
            VRPR(**self.vrpr) if self.vrpr else Identity(),
            TSA(**self.tsa) if self.tsa else Everything(),
            self.temperature,
        )

    @property
    def spec(self) -> AttentionSpec:
        rope = self.rope
        rows = rope.omega_t if self.per_head else rope.omega_t[:1]
        layout = RopeLayout(
            self.dim,
            tuple(a for a, _ in rope.t),
            tuple(b for _, b in rope.t),
            tuple(tuple(float(w) for w in row) for row in rows),
        )
        return AttentionSpec(self.strategy, TokenGrid(*self.grid), layout)

    def raw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        shape = (self.batch, self.heads, int(np.prod(self.grid)), self.dim)
        q, k, v = (random.standard_normal(shape).astype(np.float32) for _ in range(3))
        return q, k, v

    def tensors(self, dtype: torch.dtype = torch.float32) -> Tensors:
        """q and k as the model's RoPE hands them to attention."""
        q, k, v = self.raw()
        turned = [self.rope.rotated(x.astype(np.float64), *self.grid) for x in (q, k)]
        a, b, c = (torch.from_numpy(x).float().to(dtype) for x in (*turned, v))
        return a, b, c


@st.composite
def cases(draw: st.DrawFn, frames: int = 30, side: int = 5, vrpr: bool | None = None) -> Case:
    w1, g1 = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    positions = {
        "w1": w1,
        "w2": w1 + draw(st.integers(0, 8)),
        "g1": g1,
        "g2": g1 + draw(st.integers(0, 4)),
        "quantise": draw(st.sampled_from(["pair", "separable"])),
    }
    d1 = draw(st.integers(1, 6))
    visibility = {
        "d1": d1,
        "d2": d1 + draw(st.integers(0, 8)),
        "ds": draw(st.integers(1, 8)),
        "sink": draw(st.booleans()),
        "spatial": draw(st.sampled_from(["raster", "2d"])),
    }
    return Case(
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        grid=(draw(st.integers(2, frames)), draw(st.integers(1, side)), draw(st.integers(1, side))),
        pairs=(draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        half=draw(st.booleans()),
        per_head=draw(st.booleans()),
        plain=draw(st.sampled_from([0, 1, 2])),
        vrpr=positions if (draw(st.booleans()) if vrpr is None else vrpr) else None,
        tsa=visibility if draw(st.booleans()) else None,
        temperature=draw(st.sampled_from([1.0, 0.9, 1.167, 1.363])),
        seed=draw(st.integers(0, 1000)),
    )


VRPR_PAIR = {"w1": 4, "w2": 9, "g1": 2, "g2": 3}
TSA_RASTER = {"d1": 3, "d2": 7, "ds": 4}
NAMED: dict[str, dict[str, Any]] = {
    "direct+temp": {"temperature": 1.363},
    "vrpr": {"vrpr": VRPR_PAIR},
    "vrpr separable": {"vrpr": VRPR_PAIR | {"quantise": "separable"}},
    "tsa": {"tsa": TSA_RASTER},
    "tsa no sink": {"tsa": TSA_RASTER | {"sink": False}},
    "tsa 2d": {"tsa": TSA_RASTER | {"ds": 2, "spatial": "2d"}},
    "tsa 2d no sink": {"tsa": TSA_RASTER | {"ds": 2, "spatial": "2d", "sink": False}},
    "vrpr+tsa+temp": {"vrpr": VRPR_PAIR, "tsa": TSA_RASTER, "temperature": 1.167},
}


def named(name: str, **changes: Any) -> Case:
    start: dict[str, Any] = {
        "batch": 2,
        "heads": 3,
        "grid": (17, 3, 4),
        "pairs": (2, 2, 2),
        "half": False,
        "per_head": True,
        "plain": 0,
        "vrpr": None,
        "tsa": None,
        "temperature": 1.0,
    }
    return Case(**(start | NAMED[name] | changes))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value, at least 1."""
    gap = (found.double() - expected.double()).abs().max()
    return float(gap / expected.double().abs().max().clamp(min=1.0))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double())


# The reference


@settings(max_examples=15)
@given(cases(frames=12, side=3))
def test_reference_is_the_formula(case: Case) -> None:
    q, k, v = case.raw()
    expected = brute.attention(q, k, v, case.rope, case.grid, case.vrpr, case.tsa, case.temperature)
    found = reference(*case.tensors(), case.spec)
    assert found.dtype == torch.float32
    assert distance(found, torch.from_numpy(expected)) <= 1e-5


@pytest.mark.parametrize("name", NAMED)
def test_reference_is_the_formula_for_every_strategy(name: str) -> None:
    case = named(name, grid=(13, 2, 3), batch=1)
    q, k, v = case.raw()
    expected = brute.attention(q, k, v, case.rope, case.grid, case.vrpr, case.tsa, case.temperature)
    assert distance(reference(*case.tensors(), case.spec), torch.from_numpy(expected)) <= 1e-5
    unlike = brute.attention(q, k, v, case.rope, case.grid)
    assert distance(torch.from_numpy(unlike), torch.from_numpy(expected)) > 1e-2, "the strategy changes nothing here"


def test_reference_computes_chosen_frames_alone() -> None:
    case = named("vrpr+tsa+temp")
    n = case.grid[1] * case.grid[2]
    whole = reference(*case.tensors(), case.spec)
    part = reference(*case.tensors(), case.spec, rows=[0, 9])
    assert torch.equal(part, torch.cat([whole[:, :, :n], whole[:, :, 9 * n : 10 * n]], 2))


# The other lowerings against the reference


@settings(max_examples=40)
@given(cases())
def test_tiles_and_calls_equal_the_reference(case: Case) -> None:
    inputs = case.tensors()
    expected = reference(*inputs, case.spec)
    for way in (tiles, calls):
        found = way(*inputs, case.spec)
        assert found.shape == inputs[0].shape and found.dtype == torch.float32
        assert distance(found, expected) <= 1e-5


@settings(max_examples=8)
@given(cases(frames=14, side=3, vrpr=True))
def test_flex_of_several_bands_equals_the_reference(case: Case) -> None:
    assume(len(spec_bands(case.spec)) > 1)  # one band alone compiles, which has a test of its own
    inputs = case.tensors()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="attention='flex' with strategy")
        found = flex(*inputs, case.spec)
    assert distance(found, reference(*inputs, case.spec)) <= 1e-5


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("layout", ["contiguous", "as a model has it"])
@pytest.mark.parametrize("way", [tiles, calls])
def test_tiles_and_calls_for_every_strategy(way: Lowering, name: str, layout: str) -> None:
    case = named(name, grid=(30, 3, 4))
    inputs = case.tensors()
    if layout != "contiguous":  # (batch, tokens, heads, head_dim) in memory
        inputs = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)  # type: ignore[assignment]
    assert distance(way(*inputs, case.spec), reference(*inputs, case.spec)) <= 1e-5


@pytest.mark.parametrize("way", [tiles, calls])
@pytest.mark.parametrize("name", ["direct+temp", "vrpr", "tsa", "vrpr+tsa+temp"])
def test_tiles_and_calls_in_bfloat16(way: Lowering, name: str) -> None:
    case = named(name, pairs=(4, 4, 4))
    inputs = case.tensors(torch.bfloat16)
    q, k, v = (x.float() for x in inputs)
    expected = reference(q, k, v, case.spec).double()
    found = way(*inputs, case.spec)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).norm() / expected.norm()) <= 2e-2


def test_flex_in_bfloat16() -> None:
    case = named("vrpr+tsa+temp", grid=(12, 2, 3))
    inputs = case.tensors(torch.bfloat16)
    q, k, v = (x.float() for x in inputs)
    expected = reference(q, k, v, case.spec).double()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="attention='flex' with strategy")
        found = flex(*inputs, case.spec)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).norm() / expected.norm()) <= 2e-2


@pytest.mark.parametrize("lowering", [tiles, calls, reference])
def test_an_explicit_scale_multiplies_the_temperature(lowering: Lowering) -> None:
    case = named("vrpr+tsa+temp", grid=(9, 2, 3))
    q, k, v = case.raw()
    expected = brute.attention(q, k, v, case.rope, case.grid, case.vrpr, case.tsa, case.temperature, scale=0.5)
    assert distance(lowering(*case.tensors(), case.spec, 0.5), torch.from_numpy(expected)) <= 1e-5


# Laws


@pytest.mark.parametrize("lowering", [reference, tiles, calls])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tsa": {"d1": 17, "d2": 17, "ds": 1}},
        {"tsa": {"d1": 1, "d2": 17, "ds": 12, "sink": False}},
        {"tsa": {"d1": 1, "d2": 40, "ds": 4, "spatial": "2d"}},
        {"vrpr": {"w1": 16, "w2": 16, "g1": 2, "g2": 3}},
        {"vrpr": {"w1": 2, "w2": 5, "g1": 1, "g2": 1}},
    ],
    ids=["direct", "window >= length", "stripe >= frame", "2d stripe >= frame", "W1 >= length", "groups of one"],
)
def test_what_hides_and_moves_nothing_is_dense_attention(lowering: Lowering, change: dict[str, Any]) -> None:
    case = named("direct+temp", temperature=1.0, **change)
    inputs = case.tensors()
    assert distance(lowering(*inputs, case.spec), dense(*inputs)) <= 1e-5


@pytest.mark.parametrize("way", [tiles, calls])
@pytest.mark.parametrize("name", ["tsa", "vrpr+tsa+temp"])
def test_hidden_keys_have_no_influence(way: Lowering, name: str) -> None:
    """Without a sink, a frame far from all others decides nothing about them."""
    case = named(name, tsa=TSA_RASTER | {"sink": False})
    n = case.grid[1] * case.grid[2]
    q, k, v = case.tensors()
    before = way(q, k, v, case.spec)
    k, v = k.clone(), v.clone()
    k[:, :, -n:], v[:, :, -n:] = 1e4, 1e6
    after = way(q, k, v, case.spec)
    last_seeing = case.grid[0] - TSA_RASTER["d2"]
    assert torch.equal(before[:, :, : last_seeing * n], after[:, :, : last_seeing * n])
    assert not torch.equal(before[:, :, last_seeing * n :], after[:, :, last_seeing * n :])


@pytest.mark.parametrize("lowering", [reference, tiles, calls])
def test_inputs_are_left_alone(lowering: Lowering) -> None:
    case = named("vrpr+tsa+temp")
    inputs = case.tensors()
    copies = [x.clone() for x in inputs]
    lowering(*inputs, case.spec)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("way", [tiles, calls])
def test_large_scores_stay_finite(way: Lowering) -> None:
    case = named("vrpr+tsa+temp")
    q, k, v = case.tensors()
    found = way(30 * q, 30 * k, v, case.spec)
    assert found.isfinite().all()
    assert distance(found, reference(30 * q, 30 * k, v, case.spec)) <= 1e-3


# FlexAttention must really be compiled


def test_flex_of_one_band_is_compiled() -> None:
    """On CPU one band compiles; the warning of an uncompiled call, or no compiled frame, fails this test."""
    case = named("tsa", grid=(18, 3, 4), pairs=(4, 2, 2), batch=1, heads=2)
    inputs = case.tensors()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without torch.compile.*")
        warnings.filterwarnings("error", message=".*attention='flex'.*")
        found = flex(*inputs, case.spec)
    assert distance(found, reference(*inputs, case.spec)) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_flex_says_when_it_cannot_be_compiled() -> None:
    case = named("vrpr", grid=(8, 1, 2), batch=1, heads=1)
    inputs = case.tensors()
    flex_module = __import__("freeloc_fx.attention.flex", fromlist=["_said"])
    flex_module._said.clear()
    with pytest.warns(UserWarning, match=r"strategy 'case' on CPU .* Use attention='tiles'"):
        flex(*inputs, case.spec)


# The operator


@pytest.mark.parametrize("lowering", ["reference", "tiles", "calls"])
@pytest.mark.parametrize("name", ["direct+temp", "vrpr+tsa+temp"])
def test_the_operator_passes_opcheck(lowering: str, name: str) -> None:
    case = named(name, grid=(7, 2, 2))
    arguments = (*case.tensors(), register(case.spec), lowering, None)
    torch.library.opcheck(
        torch.ops.freeloc_fx.long_attention.default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lowering", ["reference", "tiles", "calls"])
def test_the_fake_kernel_has_the_real_layout(lowering: str, dtype: torch.dtype) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    case = named("vrpr+tsa+temp", grid=(7, 2, 2))
    key = register(case.spec)
    inputs = case.tensors(dtype)
    real = op.long_attention(*inputs, key, lowering, None)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in inputs]
        fake = op.long_attention(*fakes, key, lowering, None)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("name", ["tsa", "vrpr+tsa+temp"])
def test_a_spec_given_as_a_number_is_that_spec(name: str) -> None:
    case = named(name, grid=(7, 2, 2))
    inputs, key = case.tensors(), register(case.spec)
    numbered = torch.ops.freeloc_fx.long_attention_numbered
    assert torch.equal(numbered(*inputs, number(key), "tiles", None), op.long_attention(*inputs, key, "tiles", None))
    torch.library.opcheck(
        numbered.default,
        (*inputs, number(key), "tiles", None),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    with pytest.raises(CaptureError, match="long attention number 12345: expected one of the"):
        numbered(*inputs, torch.tensor(12345), "tiles", None)


def test_an_unknown_spec_is_an_error() -> None:
    inputs = named("tsa").tensors()
    with pytest.raises(CaptureError, match=r"'no\+such@1x1x1#0': no such spec in this process"):
        op.long_attention(*inputs, "no+such@1x1x1#0", "tiles", None)


def test_a_wrong_number_of_tokens_is_an_error() -> None:
    case = named("tsa")
    q, k, v = case.tensors()
    key = register(case.spec)
    with pytest.raises(CaptureError, match=r"expected 204 tokens, found q \(2, 3, 203, 12\)"):
        op.long_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], key, "tiles", None)


def test_a_key_tells_specs_apart_and_is_the_same_every_time() -> None:
    keys = {name: named(name).spec.key for name in NAMED}
    assert len(set(keys.values())) == len(keys)
    assert keys == {name: named(name).spec.key for name in NAMED}
    assert named("tsa", per_head=False).spec.key != keys["tsa"]


@settings(max_examples=25)
@given(cases(frames=8, side=3))
def test_kept_pairs_counts_what_the_formula_shows(case: Case) -> None:
    frames, height, width = case.grid
    n = height * width
    shown = sum(
        brute.sees(i, j, a, b, width, case.tsa)
        for i in range(frames)
        for j in range(frames)
        for a in range(n)
        for b in range(n)
    )
    assert case.spec.kept_pairs() == pytest.approx(shown / (frames * n) ** 2, rel=1e-12)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_is_flex_on_cuda_and_tiles_elsewhere(device: str) -> None:
    assert op.choose("auto", torch.device(device)) == ("flex" if device == "cuda" else "tiles")
    assert op.choose("reference", torch.device(device)) == "reference"


def test_an_unknown_lowering_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="expected 'auto', 'reference', 'tiles', 'calls', 'flex', found 'fast'"):
        op.choose("fast", torch.device("cpu"))
