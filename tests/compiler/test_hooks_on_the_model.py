"""Hooks that PyTorch runs around a call of the transformed model itself run outside of the graphs, whatever they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from answers import PROFILE, changed_of, distance
from models import DiT, latents

from freeloc_fx import plan, plans, restore

LONG, SHORT = latents(9, 2, 4), latents(4, 2, 4)


def dit() -> DiT:
    torch.manual_seed(3)
    return DiT(layers=3)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    result: torch.Tensor = changed_of(dit())(LONG)
    return result


@pytest.mark.parametrize("by_block", [False, True], ids=["whole", "block by block"])
def test_hooks_that_compute(by_block: bool, expected: torch.Tensor) -> None:
    """Put on after a call and before the first with a shape; each runs once a call, and what it returns counts."""
    changed = changed_of(model := dit())
    if by_block:
        add_hook_to_module(model.blocks[1], ModelHook())
    assert distance(changed(LONG), expected) <= 1e-6
    seen: list[Any] = []

    def halved(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((module, float(args[0].std())))
        return (args[0] / 2,), kwargs

    def once(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(float(output.std()))
        handle.remove()
        return output + output.mean()

    changed.register_forward_pre_hook(halved, with_kwargs=True)
    handle = changed.register_forward_hook(once)
    found = changed(2 * LONG)
    assert distance(found, expected + expected.mean()) <= 1e-6
    assert seen == [(changed, float(2 * LONG.std())), float((found - expected.mean()).std())] or by_block
    assert len(seen) == 2 and distance(changed(2 * LONG), expected) <= 1e-6 and len(seen) == 3
    assert torch.equal(changed(SHORT), model(SHORT))
    assert len(plans(changed)) == 2, "what was captured before the hooks still holds"


def test_hooks_before_the_transform(expected: torch.Tensor) -> None:
    """A pre-hook that computes was captured in place of the model; by plan(), too."""
    model, spread = dit(), float(LONG.std())
    sums: list[float] = []

    def evened(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args = args or (kwargs["hidden_states"],)
        return (args[0] * spread / args[0].std(),), {}

    model.register_forward_pre_hook(evened, with_kwargs=True)
    model.register_forward_hook(lambda module, args, output: sums.append(float(output.sum())))
    assert plan(model, PROFILE, frames=9, height=2, width=4).rewritten == 3
    changed = changed_of(model)
    assert distance(changed(7 * LONG), expected) <= 1e-5
    assert len(sums) == 1, "a plan has no output"
    assert restore(changed)(LONG).isfinite().all() and len(sums) == 2


class Puts(ModelHook):  # type: ignore[misc]
    """On a block: puts a hook on the model, once."""

    def __init__(self, model: Any, seen: list[Any]) -> None:
        self.model, self.seen = model, seen

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.seen:
            self.model.register_forward_hook(lambda *_: self.seen.append("runs"))
            self.seen.append("put")
        return args, kwargs


def test_a_hook_that_is_put_on_while_the_model_runs(expected: torch.Tensor) -> None:
    changed, seen = changed_of(dit()), []
    changed.register_forward_hook(lambda *_: None)
    add_hook_to_module(changed.blocks[0], Puts(changed, seen))
    for _ in range(2):
        assert distance(changed(LONG), expected) <= 1e-6
    assert seen == ["put", "runs", "runs"], "it comes in time for the call's own end"


def test_a_call_of_forward_runs_no_hooks(expected: torch.Tensor) -> None:
    """As of any module; and torch.compile around the model runs them once."""
    changed, seen = changed_of(dit()), []
    changed.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert distance(changed.forward(LONG), expected) <= 1e-6 and seen == []
    with torch.no_grad():
        assert distance(torch.compile(changed, backend="eager")(LONG), expected) <= 1e-6
    assert len(seen) == 1
