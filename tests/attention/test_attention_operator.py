"""The operator of long attention in a graph: its fake kernel, specs by key and number, which lowering runs."""

from __future__ import annotations

import brute
import pytest
import torch
from attention_cases import NAMED, Case, cases, named
from hypothesis import given, settings

from freeloc_fx.attention import op
from freeloc_fx.attention.registry import Specs
from freeloc_fx.errors import CaptureError


@pytest.mark.parametrize("lowering", ["reference", "tiles", "calls"])
@pytest.mark.parametrize("name", ["direct+temp", "vrpr+tsa+temp"])
def test_the_operator_passes_opcheck(lowering: str, name: str) -> None:
    case = named(name, grid=(7, 2, 2))
    specs = Specs()
    arguments = (*case.tensors(), specs.add(case.spec), lowering, None)
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
    specs = Specs()
    key = specs.add(case.spec)
    inputs = case.tensors(dtype)
    real = op.long_attention(*inputs, key, lowering, None)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in inputs]
        fake = op.long_attention(*fakes, key, lowering, None)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_a_lowering_that_there_is_not() -> None:
    case = named("tsa", grid=(7, 2, 2))
    specs = Specs()
    with pytest.raises(ValueError, match="expected auto or one of reference, tiles, calls, flex, found 'xla'"):
        op.long_attention(*case.tensors(), specs.add(case.spec), "xla", None)


@pytest.mark.parametrize("name", ["tsa", "vrpr+tsa+temp"])
def test_a_spec_given_as_a_number_is_that_spec(name: str) -> None:
    case = named(name, grid=(7, 2, 2))
    specs = Specs()
    inputs, key = case.tensors(), specs.add(case.spec)
    numbered = torch.ops.freeloc_fx.long_attention_numbered
    assert torch.equal(
        numbered(*inputs, specs.number(key), "tiles", None), op.long_attention(*inputs, key, "tiles", None)
    )
    torch.library.opcheck(
        numbered.default,
        (*inputs, specs.number(key), "tiles", None),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    with pytest.raises(CaptureError, match="long attention number 12345: expected that of one of the"):
        numbered(*inputs, torch.tensor(12345), "tiles", None)


def test_an_unknown_spec_is_an_error() -> None:
    inputs = named("tsa").tensors()
    with pytest.raises(CaptureError, match=r"'no\+such@1x1x1#0': no such spec lives"):
        op.long_attention(*inputs, "no+such@1x1x1#0", "tiles", None)


def test_a_wrong_number_of_tokens_is_an_error() -> None:
    case = named("tsa")
    q, k, v = case.tensors()
    specs = Specs()
    key = specs.add(case.spec)
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
def test_auto_is_flex_on_cuda_and_measured_on_cpu(device: str) -> None:
    expected = {"cuda": "flex", "cpu": "auto", "mps": "tiles"}
    assert op.choose("auto", torch.device(device)) == expected[device]
    assert op.choose("reference", torch.device(device)) == "reference"


def test_an_unknown_lowering_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="expected 'auto', 'reference', 'tiles', 'calls', 'flex', found 'fast'"):
        op.choose("fast", torch.device("cpu"))
