"""Code of a model that differs within a block, or changes between two calls, is the code that runs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock
from diffusers_models import arguments, build
from slow import slow
from torch import nn

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.compiler.capture import captures
from freeloc_fx.compiler.capture.signature import alike, difference, signature
from freeloc_fx.compiler.capture.trace_once import Marks

Change = Callable[[Any], None]

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")


def transformed(model: Any) -> Any:
    return freeloc_fx.transform(model, PROFILE, backend="eager", attention="calls")


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)[0]
    return result


def check(model: Any, changed: Any, short: dict[str, Any], long: dict[str, Any]) -> None:
    """Within the trained length what the model does; beyond it what a copy of it as it is now does, each block of which
    is traced."""
    assert torch.equal(run(changed, short), run(model, short))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captures, "Marks", lambda blocks: Marks(()))
        expected = run(transformed(copy.deepcopy(model)), long)
    torch.testing.assert_close(run(changed, long), expected, rtol=1e-5, atol=1e-5)


class Half(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0.5


def of_another_class(block: Any) -> None:
    old = block.attn1.to_v
    block.attn1.to_v = Half(old.in_features, old.out_features)
    block.attn1.to_v.load_state_dict(old.state_dict())


def own_forward(block: Any) -> None:
    linear = block.ffn.net[2]
    plain = linear.forward
    linear.forward = lambda x: plain(x) * 0.5


def hooked(block: Any) -> None:
    block.attn1.register_forward_hook(lambda module, given, output: output * 0.5)


def hooked_before(block: Any) -> None:
    block.norm2.register_forward_pre_hook(lambda module, given: (given[0] * 0.5,))


class Skip(WanAttnProcessor):
    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = attn.to_v(hidden_states)
        return result


def skipping(block: Any) -> None:
    block.attn2.set_processor(Skip())


def constant(block: Any) -> None:
    block.norm2.eps = 1.0


INSIDE = [of_another_class, slow(hooked), slow(own_forward), slow(hooked_before), slow(skipping), slow(constant)]


@pytest.mark.parametrize("change", INSIDE)
def test_a_later_block_that_differs_inside(change: Change) -> None:
    model = build("Wan")
    change(model.blocks[1])
    check(model, transformed(model), arguments("Wan", model, 4), arguments("Wan", model, 8))


AFTERWARDS = [slow(constant), hooked, slow(hooked_before), slow(own_forward), slow(skipping), slow(of_another_class)]


@pytest.mark.parametrize("change", AFTERWARDS)
def test_a_later_block_that_changes_after_the_first_call(change: Change, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "freeloc_fx")
    model = build("Wan")
    short, long = arguments("Wan", model, 4), arguments("Wan", model, 8)
    changed = transformed(model)
    before = run(changed, short), run(changed, long)
    change(model.blocks[1])
    check(model, changed, short, long)
    assert "captured again, blocks.1." in caplog.text
    assert not torch.equal(run(changed, long), before[1])


def test_a_state_that_comes_back_is_not_captured_again(caplog: pytest.LogCaptureFixture) -> None:
    model = build("Wan")
    long = arguments("Wan", model, 8)
    changed = transformed(model)
    first = run(changed, long)
    for _ in range(2):
        hook = model.blocks[0].register_forward_hook(lambda module, given, output: output * 0.5)
        assert not torch.equal(run(changed, long), first)
        hook.remove()
        made = len(freeloc_fx.plans(changed))
        assert torch.equal(run(changed, long), first) and len(freeloc_fx.plans(changed)) == made


@pytest.fixture
def plain_forward() -> Iterator[Callable[..., Any]]:
    plain = WanTransformerBlock.forward
    yield plain
    WanTransformerBlock.forward = plain


@pytest.mark.parametrize("called", [True, slow(False)])
def test_a_class_whose_forward_is_patched(called: bool, plain_forward: Callable[..., Any]) -> None:
    model = build("Wan")
    short, long = arguments("Wan", model, 4), arguments("Wan", model, 8)
    changed = transformed(model)
    if called:
        run(changed, short), run(changed, long)
    WanTransformerBlock.forward = lambda self, *args, **kwargs: plain_forward(self, *args, **kwargs) * 0.5
    check(model, changed, short, long)


@pytest.mark.parametrize("name", [slow("HunyuanVideo15"), "Wan"])
def test_a_block_that_is_replaced(name: str) -> None:
    """HunyuanVideo 1.5 is captured block by block."""
    model, other = build(name), build(name, seed=5)
    long = arguments(name, model, 10)
    changed = transformed(model)
    run(changed, long)
    place = "blocks" if name == "Wan" else "transformer_blocks"
    getattr(model, place)[1] = getattr(other, place)[1]
    check(model, changed, arguments(name, model, 4), long)


def test_what_a_signature_sees() -> None:
    model = build("Wan")

    def state() -> Any:
        return signature(model, {f"blocks.{i}": block for i, block in enumerate(model.blocks)})

    assert state() == state() and hash(state()) == hash(state()) and alike(model.blocks[0]) == alike(model.blocks[1])
    before = state()
    model.patch_embedding.register_forward_hook(lambda *_: None)
    assert difference(before, state()) == "patch_embedding (forward hooks)"
    before = state()
    model.blocks[1].kept = torch.zeros(3)
    after = state()
    assert difference(before, after) == "blocks.1.kept"
    model.blocks[1].kept = torch.ones(3)  # what a module keeps from call to call
    assert state() == after
    assert alike(model.blocks[0]) != alike(model.blocks[1])
    settings = {"scale": {"style": 1.0}}
    model.blocks[0].settings = settings
    before = state()
    settings["scale"]["style"] = 0.5
    assert difference(before, state()) == "blocks.0.settings"
    before = state()
    model.blocks.append(build("Wan", seed=1).blocks[0])
    assert difference(before, state()) == "blocks.2"
