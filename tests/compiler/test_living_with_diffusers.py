"""What users of diffusers do to a model, on a transformed one: fused projections, attention backends, torch.compile
around it. Adapters and hooks have files of their own; saving, copying and pickling are in test_transform.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from answers import changed_of, distance
from diffusers.models import attention_dispatch
from diffusers_models import CASES, arguments, build
from models import wan, wan_inputs
from slow import slow

from freeloc_fx import plans, restore
from freeloc_fx.errors import TransformError


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)[0]
    return result


@pytest.fixture(autouse=True)
def attention_backend_of_the_process() -> Iterator[None]:
    """diffusers keeps the backend chosen last for the whole process, not for one model."""
    registry: Any = attention_dispatch._AttentionBackendRegistry
    before = registry._active_backend
    yield
    registry._active_backend = before


# Fused projections


@pytest.mark.parametrize(
    ("name", "changes"), [slow("Wan", {}), ("Wan", {"qk_norm": None}), slow("CogVideoX", {}), slow("LTX", {})]
)
def test_fused_projections(name: str, changes: dict[str, Any]) -> None:
    """With a norm between projection and RoPE and without: then q is one piece of a larger projection."""
    config = {**CASES[name].config, **changes}
    case = replace(CASES[name], config=config)
    model = build(name, case=case)
    given, short = arguments(name, model, 10), arguments(name, model, 5)
    expected, plain = run(changed_of(model), given), run(model, short)
    torch._dynamo.reset()
    changed = changed_of(model)
    changed.fuse_qkv_projections()
    assert any("to_qkv" in path for path, _ in changed.named_modules())
    assert distance(run(changed, given), expected) <= 1e-5
    assert [plan.rewritten for plan in plans(changed)] == [len(case.sites)]
    assert distance(run(changed, short), plain) <= 1e-5
    changed.unfuse_qkv_projections()
    assert distance(run(changed, given), expected) <= 1e-5


# Attention backends


@pytest.mark.parametrize("name", ["Wan", slow("HunyuanVideo")])
def test_backends_of_torch(name: str) -> None:
    """Chosen before the transform, after it, and changed between calls."""
    model = build(name)
    given = arguments(name, model, 10, text_shown=11)
    expected = run(changed_of(model), given)
    for order in ("before", "after"):
        torch._dynamo.reset()
        model = build(name)
        if order == "before":
            model.set_attention_backend("native")
        changed = changed_of(model)
        if order == "after":
            changed.set_attention_backend("_native_math")
        assert distance(run(changed, given), expected) <= 1e-5
        changed.set_attention_backend("_native_math" if order == "before" else "native")
        assert distance(run(changed, given), expected) <= 1e-5
        assert all(plan.rewritten == len(CASES[name].sites) for plan in plans(changed))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_backend_without_scaled_dot_product_attention_is_replaced() -> None:
    """More of them, with stand-ins of their packages, are in test_diffusers_backends.py."""
    model = build("Wan")
    given = arguments("Wan", model, 10)
    expected = run(changed_of(model), given)
    model.set_attention_backend("flex")
    changed = changed_of(model)
    assert distance(run(changed, given), expected) <= 1e-5
    assert plans(changed)[-1].rewritten == len(CASES["Wan"].sites)


# torch.compile around a transformed model


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_around_it_keeps_the_long_attention(backend: str) -> None:
    """Dynamo would trace through the call and drop our backend, so that the model ran untransformed without a word."""
    model, given = wan(), wan_inputs(10)
    changed = changed_of(model)
    expected = run(changed, given)
    assert distance(expected, run(model, given)) > 1e-2
    outer = torch.compile(changed, backend=backend)
    assert distance(run(outer, given), expected) <= 1e-6

    @torch.compile(backend=backend)
    def step(x: torch.Tensor) -> torch.Tensor:
        return 2 * changed(**(given | {"hidden_states": x}))[0]

    with torch.no_grad():
        assert distance(step(given["hidden_states"]), 2 * expected) <= 1e-6
    assert len(plans(changed)) == 1


def test_a_direct_call_of_forward_is_transformed() -> None:
    model, given = wan(), wan_inputs(10)
    changed = changed_of(model)
    with torch.no_grad():
        assert distance(changed.forward(**given)[0], run(changed, given)) <= 1e-6
        assert distance(model.forward(**given)[0], run(changed, given)) > 1e-2


def test_compile_around_it_as_one_graph_is_no_way_around_it() -> None:
    """Dynamo leaves our call out of its graph, also where somebody asks for one graph."""
    model, given = wan(), wan_inputs(10)
    changed = changed_of(model)
    expected = run(changed, given)
    assert distance(run(torch.compile(changed, backend="eager", fullgraph=True), given), expected) <= 1e-6


def test_its_own_compile_chooses_the_backend() -> None:
    model, given = wan(), wan_inputs(10)
    changed = changed_of(model)
    expected = run(changed, given)
    seen = []

    def mine(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(str(gm.graph))
        return gm.forward

    changed.compile(backend=mine, fullgraph=True, dynamic=False)
    assert distance(run(changed, given), expected) <= 1e-6
    assert len(seen) == 1 and seen[0].count("target=torch.ops.freeloc_fx.long_attention") == 2
    assert restore(changed) is model and model._compiled_call_impl is None
    with pytest.raises(TransformError, match=r"expected backend, mode, options by name, found \['disable'\]"):
        changed.compile(disable=True)
    with pytest.raises(ValueError, match="backend: expected 'eager' or one of"):
        changed.compile(backend="fast")
    assert distance(run(changed, given), expected) <= 1e-6, "as before the refusals"


def test_blocks_compiled_on_their_own_are_refused() -> None:
    model, given = wan(), wan_inputs(10)
    changed = changed_of(model)
    run(changed, given)
    model.blocks[0].compile(backend="eager")
    with pytest.raises(TransformError, match=r"blocks\.0 \(WanTransformerBlock\) is already compiled"):
        run(changed, given)
