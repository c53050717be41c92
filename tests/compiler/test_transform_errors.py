"""What `transform` and `restore` refuse, and when."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from diffusers_models import build
from models import DiT, latents, wan, wan_inputs
from torch.overrides import TorchFunctionMode
from transformed import ALL, LONG, run

from freeloc_fx import Profile, plan, plans, restore, transform
from freeloc_fx.errors import CaptureError, LengthError, PlanError, ProfileError, TransformError


@pytest.fixture
def model() -> Any:
    return wan()


def test_transforming_twice(model: Any) -> None:
    with pytest.raises(TransformError, match=r"WanTransformer3DModel is already transformed; restore\(model\)"):
        transform(transform(model, ALL, backend="eager"), ALL)


def test_restoring_a_plain_model(model: Any) -> None:
    for function in (restore, plans):
        with pytest.raises(TransformError, match="this WanTransformer3DModel is not a transformed model"):
            function(model)


def test_transforming_a_compiled_model(model: Any) -> None:
    model.compile(backend="eager")
    with pytest.raises(TransformError, match="already compiled"):
        transform(model, ALL)


def test_a_transformed_model_is_not_copied_or_pickled(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    with pytest.raises(TransformError, match="cannot be deep-copied"):
        copy.deepcopy(changed)
    with pytest.raises(TransformError, match="cannot be pickled"):
        pickle.dumps(changed)


@pytest.mark.parametrize("wrong", [None, "model", lambda x: x])
def test_what_is_no_module(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        transform(wrong, ALL)


def test_an_unknown_backend_or_attention(model: Any) -> None:
    with pytest.raises(ValueError, match=r"backend: expected 'eager' or one of .*inductor.*, found 'fast'"):
        transform(model, ALL, backend="fast")
    with pytest.raises(ValueError, match=r"expected the keys 'backend', 'mode', 'options', found \['speed'\]"):
        transform(model, ALL, backend={"speed": 11})
    with pytest.raises(ValueError, match=r"attention: expected 'auto', .* found 'fast'"):
        transform(model, ALL, attention="fast")
    with pytest.raises(TypeError, match="profile: expected a Profile, a shipped name or a path, found int"):
        transform(model, 5)  # type: ignore[arg-type]


def test_a_profile_that_does_not_fit(model: Any) -> None:
    with pytest.raises(PlanError, match=r"wan2\.1-t2v-1\.3b"):
        transform(model, "wan2.1-t2v-1.3b")
    with pytest.raises(ProfileError, match=r"layers\.2: expected a layer of 0 to 1, found 2"):
        transform(model, Profile(trained_frames=5, layers={2: "tsa"}))
    with pytest.raises(ProfileError, match="is for 30 layers, the model has 2"):
        transform(model, Profile(trained_frames=5, layer_count=30))
    with pytest.raises(ProfileError, match=r"Make one by hand"):
        transform(model)


def test_frames_beyond_the_models_tables_are_refused_before_any_work(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    with pytest.raises(LengthError, match="65 latent frames need 65 positions, the model's rope_max_seq_len is 64"):
        run(changed, frames=65)
    assert plans(changed) == []
    assert run(changed).shape == (1, 4, LONG, 4, 4), "and the model is still usable"


def test_a_model_without_temporal_rope_is_never_run_silently() -> None:
    changed = transform(DiT(None), ALL, backend="eager")
    for _ in range(2):
        with torch.no_grad(), pytest.raises(CaptureError, match="no video self-attention with temporal RoPE"):
            changed(latents(8, 2, 3))


def test_a_size_beyond_the_tables_that_a_plan_makes() -> None:
    """CogVideoX 1.5's pipeline cuts its positions from a table of the sample size."""
    with pytest.raises(LengthError, match=r"at most \d+ x \d+ latents \(sample_height, sample_width\), found 8 x 18"):
        plan(build("CogVideoX 1.5"), Profile(3, "vrpr+tsa"), frames=8, height=8, width=18)


def test_a_mode_that_changes_functions_is_named() -> None:
    class Refuses(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            torch._dynamo.graph_break()
            return func(*args, **(kwargs or {}))

    with Refuses(), pytest.raises(CaptureError, match=r"cannot be captured .*; within Refuses, a TorchFunctionMode"):
        transform(wan(), ALL, backend="eager")(**wan_inputs(12))
