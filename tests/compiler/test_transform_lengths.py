"""A transformed model within its trained length, bitwise the original, and beyond it, through every compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import DiT, latents, wan, wan_inputs
from slow import slow
from transformed import ALL, LONG, distance, reference, run

import freeloc_fx
from freeloc_fx import Profile, plans, transform


@pytest.fixture
def model() -> Any:
    return wan()


@pytest.mark.parametrize("backend", ["eager", "inductor", "aot_eager"])
def test_within_the_trained_length_the_output_is_bitwise_the_same(model: Any, backend: str) -> None:
    changed = transform(model, ALL, backend=backend)
    for frames, batch in ((5, 1), (3, 2)):
        assert torch.equal(run(changed, frames=frames, batch=batch), run(model, frames=frames, batch=batch))
    assert [p.rewritten for p in plans(changed)] == [0, 0]


def test_within_the_trained_length_in_bfloat16() -> None:
    model = wan(dtype=torch.bfloat16)
    changed = transform(model, ALL, backend="eager")
    assert torch.equal(run(changed, frames=5, dtype=torch.bfloat16), run(model, frames=5, dtype=torch.bfloat16))


# Beyond it


# The last holds all parts; the slow ones leave some of them out.
@pytest.mark.parametrize("name", ["direct+temp", slow("vrpr"), "tsa", slow("vrpr+tsa"), "vrpr+tsa+temp"])
def test_lowerings_agree_through_the_model(model: Any, name: str) -> None:
    profile = Profile(trained_frames=5, layers=name)
    expected = reference(model, profile, batch=2)
    found = run(transform(model, profile, backend="eager", attention="tiles"), batch=2)
    assert distance(found, expected) <= 1e-5
    assert distance(expected, run(model, batch=2)) > 1e-2, "the strategy shows in the output"


def test_flex_agrees_through_the_model(model: Any) -> None:
    found = run(transform(model, ALL, backend="eager", attention="flex"))
    assert distance(found, reference(model)) <= 1e-5


def test_each_layer_gets_its_own_strategy(model: Any) -> None:
    outputs = [
        run(transform(model, Profile(trained_frames=5, layers=layers), backend="eager"))
        for layers in ("vrpr", {0: "vrpr"}, {1: "vrpr"}, "direct")
    ]
    for i, one in enumerate(outputs):
        for other in outputs[i + 1 :]:
            assert distance(one, other) > 1e-3
    assert torch.equal(outputs[-1], run(model))


def test_the_plan_of_each_call_is_kept(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    assert plans(changed) == []
    run(changed)
    (made,) = plans(changed)
    assert made.rewritten == 2 and made.grid.frames == LONG
    assert made.to_dict() == freeloc_fx.plan(model, ALL, frames=LONG, height=4, width=4).to_dict() | {
        "skipped": made.to_dict()["skipped"]  # the length of the text differs
    }


@pytest.mark.slow
def test_a_shape_that_was_seen_is_not_compiled_again(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    calls: list[dict[str, Any]] = [
        {"frames": 12},
        {"frames": 5},
        {"frames": 12, "batch": 2},
        {"frames": 9, "height": 6},
        {"frames": 12, "text": 9},
    ]
    first = [run(changed, **call) for call in calls]
    assert len(plans(changed)) == len(calls)
    captures = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(2):
        for call, expected in zip(calls, first, strict=True):
            assert torch.equal(run(changed, **call), expected)
    assert len(plans(changed)) == len(calls)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == captures
    for call, found in zip(calls, first, strict=True):
        if call["frames"] > 5:
            assert distance(found, reference(model, **call)) <= 1e-5


@pytest.mark.slow
def test_more_shapes_than_dynamo_would_compile(model: Any) -> None:
    """Past eight shapes Dynamo alone would run the untransformed model without a word."""
    changed = transform(model, ALL, backend="eager")
    for frames in range(6, 16):
        run(changed, frames=frames)
    assert [p.grid.frames for p in plans(changed)] == list(range(6, 16))
    assert all(p.rewritten == 2 for p in plans(changed))
    assert distance(run(changed, frames=15), reference(model, frames=15)) <= 1e-5
    assert distance(run(changed, frames=15), run(model, frames=15)) > 1e-2


def test_a_guidance_pair_is_two_single_calls(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    inputs = wan_inputs(LONG, batch=2)
    inputs["timestep"] = torch.tensor([500, 500])
    with torch.no_grad():
        pair = changed(**inputs)[0]
        for index in range(2):
            one = {k: v[index : index + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            assert distance(changed(**one)[0], pair[index : index + 1]) <= 1e-5


@pytest.mark.slow
def test_bfloat16() -> None:
    model = wan(dtype=torch.bfloat16)
    found = run(transform(model, ALL, backend="eager"), dtype=torch.bfloat16)
    expected = reference(model, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    gap = (found.double() - expected.double()).norm() / expected.double().norm()
    assert float(gap) <= 2e-2


def test_bfloat16_with_tables_in_float32() -> None:
    """As from_pretrained(torch_dtype=...) loads it: the position tables stay float32."""
    model = wan(dtype=torch.bfloat16)
    model.rope = wan().rope
    changed = transform(model, ALL, backend="eager")
    expected = reference(model, dtype=torch.bfloat16)
    found = run(changed, dtype=torch.bfloat16)
    omega = plans(changed)[0].sites[0].rope.omega[0]
    assert omega == pytest.approx([1.0, 0.01], abs=1e-6)
    assert float((found.double() - expected.double()).norm() / expected.double().norm()) <= 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, slow(torch.float16)])
def test_a_model_that_was_cast_and_cast_back(dtype: torch.dtype) -> None:
    """Its position tables are rounded for good; as the model itself does, the rewritten one goes on with them."""
    model = wan()
    changed, whole = transform(model, ALL, backend="eager"), run(transform(wan(), ALL, backend="eager"))
    run(changed.to(dtype), dtype=dtype)
    again = run(changed.float())
    assert 1e-6 < distance(again, whole) <= 3e-2
    with torch.no_grad():
        assert distance(again, reference(model)) <= 1e-5


def test_an_unseen_geometry_with_a_profile_by_hand() -> None:
    model = wan(num_layers=3, num_attention_heads=3, attention_head_dim=24, patch_size=(1, 1, 2), qk_norm=None)
    profile = Profile(trained_frames=16, layers="vrpr+tsa")
    found = run(transform(model, profile, backend="eager"), frames=19, height=3, width=10)
    assert distance(found, reference(model, profile, frames=19, height=3, width=10)) <= 1e-5
    assert distance(found, run(model, frames=19, height=3, width=10)) > 1e-3


def test_a_model_written_by_hand() -> None:
    model = DiT()
    profile = Profile(trained_frames=3, layers="vrpr+tsa")
    x = latents(8, 2, 3)
    with torch.no_grad():
        found = transform(model, profile, backend="eager")(x)
        expected = transform(model, profile, backend="eager", attention="reference")(x)
        assert distance(found, expected) <= 1e-5
        assert not torch.equal(found, model(x))


# Compilers


@pytest.mark.slow
def test_inductor_at_a_long_length(model: Any) -> None:
    found = run(transform(model, ALL))
    assert distance(found, run(transform(model, ALL, backend="eager"))) <= 1e-4


@pytest.mark.parametrize("grad", [slow(False, id="no_grad"), pytest.param(True, id="grad")])
def test_aot_eager_at_a_long_length(model: Any, grad: bool) -> None:
    """Also outside torch.no_grad with weights that want gradients, as someone calls a model at a prompt."""
    expected = run(transform(model, ALL, backend="eager"))
    changed = transform(model.requires_grad_(grad), ALL, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        found = changed(**wan_inputs(LONG))[0]
    assert distance(found.detach(), expected) <= 1e-5


def test_a_backend_may_be_a_mapping_or_a_callable(model: Any) -> None:
    expected = run(transform(model, ALL, backend="eager"))
    seen = []

    def keep(gm: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        seen.append(gm)
        return gm.forward

    assert torch.equal(run(transform(model, ALL, backend=keep)), expected)
    targets = [str(n.target) for n in seen[0].graph.nodes]
    assert targets.count("freeloc_fx.long_attention.default") == 2
    assert torch.equal(run(transform(model, ALL, backend={"backend": "aot_eager"})), expected)
    transform(model, ALL, backend={"mode": "reduce-overhead"})
    transform(model, ALL, backend={"options": {"max_autotune": False}})
    with pytest.raises(ValueError, match="no_such_option"):
        transform(model, ALL, backend={"options": {"no_such_option": 1}})
