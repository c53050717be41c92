"""One attention by FlexAttention's nodes with a compiler, call by call, as on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_checks import operands

from freeloc_fx.attention import op
from freeloc_fx.attention.flex.alone import flex
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.evaluation.cost import make_spec


@pytest.mark.parametrize(
    ("name", "text", "heads"), [("vrpr+tsa", 5, 2), ("vrpr", 0, 3), ("tsa", 0, 1), ("ntk+window", 0, 2)]
)
def test_it_is_the_reference_with_a_compiler(name: str, text: int, heads: int) -> None:
    spec = make_spec(name, 3, 2, 4, 16, text, trained=5)
    q, k, v = operands(spec, 3, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        found = flex(q, k, v, spec, backend="aot_eager", options=FlexOptions(heads=heads))
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        again = flex(q, k, v, spec, backend="aot_eager", options=FlexOptions(heads=heads))
        expected = op.run("reference", q, k, v, spec)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5
    assert torch.equal(found, again)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


def test_heads_of_unlike_frequencies_are_the_same_compiled_calls() -> None:
    heads = 10
    spec = make_spec("vrpr", 3, 2, 2, 16, trained=5)
    omega = tuple(tuple(w * (1 + 0.1 * head) for w in spec.rope.omega[0]) for head in range(heads))
    spec = replace(spec, rope=replace(spec.rope, omega=omega))
    q, k, v = operands(spec, heads, torch.float32, torch.device("cpu"))
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        found = flex(q, k, v, spec, backend="aot_eager", options=FlexOptions(heads=1))
        expected = op.run("reference", q, k, v, spec)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
