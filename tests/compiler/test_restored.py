"""What was put onto a transformed model is on its original once that is restored, and can be taken off there: caches,
hooks of diffusers and accelerate, offloading, adapters. What was there before the transform is the copy's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from answers import changed_of, distance
from diffusers import FirstBlockCacheConfig
from diffusers import hooks as diffusers_hooks
from diffusers_models import arguments, build
from models import DiT, latents

from freeloc_fx import plans, restore
from freeloc_fx.compat_diffusers import diffusers_hooks as hooks_on
from freeloc_fx.errors import TransformError

LONG = latents(8, 2, 6)


def dit() -> DiT:
    torch.manual_seed(4)
    return DiT(heads=3)


@pytest.fixture(scope="module")
def expected() -> tuple[torch.Tensor, torch.Tensor]:
    """What the plain model and the transformed one make of `LONG`."""
    return dit()(LONG), changed_of(dit())(LONG)


# Caches


def test_a_cache_is_taken_off_the_original() -> None:
    model = build("LTX")
    given = arguments("LTX", model, 6)
    other = given | {"hidden_states": -2 * given["hidden_states"]}

    def run(model: Any = model) -> torch.Tensor:
        with torch.no_grad(), model.cache_context("cond"):
            model(**given)
            result: torch.Tensor = model(**other)[0]
        return result

    plain = run(build("LTX"))  # diffusers 0.38 has no context for a cache that comes after a call
    changed = changed_of(model)
    changed.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    changed.compile(backend="eager")  # it knows what was put onto it before
    assert restore(changed) is model and model.is_cache_enabled
    assert distance(run(), plain) > 1e-3, "the cache does not show"
    model.disable_cache()
    assert torch.equal(run(), plain)
    assert not restore(changed).is_cache_enabled, "what was given back is not given once more"
    model.enable_cache(FirstBlockCacheConfig(threshold=0.05))


def test_two_transformed_copies() -> None:
    """Only what was put onto the one that is restored moves, and nothing that the original got meanwhile goes."""
    model = build("LTX")
    first, second = changed_of(model), changed_of(model)
    first.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    model.mark, second.note = "kept", {"by": second.forward.__wrapped__}
    assert not restore(second).is_cache_enabled
    assert (model.mark, model.note["by"]) == ("kept", second.forward.__wrapped__)
    assert restore(first).is_cache_enabled
    assert restore(second).is_cache_enabled and model.mark == "kept"
    model.disable_cache()
    assert not any(map(hooks_on, model.modules()))


# Hooks on the model itself


class Doubles(diffusers_hooks.ModelHook):
    """Doubles what a model gives, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[Any] = []

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.modules.append(module)
        return 2 * self.fn_ref.original_forward(*args, **kwargs)


class Thrice(ModelHook):  # type: ignore[misc]
    def post_forward(self, module: Any, output: torch.Tensor) -> torch.Tensor:
        return 3 * output


def put(model: Any) -> None:
    """Both kinds of hooks, and a wrapper between them: six times what the model gives."""
    add_hook_to_module(model, Thrice())
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    diffusers_hooks.HookRegistry.check_if_exists_or_initialize(model).register_hook(Doubles(), "doubles")


def taken_off(model: Any) -> None:
    model._diffusers_hook.remove_hook("doubles")
    remove_hook_from_module(model)


def test_hooks_put_on_after_the_transform(expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, long = expected
    changed = changed_of(model := dit())
    put(changed)
    assert distance(changed(LONG), 6 * long) <= 1e-6
    assert torch.equal(model(LONG), plain), "and not on the original"
    with pytest.raises(TransformError, match=r"DiT itself have changed .* expected none, found doubles, Thrice"):
        restore(changed)
    taken_off(changed)
    assert torch.equal(restore(changed)(LONG), plain)
    assert distance(changed(LONG), long) <= 1e-6


def test_hooks_put_on_before_the_transform(expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, long = expected
    add_hook_to_module(model := dit(), Thrice())
    changed = changed_of(model)
    assert distance(changed(LONG), 3 * long) <= 1e-6
    assert restore(changed) is model and distance(model(LONG), 3 * plain) <= 1e-6


def test_a_registry_that_a_cache_has_left_behind(expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Hooks put on the copy were put on the original, whose registry they shared."""
    plain, long = expected
    diffusers_hooks.HookRegistry.check_if_exists_or_initialize(model := dit())
    changed = changed_of(model)
    put(changed)
    assert distance(changed(LONG), 6 * long) <= 1e-6 and torch.equal(model(LONG), plain)
    taken_off(changed)
    assert distance(changed(LONG), long) <= 1e-6
    assert torch.equal(restore(changed)(LONG), plain)


# Offloading


def test_offloading_module_by_module() -> None:
    model = build("LTX")
    given = arguments("LTX", model, 4)
    with torch.no_grad():
        plain = model(**given)[0]
        changed = changed_of(model)
        cpu_offload(changed, execution_device=torch.device("cpu"))
        assert torch.equal(changed(**given)[0], plain)
        with pytest.raises(TransformError, match=r"expected none, found \w+Hook; take off"):
            restore(changed)
        remove_hook_from_module(changed, recurse=True)
        assert torch.equal(restore(changed)(**given)[0], plain)
    assert not any(p.is_meta for p in model.parameters())


# Adapters


def test_adapters_of_the_original_stay() -> None:
    """Loaded on it after the transform, they were forgotten when it was restored."""
    peft = pytest.importorskip("peft", reason="adapters are peft's")
    model = build("LTX")
    changed = changed_of(model)
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    model.add_adapter(config, "style")
    assert list(restore(changed).peft_config) == ["style"]
    changed = changed_of(model)
    changed.delete_adapters("style")
    changed.add_adapter(config, "other")
    assert list(restore(changed).peft_config) == ["other"]
    assert len(plans(changed)) == 0
