"""Denoising steps told by timesteps, and profiles whose strategies follow them, without another capture."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import models
import pytest
import torch

from freeloc_fx import Profile, transform
from freeloc_fx.attention import op
from freeloc_fx.attention.reference import reference
from freeloc_fx.compiler.capture.steps import StepCounter, follows_steps
from freeloc_fx.compiler.transform import plans
from freeloc_fx.errors import CaptureError, ProfileError
from freeloc_fx.method.peers.anchors import Anchors
from freeloc_fx.method.strategy import Strategy


def test_steps_are_counted_by_falling_timesteps() -> None:
    counter = StepCounter()
    seen = [counter.see({"timestep": torch.tensor([t])}) for t in (999, 999, 750, 750, 10, 999, 998.5)]
    assert seen == [0, 0, 1, 1, 2, 0, 1]
    per_token = torch.tensor([[0.0, 0.0, 500.0, 500.0]])
    assert counter.see({"timestep": per_token}) == 2
    assert counter.see({"timestep": 3}) == 3


def test_a_model_without_timesteps_is_refused() -> None:
    with pytest.raises(CaptureError, match="expected the model to be called with a timestep, found none"):
        StepCounter().see({})


def test_what_follows_steps() -> None:
    assert follows_steps(Profile(5, "vrpr", schedule=[{"steps": 2, "layers": "direct"}]))
    assert follows_steps(Profile(5, {0: "direct", 1: "anchors"}))
    assert not follows_steps(Profile(5, "vrpr+tsa"))


def test_the_first_steps_run_another_strategy_and_nothing_is_captured_again() -> None:
    model = models.wan()
    late = transform(model, Profile(5, "vrpr+tsa"), backend="eager")
    staged = transform(
        model, Profile(5, "vrpr+tsa", schedule=[{"steps": 2, "layers": {0: "direct", 1: "direct"}}]), backend="eager"
    )

    def run(target: Any, t: float) -> torch.Tensor:
        inputs = models.wan_inputs(12) | {"timestep": torch.tensor([t])}
        return target(**inputs)[0]

    timesteps = [900.0, 900.0, 600.0, 300.0, 100.0]
    direct = [True, True, True, False, False]
    for t, early in zip(timesteps, direct, strict=True):
        expected = run(model if early else late, t)
        torch.testing.assert_close(run(staged, t), expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(run(late, t), run(model, t), atol=1e-4)
    assert len(plans(staged)) == 1


@pytest.mark.slow
def test_rotating_anchors_change_from_step_to_step_without_another_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step computes what a model computes whose key frames stand still where that step has them."""
    model = models.wan()
    model.condition_embedder.time_embedder.linear_1.weight.zero_()  # so that only the key frames tell steps apart
    made = transform(model, Profile(5, "anchors"), backend="eager")

    def run(target: Any, step: int) -> torch.Tensor:
        inputs = models.wan_inputs(24) | {"timestep": torch.tensor([900.0 - step])}
        return target(**inputs)[0]

    assert torch.equal(run(model, 0), run(model, 1))
    first = run(made, 0)
    strategy = plans(made)[0].sites[0].strategy
    anchors = strategy.visibility
    assert isinstance(anchors, Anchors) and strategy == Strategy("anchors", visibility=anchors)
    assert strategy.period > 1
    assert torch.equal(run(made, 0), first)  # guidance calls the same step twice
    outputs = [first, *(run(made, step) for step in range(1, strategy.period))]

    def standing_still(step: int) -> torch.Tensor:
        """What the literal reference gives a fresh model, told the key frames of this step and of no other."""
        still = Strategy("still", visibility=replace(anchors, phase=step * anchors.rotate % anchors.every))

        def lowering(q: Any, k: Any, v: Any, spec: Any, *rest: Any) -> torch.Tensor:
            return reference(q, k, v, replace(spec, strategy=still), *rest)

        other = transform(model, Profile(5, "anchors"), backend="eager", attention="reference")
        with monkeypatch.context() as patched:
            patched.setitem(op.LOWERINGS, "reference", lowering)
            return run(other, 0)

    for step, found in enumerate(outputs):
        torch.testing.assert_close(found, standing_still(step), atol=1e-5, rtol=1e-4)
    for before, after in pairwise([*outputs, first]):
        assert not torch.allclose(before, after, atol=1e-3)
    for step, found in enumerate(outputs):  # the steps after a period are those of the first one, bitwise
        assert torch.equal(run(made, strategy.period + step), found)
    assert len(plans(made)) == 1


@pytest.mark.parametrize(
    "backend",
    [
        {"mode": "reduce-overhead"},
        {"mode": "max-autotune"},
        {"options": {"triton.cudagraphs": True}},
        {"backend": "cudagraphs"},
        "cudagraphs",
    ],
    ids=str,
)
def test_cuda_graphs_would_freeze_the_first_step(backend: Any) -> None:
    profile = Profile(5, "vrpr", schedule=[{"steps": 1, "layers": "direct"}])
    with pytest.raises(ValueError, match="records CUDA graphs"):
        transform(models.wan(), profile, backend=backend)
    later = transform(models.wan(), profile, backend="eager")
    with pytest.raises(ValueError, match="records CUDA graphs"):
        later.compile(**(backend if isinstance(backend, dict) else {"backend": backend}))


def test_inductors_own_setting_records_them_too() -> None:
    from torch._inductor import config

    profile = Profile(5, "vrpr", schedule=[{"steps": 1, "layers": "direct"}])
    transform(models.wan(), profile)
    with config.patch({"triton.cudagraphs": True}):
        with pytest.raises(ValueError, match="records CUDA graphs"):
            transform(models.wan(), profile)
        transform(models.wan(), profile, backend={"options": {"triton.cudagraphs": False}})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("direct", "schedule: expected a list of steps and layers, found 'direct'"),
        ([{"steps": 0, "layers": "direct"}], r"schedule\.0\.steps: expected an integer of at least 1"),
        ([{"steps": 1}], r"schedule\.0\.layers: missing"),
        ([{"steps": 1, "layers": "vprp"}], r"schedule\.0\.layers: unknown strategy 'vprp'"),
        ([{"steps": 1, "layers": "tsa", "when": 3}], r"schedule\.0\.when: unknown key"),
        ([3], r"schedule\.0: expected a mapping with steps and layers, found 3"),
    ],
)
def test_schedules_that_are_wrong(schedule: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Profile(5, "vrpr", schedule=schedule)


def test_a_schedule_is_saved_and_checked_against_the_model(tmp_path: Any) -> None:
    profile = Profile(5, "vrpr", schedule=[{"steps": 3, "layers": {1: "tsa"}}, {"steps": 2, "layers": "direct"}])
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    assert profile.stages(1) == ((3, "tsa"), (5, "direct"))
    assert profile.stages(0) == ((3, "direct"), (5, "direct"))
    with pytest.raises(ProfileError, match=r"schedule\.0\.layers\.1: expected a layer of 0 to 0, found 1"):
        profile.check_layers(1)
