"""What the operator refuses before any lowering reads it: operands of unlike dtype, device, shape or layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from freeloc_fx.attention import op
from freeloc_fx.attention.registry import Specs
from freeloc_fx.errors import CaptureError
from freeloc_fx.evaluation.cost import make_spec
from freeloc_fx.method.spec import AttentionSpec

SPEC = make_spec("vrpr+tsa", 2, 2, 3, dim=16, trained=5)
TOKENS = SPEC.grid.sequence
DTYPE = "expected q, k and v of one floating-point dtype, found"
SHAPE = f"expected {TOKENS} tokens.*, found q"
DENSE = "expected dense tensors, found"

Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

WRONG: dict[str, tuple[Change, str]] = {
    "q bfloat16": (lambda q, k, v: (q.bfloat16(), k, v), DTYPE),
    "k float16": (lambda q, k, v: (q, k.half(), v), DTYPE),
    "v float64": (lambda q, k, v: (q, k, v.double()), DTYPE),
    "whole numbers": (lambda q, k, v: (q.long(), k.long(), v.long()), DTYPE),
    "fewer keys": (lambda q, k, v: (q, k[:, :, 1:], v[:, :, 1:]), SHAPE),
    "more tokens": (lambda q, k, v: tuple(torch.cat([x, x[:, :, :1]], 2) for x in (q, k, v)), SHAPE),  # type: ignore[dict-item]
    "fewer heads in v": (lambda q, k, v: (q, k, v[:, :1]), SHAPE),
    "one clip in q": (lambda q, k, v: (q[:1], k, v), SHAPE),
    "narrow v": (lambda q, k, v: (q, k, v[..., :8]), SHAPE),
    "no batch": (lambda q, k, v: (q[0], k[0], v[0]), SHAPE),
    "half a head": (lambda q, k, v: (q[..., :8], k[..., :8], v[..., :8]), "expected head_dim 16, found q"),
    "sparse k": (lambda q, k, v: (q, k.to_sparse(), v), DENSE),
    "all sparse": (lambda q, k, v: (q.to_sparse(), k.to_sparse(), v.to_sparse()), DENSE),
}


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(2, 2, TOKENS, 16) for _ in range(3))
    return q, k, v


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of lowerings that were called; none of them computes anything here."""
    names: list[str] = []

    def noting(name: str) -> Any:
        def lowering(q: torch.Tensor, *_: Any) -> torch.Tensor:
            names.append(name)
            return q.clone()

        return lowering

    for name in op.LOWERINGS:
        monkeypatch.setitem(op.LOWERINGS, name, noting(name))
    return names


@pytest.mark.parametrize("lowering", sorted(op.LOWERINGS))
@pytest.mark.parametrize("what", WRONG)
def test_unlike_operands_are_refused_before_anything_runs(
    what: str, lowering: str, operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor], ran: list[str]
) -> None:
    change, message = WRONG[what]
    specs = Specs()
    key = specs.add(SPEC)
    q, k, v = change(*operands)
    for call, spec in ((op.long_attention, key), (op.long_attention_numbered, specs.number(key))):
        with pytest.raises(CaptureError, match=f"long attention {re.escape(key)}: {message}"):
            call(q, k, v, spec, lowering, None)
    assert ran == []


@pytest.mark.parametrize("lowering", sorted(op.LOWERINGS))
@pytest.mark.parametrize("where", [0, 1, 2], ids=["q", "k", "v"])
def test_operands_on_unlike_devices_are_refused_before_anything_runs(
    where: int, lowering: str, operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor], ran: list[str]
) -> None:
    """Below the dispatcher, which takes any tensor on the meta device for a question about shapes."""
    given = [x.to("meta") if index == where else x for index, x in enumerate(operands)]
    found = ", ".join(str(x.device) for x in given)
    with pytest.raises(CaptureError, match=f"expected q, k and v on one device, found {found}"):
        op._run(*given, SPEC, lowering, None, None, False)  # type: ignore[misc]
    assert ran == []


@pytest.mark.parametrize("lowering", sorted(op.LOWERINGS))
def test_operands_that_are_alike_run(
    lowering: str, operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor], ran: list[str]
) -> None:
    specs = Specs()
    op.long_attention(*operands, specs.add(SPEC), lowering, None)
    assert ran == [lowering]


def test_no_strategy_skips_the_check(operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor], ran: list[str]) -> None:
    """A mixture, which runs several strategies, and one with other frequencies."""
    q, k, v = operands
    for name in ("longdiff", "pi"):
        spec: AttentionSpec = make_spec(name, 2, 2, 3, dim=16, trained=5)
        specs = Specs()
        with pytest.raises(CaptureError, match=DTYPE):
            op.long_attention(q, k, v.bfloat16(), specs.add(spec), "tiles", None)
    assert ran == []
