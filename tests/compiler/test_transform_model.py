"""A transformed Wan is the same model to everyone who uses it: class, parameters, files, adapters, arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import wan, wan_inputs
from transformed import ALL, LONG, distance, reference, run

from freeloc_fx import plans, restore, transform


@pytest.fixture
def model() -> Any:
    return wan()


def test_class_config_and_parameters_stay(model: Any) -> None:
    from diffusers import ModelMixin, WanTransformer3DModel

    changed = transform(model, ALL, backend="eager")
    assert type(changed) is WanTransformer3DModel
    kinds: Any = ModelMixin  # typed as a stand-in without attributes
    assert isinstance(changed, kinds)
    assert changed is not model
    assert changed.config == model.config
    assert (changed.dtype, changed.device) == (model.dtype, model.device)
    assert changed.training is False
    own, original = dict(changed.named_parameters()), dict(model.named_parameters())
    assert own.keys() == original.keys()
    assert all(own[name] is original[name] for name in own)
    assert changed.state_dict().keys() == model.state_dict().keys()


def test_the_original_stays_as_it_was(model: Any) -> None:
    before = run(model)
    attributes = set(model.__dict__)
    changed = transform(model, ALL, backend="eager")
    after_transform = run(changed)
    assert torch.equal(run(model), before)
    assert not torch.allclose(after_transform, before, rtol=1e-3, atol=1e-3)
    assert model._compiled_call_impl is None
    assert set(model.__dict__) == attributes


def test_restore_gives_the_original_object(model: Any) -> None:
    assert restore(transform(model, ALL, backend="eager")) is model


def test_cache_context_works(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    expected = run(changed)
    for name in ("cond", "uncond", "cond"):
        with changed.cache_context(name):
            assert torch.equal(run(changed), expected)
    assert len(plans(changed)) == 1


def test_save_pretrained_round_trip(model: Any, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    changed = transform(model, ALL, backend="eager")
    expected = run(changed)
    changed.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path).eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert torch.equal(run(transform(loaded, ALL, backend="eager")), expected)


def test_lora_after_transform(model: Any) -> None:
    from peft import LoraConfig

    changed = transform(model, ALL, backend="eager")
    plain = run(changed)
    changed.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False), "style")
    styled = run(changed)
    assert not torch.allclose(styled, plain, rtol=1e-3, atol=1e-4)
    assert plans(changed)[-1].rewritten == 2, "the graph with the adapter is rewritten as well"
    fast = reference(restore(changed))
    assert distance(styled, fast) <= 1e-5
    changed.disable_adapters()
    assert distance(run(changed), plain) <= 1e-6
    changed.enable_adapters()
    assert distance(run(changed), styled) <= 1e-6
    changed.delete_adapters("style")
    assert distance(run(changed), plain) <= 1e-6


def test_weights_changed_in_place_count(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    before = run(changed)
    with torch.no_grad():
        model.proj_out.weight.mul_(2)
        model.proj_out.bias.mul_(2)
    assert distance(run(changed), 2 * before) <= 1e-6
    assert len(plans(changed)) == 1


def test_positional_arguments_and_the_output_class(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    inputs = wan_inputs(LONG)
    with torch.no_grad():
        output = changed(inputs["hidden_states"], inputs["timestep"], inputs["encoder_hidden_states"])
    assert type(output).__name__ == "Transformer2DModelOutput"
    assert distance(output.sample, run(changed)) <= 1e-6


def test_a_call_that_wants_gradients_is_a_warning(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    changed = transform(model, ALL, backend="eager")
    given = wan_inputs(4)
    with torch.no_grad():
        changed.train()(**given)
    changed.eval()(**given)
    assert "no gradient" not in caplog.text
    given["hidden_states"].requires_grad_()
    for _ in range(2):
        assert not changed(**given)[0].requires_grad
    assert caplog.text.count("a transformed model is for inference, its output carries no gradient") == 1
