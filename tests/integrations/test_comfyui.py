"""The node for ComfyUI, on stand-ins of what it uses of its host."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from models import wan, wan_inputs
from torch import nn
from transformed import distance

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.attention.running import running
from freeloc_fx.errors import ProfileError, TransformError
from freeloc_fx.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

APPLY = "apply_model"
BY_HAND = {"profile": "by hand", "strategy": "vrpr+tsa", "trained_frames": 5, "backend": "eager"}


class Diffusion(nn.Module):
    """A Wan as hosts spell it: a dict of options beside the tensors, no configuration."""

    def __init__(self) -> None:
        super().__init__()
        inner = wan()
        self.wan = inner
        self.blocks = inner.blocks
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, transformer_options: Any) -> Any:
        found = self.wan(hidden_states=x, timestep=timestep, encoder_hidden_states=context, return_dict=False)
        return found[0]


class Executor:
    def __init__(self, holder: Any, wrappers: list[Callable[..., Any]], last: Callable[..., Any]) -> None:
        self.class_obj, self.wrappers, self.last = holder, wrappers, last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.last(*args, **kwargs)
        return self.wrappers[0](Executor(self.class_obj, self.wrappers[1:], self.last), *args, **kwargs)


class Patcher:
    """A model of the host, which calls it through all wrappers."""

    def __init__(self, holder: Any, wrappers: dict[str, dict[str, list[Any]]] | None = None) -> None:
        self.model, self.wrappers = holder, wrappers or {}

    def clone(self) -> Patcher:
        return Patcher(self.model, {kind: {k: [*v] for k, v in each.items()} for kind, each in self.wrappers.items()})

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def get_wrappers(self, kind: str, key: str) -> list[Any]:
        return self.wrappers.get(kind, {}).get(key, [])

    def sample(self, frames: int, sigma: float = 1.0) -> torch.Tensor:
        given = wan_inputs(frames)
        options = {"sigmas": torch.tensor([sigma]), "sample_sigmas": torch.tensor([1.0, 0.6, 0.3, 0.0])}

        def last(x: Any, t: Any, c: Any = None, **more: Any) -> Any:
            return self.model.diffusion_model(x, t, c, transformer_options=more["transformer_options"])

        every = [w for each in self.wrappers.get(APPLY, {}).values() for w in each]
        call = Executor(self.model, every, last)
        x, t, c = (given[name] for name in ("hidden_states", "timestep", "encoder_hidden_states"))
        with torch.no_grad():
            result: torch.Tensor = call(x, t, c, transformer_options=options)
        return result


def compile_node(patcher: Patcher) -> Patcher:
    """What the host's own compile node does: another diffusion model is put in place under its key."""
    result = patcher.clone()
    result.remove_wrappers_with_key(APPLY, "torch.compile")
    other = result.get_model_object("diffusion_model")

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        before = executor.class_obj.diffusion_model
        executor.class_obj.diffusion_model = other
        try:
            return executor(*args, **kwargs)
        finally:
            executor.class_obj.diffusion_model = before

    result.add_wrapper_with_key(APPLY, "torch.compile", wrapper)
    return result


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Patcher:
    extension: Any = ModuleType("comfy.patcher_extension")
    extension.WrappersMP = SimpleNamespace(APPLY_MODEL=APPLY)
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)
    return Patcher(SimpleNamespace(diffusion_model=Diffusion().eval()))


def apply(patcher: Patcher, **changes: Any) -> Patcher:
    (result,) = NODE_CLASS_MAPPINGS["FreeLOC"]().apply(patcher, **(BY_HAND | changes))
    return result


def test_the_node_is_as_the_host_expects_it() -> None:
    node: Any = NODE_CLASS_MAPPINGS["FreeLOC"]
    inputs = node.INPUT_TYPES()["required"]
    assert set(Profile.names()) < set(inputs["profile"][0]) and node.RETURN_TYPES == ("MODEL",)
    assert callable(getattr(node, node.FUNCTION)) and NODE_DISPLAY_NAME_MAPPINGS.keys() == NODE_CLASS_MAPPINGS.keys()


def test_the_model_is_transformed_while_it_is_sampled(host: Patcher) -> None:
    plain, within = host.sample(12), host.sample(5)
    changed = apply(host)
    assert torch.equal(changed.sample(5), within)
    found = changed.sample(12)
    model = host.model.diffusion_model
    reference = freeloc_fx.transform(
        model, Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager", attention="reference"
    )
    host.model.diffusion_model = reference
    assert distance(found, host.sample(12)) <= 1e-4 < distance(plain, found)
    host.model.diffusion_model = model
    assert torch.equal(host.sample(12), plain)  # the model that came in


def test_a_second_node_takes_the_firsts_place(host: Patcher) -> None:
    twice = apply(apply(host, strategy="vrpr"))
    assert torch.equal(twice.sample(12), apply(host).sample(12))
    assert len(twice.get_wrappers(APPLY, "freeloc_fx")) == 1


def test_a_compile_node_before_is_taken_out(host: Patcher) -> None:
    changed = apply(compile_node(host))
    assert not changed.get_wrappers(APPLY, "torch.compile")
    assert torch.equal(changed.sample(12), apply(host).sample(12))


def test_a_compile_node_behind_is_an_error(host: Patcher) -> None:
    with pytest.raises(TransformError, match=r"transformed and not called.*TorchCompileModel"):
        compile_node(apply(host)).sample(12)


def test_the_step_is_the_place_of_sigma(host: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, steps = apply(host), []
    (wrapper,) = changed.get_wrappers(APPLY, "freeloc_fx")

    def inner(executor: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append((running().step, running().told))
        return executor(*args, **kwargs)

    changed.add_wrapper_with_key(APPLY, "looks", inner)
    for sigma in (1.0, 0.6, 0.31):
        changed.sample(6, sigma)
    assert steps == [(0, True), (1, True), (2, True)] and wrapper is changed.get_wrappers(APPLY, "freeloc_fx")[0]


def test_what_a_profile_by_hand_lacks_is_said(host: Patcher) -> None:
    with pytest.raises(ProfileError, match="expected a strategy and trained_frames, found '' and 5"):
        apply(host, strategy="")
    with pytest.raises(ProfileError, match="no shipped profile is for this Diffusion"):
        apply(host, profile="by the model")


def test_a_shipped_profile_with_changes(host: Patcher) -> None:
    with pytest.raises(freeloc_fx.FreelocError, match=r"model\.class: profile 'ltx-video, tsa' is for LTX"):
        apply(host, profile="ltx-video", trained_frames=5, strategy="tsa")
