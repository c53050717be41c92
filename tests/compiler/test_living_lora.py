"""Adapters come and go on a transformed model: load, scale, hotswap, unload, fuse; each gives the output of a fresh
model transformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from answers import changed_of, distance
from diffusers_models import arguments, build
from slow import slow

from freeloc_fx import plans, restore

LONG = 10
WEIGHTS = "pytorch_lora_weights.safetensors"
pytest.importorskip("peft", reason="adapters are peft's")


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)[0]
    return result


def with_adapter(name: str, rank: int, seed: int) -> Any:
    from peft import LoraConfig

    model = build(name)
    torch.manual_seed(seed)
    model.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False), "style"
    )
    return model


@pytest.fixture(params=["Wan", slow("HunyuanVideo")])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_load_and_unload(name: str, tmp_path: Path) -> None:
    styled = with_adapter(name, 2, 3)
    styled.save_lora_adapter(tmp_path, adapter_name="style")
    model = build(name)
    given = arguments(name, model, LONG)
    changed = changed_of(model)
    plain = run(changed, given)
    changed.load_lora_adapter(tmp_path, adapter_name="style", prefix=None, weight_name=WEIGHTS)
    found = run(changed, given)
    assert distance(found, plain) > 1e-3, "the adapter does not show"
    assert distance(found, run(changed_of(styled), given)) <= 1e-6
    assert all(plan.rewritten == 2 for plan in plans(changed))
    changed.unload_lora()
    assert distance(run(changed, given), plain) <= 1e-6
    assert distance(run(restore(changed), given), run(build(name), given)) <= 1e-6


def test_hotswap_needs_no_other_capture(name: str, tmp_path: Path) -> None:
    for index, rank in enumerate((2, 4)):
        with_adapter(name, rank, index).save_lora_adapter(tmp_path / str(index), adapter_name="style")
    model = build(name)
    given = arguments(name, model, LONG)
    changed = changed_of(model)
    # Adapters may still come: nothing was captured for good. peft sees a compiled call and must be told.
    changed.enable_lora_hotswap(target_rank=4, check_compiled="ignore")
    changed.load_lora_adapter(tmp_path / "0", adapter_name="style", prefix=None, weight_name=WEIGHTS)
    first = run(changed, given)
    captured = len(plans(changed))
    changed.load_lora_adapter(tmp_path / "1", adapter_name="style", prefix=None, weight_name=WEIGHTS, hotswap=True)
    second = run(changed, given)
    assert len(plans(changed)) == captured
    assert distance(second, first) > 1e-3, "the adapters do not differ"
    assert distance(first, run(changed_of(with_adapter(name, 2, 0)), given)) <= 1e-6
    assert distance(second, run(changed_of(with_adapter(name, 4, 1)), given)) <= 1e-6


def test_hotswap_set_up_and_loaded_before_the_transform(tmp_path: Path) -> None:
    for index, rank in enumerate((2, 4)):
        with_adapter("Wan", rank, index).save_lora_adapter(tmp_path / str(index), adapter_name="style")
    model = build("Wan")
    given = arguments("Wan", model, LONG)
    model.enable_lora_hotswap(target_rank=4)
    model.load_lora_adapter(tmp_path / "0", adapter_name="style", prefix=None, weight_name=WEIGHTS)
    changed = changed_of(model)
    first = run(changed, given)
    changed.load_lora_adapter(tmp_path / "1", adapter_name="style", prefix=None, weight_name=WEIGHTS, hotswap=True)
    assert distance(run(changed, given), first) > 1e-3
    assert distance(run(changed, given), run(changed_of(with_adapter("Wan", 4, 1)), given)) <= 1e-6
    assert len(plans(changed)) == 1


def test_scale_and_fuse() -> None:
    model = with_adapter("Wan", 2, 3)
    given = arguments("Wan", model, LONG)
    changed = changed_of(model)
    whole = run(changed, given)
    changed.set_adapters("style", weights=0.5)
    half = run(changed, given)
    assert distance(half, whole) > 1e-4
    changed.fuse_lora()
    assert distance(run(changed, given), half) <= 1e-5
    changed.unfuse_lora()
    assert distance(run(changed, given), half) <= 1e-5


def test_what_was_loaded_on_the_transformed_model_is_unloaded_on_the_restored(tmp_path: Path) -> None:
    """They share the modules, so the original must know of the adapters, too."""
    with_adapter("Wan", 2, 3).save_lora_adapter(tmp_path, adapter_name="style")
    model = build("Wan")
    given = arguments("Wan", model, LONG)
    plain = run(model, given)
    changed = changed_of(model)
    changed.load_lora_adapter(tmp_path, adapter_name="style", prefix=None, weight_name=WEIGHTS)
    original = restore(changed)
    assert original is model and distance(run(original, given), plain) > 1e-3
    original.unload_lora()
    assert distance(run(original, given), plain) <= 1e-6
