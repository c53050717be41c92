"""Hooks that move or cast weights, quantised linears, caches between steps: the transformed model as with none, or a
refusal that names the hook."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import PROFILE, changed_of, distance
from diffusers_models import CASES, arguments, build
from slow import slow
from torch import nn

import freeloc_fx
from freeloc_fx import plans
from freeloc_fx.errors import CaptureError

CPU = torch.device("cpu")


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)[0]
    return result


@functools.cache
def unhooked(name: str) -> tuple[dict[str, Any], torch.Tensor]:
    """A long call of a class, and what its transformed model makes of it without any hook."""
    model = build(name)
    given = arguments(name, model, 10)
    expected = run(changed_of(model), given)
    torch._dynamo.reset()
    return given, expected


def by_block(model: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(model, CPU, offload_type="block_level", num_blocks_per_group=1)


def by_leaf(model: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(model, CPU, offload_type="leaf_level")


def whole(model: Any) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(model, execution_device="cpu")


def module_by_module(model: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=CPU)


@pytest.mark.parametrize("name", ["Wan", *(pytest.param(n, marks=pytest.mark.slow) for n in ("HunyuanVideo", "LTX"))])
@pytest.mark.parametrize("offload", [by_block, slow(by_leaf), slow(whole), slow(module_by_module)])
def test_offloading(name: str, offload: Callable[[Any], None]) -> None:
    """After the transform and before it; long clips and, bitwise, short ones."""
    model, (given, expected) = build(name), unhooked(name)
    short = arguments(name, model, 5)
    plain = run(model, short)
    changed = changed_of(build(name))
    offload(changed)
    assert distance(run(changed, given), expected) <= 1e-6
    assert distance(run(changed, given), expected) <= 1e-6, "and once more, from what was captured"
    assert [plan.rewritten for plan in plans(changed)] == [len(CASES[name].sites)]
    assert torch.equal(run(changed, short), plain)
    if name == "Wan":
        torch._dynamo.reset()
        model = build(name)
        offload(model)
        assert distance(run(changed_of(model), given), expected) <= 1e-6


def test_offloading_after_the_first_call() -> None:
    """A model that was captured whole goes block by block once its blocks carry hooks."""
    model = build("Wan")
    given = arguments("Wan", model, 10)
    changed = changed_of(model)
    expected = run(changed, given)
    by_leaf(changed)
    assert distance(run(changed, given), expected) <= 1e-6
    assert [plan.rewritten for plan in plans(changed)] == [2, 2]


def test_two_transformed_copies_of_an_offloaded_model() -> None:
    """The second's end takes nothing from the first."""
    model = build("Wan")
    given = arguments("Wan", model, 10)
    by_leaf(model)
    first, second = changed_of(model), changed_of(model, attention="tiles")
    expected = run(first, given)
    assert distance(run(second, given), expected) <= 1e-5
    del second
    gc.collect()
    assert distance(run(first, given), expected) <= 1e-6


def test_a_plan_of_an_offloaded_model() -> None:
    model = build("Wan")
    expected = freeloc_fx.plan(model, PROFILE, frames=10, height=4, width=6)
    for offload in (by_block, by_leaf):
        hooked = build("Wan")
        offload(hooked)
        assert freeloc_fx.plan(hooked, PROFILE, frames=10, height=4, width=6).sites == expected.sites


def test_weights_are_in_place_when_they_are_used() -> None:
    """Offloaded weights are on meta between calls, so a call that skipped its hook could not compute at all."""
    model, (given, expected) = build("Wan"), unhooked("Wan")
    changed = changed_of(model)
    module_by_module(changed)
    assert changed.blocks[0].attn1.to_q.weight.is_meta
    assert distance(run(changed, given), expected) <= 1e-6
    assert changed.blocks[0].attn1.to_q.weight.is_meta


# Other kinds of linear layers


@pytest.mark.parametrize("name", ["Wan", pytest.param("HunyuanVideo", marks=pytest.mark.slow)])
def test_layerwise_casting(name: str) -> None:
    """Weights stored in float8 and cast for each call of their layer."""
    model = build(name)
    given, short = arguments(name, model, 10), arguments(name, model, 5)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    expected = run(rounded(build(name), model), given)
    changed = changed_of(model)
    assert distance(run(changed, given), expected) <= 1e-5
    assert any(p.dtype == torch.float8_e4m3fn for p in changed.parameters()), "weights are stored small again"
    assert torch.equal(run(changed, short), run(model, short))
    assert plans(changed)[0].rewritten == len(CASES[name].sites)


def rounded(plain: Any, cast: Any) -> Any:
    """The plain model, transformed, with the values of the cast one's weights."""
    with torch.no_grad():
        for own, other in zip(plain.parameters(), cast.parameters(), strict=True):
            own.copy_(other.to(own.dtype))
    return changed_of(plain)


class Weight8(torch.nn.Module):
    """A linear layer that keeps int8 weights and one scale a row, as int8 weight-only quantisation does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("quantised", (linear.weight / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.quantised.to(x.dtype) * self.scale, self.bias)


def weight8(model: Any) -> Any:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ("attn" in path or "ff" in path):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Weight8(module))
    return model


def test_int8_weights() -> None:
    given = arguments("Wan", build("Wan"), 10)
    changed = changed_of(weight8(build("Wan")))
    found = run(changed, given)
    assert plans(changed)[0].rewritten == 2
    dense = weight8(build("Wan"))
    for path, module in list(dense.named_modules()):
        if isinstance(module, Weight8):
            parent, _, leaf = path.rpartition(".")
            linear = nn.Linear(1, 1)
            linear.weight = nn.Parameter(module.quantised * module.scale, requires_grad=False)
            linear.bias = module.bias
            setattr(dense.get_submodule(parent), leaf, linear)
    assert distance(found, run(changed_of(dense), given)) <= 1e-5
    assert 1e-3 < distance(found, run(changed_of(build("Wan")), given)) < 0.2


@pytest.mark.parametrize("name", ["Wan", "HunyuanVideo"])
def test_torchao_int8(name: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is no dependency of the tests")
    model = build(name)
    given, short = arguments(name, model, 10), arguments(name, model, 5)
    plain = run(changed_of(model), given)
    torch._dynamo.reset()
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            quantization.quantize_(child, quantization.Int8WeightOnlyConfig())
    changed = changed_of(model)
    assert 1e-5 < distance(run(changed, given), plain) < 0.2
    assert plans(changed)[0].rewritten == len(CASES[name].sites)
    assert torch.equal(run(changed, short), run(model, short))


def test_quantised_linears_that_dynamo_cannot_trace_are_named() -> None:
    """torch.ao's dynamic quantisation packs its weights into an object that no graph holds."""
    model = build("Wan")
    for block in model.blocks:
        torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, dtype=torch.qint8, inplace=True)
    changed = changed_of(model)
    with pytest.raises(CaptureError, match=r"blocks\.0 cannot be captured as one graph: .*proxy"):
        run(changed, arguments("Wan", model, 10))


# Caches between steps


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("Wan", "after"),
        slow("Wan", "before"),
        slow("HunyuanVideo", "before"),
        pytest.param("LTX", "after", marks=pytest.mark.slow),
    ],
)
def test_first_block_cache(name: str, order: str) -> None:
    """The first step computes everything; a step like it reuses the other blocks' residual, one unlike it does not."""
    from diffusers import FirstBlockCacheConfig

    given, expected = unhooked(name)
    other = given | {"hidden_states": -2 * given["hidden_states"]}
    expected_other = run(changed_of(build(name)), other)
    torch._dynamo.reset()
    changed = build(name)
    if order == "before":
        changed.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    changed = changed_of(changed)
    if order == "after":
        changed.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    with changed.cache_context("cond"):
        assert distance(run(changed, given), expected) <= 1e-6
        assert distance(run(changed, given), expected) <= 1e-5, "the residual of the same input"
        assert distance(run(changed, other), expected_other) <= 1e-6, "nothing is reused of another"
    changed.disable_cache()
    changed.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with changed.cache_context("cond"):
        run(changed, given)
        assert distance(run(changed, other), expected_other) > 1e-3, "the cache does not show"
    changed.disable_cache()
    assert distance(run(changed, given), expected) <= 1e-6
    assert all(plan.rewritten for plan in plans(changed))


def test_a_plan_leaves_no_trace_in_a_cache() -> None:
    from diffusers import FirstBlockCacheConfig

    model, (given, expected) = build("Wan"), unhooked("Wan")
    model.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    assert len(freeloc_fx.plan(model, PROFILE, frames=10, height=4, width=6).sites) == 2
    changed = changed_of(model)
    with changed.cache_context("cond"):
        assert distance(run(changed, given), expected) <= 1e-6


@pytest.mark.parametrize("order", ["before", "after", "after a call"])
def test_caches_of_single_attentions_are_refused(order: str) -> None:
    """A graph captured while the attention runs would never skip it."""
    from diffusers import PyramidAttentionBroadcastConfig

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: 500,
        spatial_attention_block_identifiers=("blocks",),
    )
    model = build("Wan")
    given = arguments("Wan", model, 10)
    if order == "before":
        model.enable_cache(config)
    changed = changed_of(model)
    if order == "after a call":
        run(changed, given)
    if order != "before":
        changed.enable_cache(config)
    with pytest.raises(CaptureError, match=r"blocks\.0\.attn1 .*'pyramid_attention_broadcast'.*FirstBlockCache"):
        run(changed, given)
    changed.disable_cache()
    assert run(changed, given).isfinite().all(), "and the model is usable without it"
