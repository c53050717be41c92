"""Operators under torch.autocast: q, k and v arrive in one dtype, as scaled_dot_product_attention casts its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from freeloc_fx.attention import observed, op, repeated
from freeloc_fx.attention.registry import Specs
from freeloc_fx.evaluation.cost import make_spec

Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def operands(tokens: int, keys: int | None = None) -> list[torch.Tensor]:
    """q and k float32 and v bfloat16, as a model's norms leave them under autocast."""
    keys = tokens if keys is None else keys
    return [torch.randn(1, 2, tokens, 16), torch.randn(1, 2, keys, 16), torch.randn(1, 2, keys, 16).bfloat16()]


def check(call: Call, given: list[torch.Tensor], compiled: bool) -> None:
    """A call under autocast is bitwise the call with all three cast by hand."""
    q, k, v = (x.bfloat16() for x in given)
    expected = call(q, k, v)
    run = torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = run(*given)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "aot_eager"])
@pytest.mark.parametrize("numbered", [False, True], ids=["by key", "by number"])
@pytest.mark.parametrize("lowering", sorted(op.LOWERINGS.keys() - {"flex"}))
def test_a_long_attention_runs_in_autocasts_dtype(lowering: str, numbered: bool, compiled: bool) -> None:
    specs = Specs()
    spec = make_spec("vrpr+tsa", 2, 2, 3, dim=16, trained=5)
    key = specs.add(spec)
    name: Any = specs.number(key) if numbered else key
    target = op.NUMBERED if numbered else op.OPERATOR

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = target(q, k, v, name, lowering, None)
        return result

    check(call, operands(spec.grid.sequence), compiled)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "aot_eager"])
@pytest.mark.parametrize("copies", [1, 60])
def test_attention_over_text_runs_in_autocasts_dtype(copies: int, compiled: bool) -> None:
    given = operands(12, 80)
    for x in given[1:]:
        x[:, :, -copies:] = x[:, :, -1:].clone()
    check(lambda q, k, v: repeated.OPERATOR(q, k, v, None), given, compiled)


class Watching:
    """A recorder that notes the dtypes that it is shown."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[set[torch.dtype]] = []

    def expect(self, plan: Any) -> None:
        pass

    def see(self, path: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> None:
        self.seen.append({q.dtype, k.dtype, v.dtype})

    def attend(self, path: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "aot_eager"])
def test_an_observed_attention_runs_in_autocasts_dtype(compiled: bool) -> None:
    recorder = Watching()
    observed.open_recorder(recorder)
    try:
        check(lambda q, k, v: observed.OPERATOR(q, k, v, "watching", "blocks.0", None), operands(12), compiled)
    finally:
        observed.close_recorder(recorder)
    assert recorder.seen == [{torch.bfloat16}] * 2


def test_float64_stays_as_it_is() -> None:
    """As in autocast's own rule."""
    specs = Specs()
    spec = make_spec("vrpr+tsa", 2, 2, 3, dim=16, trained=5)
    q, k, v = (torch.randn(1, 2, spec.grid.sequence, 16, dtype=torch.float64) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert op.OPERATOR(q, k, v, specs.add(spec), "reference", None).dtype == torch.float64
