"""Lowerings of long attention: the reference against an oracle written from the formulas, the others against it."""

from __future__ import annotations

from typing import Any

import brute
import pytest
import torch
import torch.nn.functional as F
from attention_cases import NAMED, TSA_RASTER, Case, Lowering, cases, distance, named
from hypothesis import given, settings

from freeloc_fx.attention.calls.lowering import calls
from freeloc_fx.attention.flex.alone import flex
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.tiles.lowering import tiles


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
def test_every_lowering_equals_the_reference(case: Case) -> None:
    inputs = case.tensors()
    expected = reference(*inputs, case.spec)
    for way in (tiles, calls, flex):
        found = way(*inputs, case.spec)
        assert found.shape == inputs[0].shape and found.dtype == torch.float32
        assert distance(found, expected) <= 1e-5


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("layout", ["contiguous", "as a model has it"])
@pytest.mark.parametrize("way", [tiles, calls, flex])
def test_every_strategy(way: Lowering, name: str, layout: str) -> None:
    case = named(name, grid=(30, 3, 4))
    inputs = case.tensors()
    if layout != "contiguous":  # (batch, tokens, heads, head_dim) in memory
        inputs = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)  # type: ignore[assignment]
    assert distance(way(*inputs, case.spec), reference(*inputs, case.spec)) <= 1e-5


@pytest.mark.parametrize("way", [tiles, calls, flex])
@pytest.mark.parametrize("name", ["direct+temp", "vrpr", "tsa", "vrpr+tsa+temp"])
def test_bfloat16(way: Lowering, name: str) -> None:
    case = named(name, pairs=(4, 4, 4))
    inputs = case.tensors(torch.bfloat16)
    q, k, v = (x.float() for x in inputs)
    expected = reference(q, k, v, case.spec).double()
    found = way(*inputs, case.spec)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).norm() / expected.norm()) <= 2e-2


@pytest.mark.parametrize("lowering", [tiles, calls, flex, reference])
def test_an_explicit_scale_multiplies_the_temperature(lowering: Lowering) -> None:
    case = named("vrpr+tsa+temp", grid=(9, 2, 3))
    q, k, v = case.raw()
    expected = brute.attention(q, k, v, case.rope, case.grid, case.vrpr, case.tsa, case.temperature, scale=0.5)
    assert distance(lowering(*case.tensors(), case.spec, 0.5), torch.from_numpy(expected)) <= 1e-5


# Laws


@pytest.mark.parametrize("lowering", [reference, tiles, calls, flex])
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


@pytest.mark.parametrize("way", [tiles, calls, flex])
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


@pytest.mark.parametrize("lowering", [reference, tiles, calls, flex])
def test_inputs_are_left_alone(lowering: Lowering) -> None:
    case = named("vrpr+tsa+temp")
    inputs = case.tensors()
    copies = [x.clone() for x in inputs]
    lowering(*inputs, case.spec)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("way", [tiles, calls, flex])
def test_large_scores_stay_finite(way: Lowering) -> None:
    case = named("vrpr+tsa+temp")
    q, k, v = case.tensors()
    found = way(30 * q, 30 * k, v, case.spec)
    assert found.isfinite().all()
    assert distance(found, reference(30 * q, 30 * k, v, case.spec)) <= 1e-3
