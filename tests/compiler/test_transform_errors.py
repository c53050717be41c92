"""What `transform` and `restore` refuse, and when."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from models import DiT, latents, wan
from transformed import ALL, LONG, run

from freeloc_fx import Profile, plans, restore, transform
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
