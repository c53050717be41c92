"""A forward that somebody has wrapped, as timers and caches do, before the transform or after it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import wan, wan_inputs
from slow import slow
from torch import nn

from freeloc_fx import Profile, plan, plans, transform
from freeloc_fx.errors import LengthError

PROFILE = Profile(trained_frames=3, layers={0: "vrpr", 1: "vrpr+tsa"})
FRAMES = 7


def closure(old: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: old(*args, **kwargs)


def decorated(old: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(old)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return old(*args, **kwargs)

    return forward


class Holder:
    def __init__(self, old: Callable[..., Any]) -> None:
        self.old = old

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.old(*args, **kwargs)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "closure": closure,
    "decorator": decorated,
    "object": Holder,
    "partial": functools.partial,
    "twice": lambda old: closure(decorated(old)),
}


def run(model: nn.Module, frames: int) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**wan_inputs(frames))[0]
    return result


@pytest.fixture(scope="module")
def expected() -> dict[int, torch.Tensor]:
    changed = transform(wan(), PROFILE, backend="eager")
    return {frames: run(changed, frames) for frames in (3, FRAMES)}


@pytest.mark.parametrize(
    ("name", "when"),
    [
        *[("closure", "before"), ("decorator", "after"), ("object", "after"), ("partial", "before")],
        *[slow("closure", "after"), slow("decorator", "before"), slow("object", "before"), slow("partial", "after")],
        *[slow("twice", "before"), slow("twice", "after")],
    ],
)
def test_the_models_forward_is_wrapped(name: str, when: str, expected: dict[int, torch.Tensor]) -> None:
    model = wan()
    if when == "before":
        model.forward = WRAPPERS[name](model.forward)
    changed = transform(model, PROFILE, backend="eager")
    if when == "after":
        changed.forward = WRAPPERS[name](changed.forward)
    for frames, value in expected.items():
        assert torch.equal(run(changed, frames), value)
    assert [site.path for site in plans(changed)[1].sites] == ["blocks.0.attn1", "blocks.1.attn1"]


@pytest.mark.parametrize("name", ["closure", "object"])
def test_a_blocks_forward_is_wrapped(name: str, expected: dict[int, torch.Tensor]) -> None:
    model = wan()
    model.blocks[1].forward = WRAPPERS[name](model.blocks[1].forward)
    model.blocks[0].attn1.forward = WRAPPERS[name](model.blocks[0].attn1.forward)
    changed = transform(model, PROFILE, backend="eager")
    assert torch.equal(run(changed, FRAMES), expected[FRAMES])
    assert [(s.path, s.layer) for s in plans(changed)[0].sites] == [("blocks.0.attn1", 0), ("blocks.1.attn1", 1)]


def test_a_method_of_another_object(expected: dict[int, torch.Tensor]) -> None:
    """A forward rebound by hand, and one that reaches the model by a name of its own."""
    model = wan()
    kept = {"model": model.forward}
    model.forward = types.MethodType(lambda self, *args, **kwargs: kept["model"](*args, **kwargs), model)
    assert torch.equal(run(transform(model, PROFILE, backend="eager"), FRAMES), expected[FRAMES])


@pytest.mark.parametrize("name", ["closure", "decorator"])
def test_what_a_call_says_is_found_behind_a_wrapper(name: str) -> None:
    """Its size, which the model's tables must hold; its timestep, which steps are told by; what its plan needs."""
    model = wan(rope_max_seq_len=16)
    model.forward = WRAPPERS[name](model.forward)
    stepped = Profile(trained_frames=3, layers="vrpr", schedule=[{"steps": 1, "layers": "tsa"}])
    changed = transform(model, stepped, backend="eager")
    assert run(changed, FRAMES).shape == (1, 4, FRAMES, 4, 4)
    with pytest.raises(LengthError, match="rope_max_seq_len is 16"):
        run(changed, 17)
    assert plan(model, PROFILE, frames=FRAMES, height=4, width=4).rewritten == 2
