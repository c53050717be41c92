"""A pipeline that never calls its transformed model says so, by name; a warning is given once, not by two rooms."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

import pytest
import torch
from slow import slow

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.generation import pipelines as library

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
BY_HAND = Profile(trained_frames=2, layers="vrpr+tsa", name="mine")
IN_VIDEO_FRAMES = Profile(trained_frames=81, layers="vrpr+tsa", name="mine")
SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 1.0}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, "freeloc_fx")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "freeloc_fx"]


def by_blocks(model: Any) -> Any:
    """A call that runs what is in a model, but not the model: as DiffSynth's model_fn does."""

    def call(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        batch, channels, *size = hidden_states.shape
        model.patch_embedding(hidden_states)
        return (torch.zeros(batch, channels, *size),)

    return call


class RunsBlocks:
    """No pipeline of diffusers: it holds a transformer, and runs its parts by itself."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def __call__(self, frames: int, calls_model: bool = False) -> str:
        states = torch.zeros(1, 4, frames, 4, 4)
        if calls_model:
            self.transformer(states, torch.ones(1), torch.zeros(1, 3, 16))
        else:
            by_blocks(self.transformer)(states)
        return "video"


def test_an_enabled_pipeline_that_runs_the_blocks_itself(pipe: Any, said: Any) -> None:
    kind = RunsBlocks
    caller = RunsBlocks(pipe.transformer)
    caller(4)
    freeloc_fx.enable(caller, BY_HAND, backend="eager")
    assert isinstance(caller, RunsBlocks) and type(caller).__name__ == "RunsBlocks"
    assert list(inspect.signature(caller.__call__).parameters) == ["frames", "calls_model"]
    assert caller(4, calls_model=True) == "video" and said() == []
    assert caller(frames=4) == "video"
    (message,) = said()
    assert "RunsBlocks: transformer (WanTransformer3DModel) was never called" in message
    assert "profile 'mine'" in message and "Expected the pipeline to call transformer(hidden_states, ...)" in message
    caller(4)
    assert len(said()) == 1  # once for a pipeline
    freeloc_fx.disable(caller)
    assert type(caller) is kind
    caller(4)
    assert len(said()) == 1


def run_by_blocks(kind: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make calls of a class of pipelines run what is in the model, without the model."""
    original = kind.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setitem(vars(model), "_compiled_call_impl", None)
            patch.setitem(vars(model), "forward", by_blocks(model))
            return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", call)


def test_a_pipeline_of_diffusers_that_passes_the_model_over(pipe: Any, said: Any, monkeypatch: Any) -> None:
    kind = type(pipe)
    freeloc_fx.enable(pipe, BY_HAND, backend="eager")
    pipe(PROMPT, num_frames=13, **SMALL)
    assert said() == []
    run_by_blocks(kind, pipe.transformer, monkeypatch)  # after enable: what others put on the class still holds
    pipe(PROMPT, num_frames=13, **SMALL)
    (message,) = said()
    assert "WanPipeline: transformer (WanTransformer3DModel) was never called in this generation" in message


def test_a_hand_made_pipeline_through_generate(pipe: Any, said: Any, monkeypatch: Any) -> None:
    """Told as well, and no plan of an earlier clip is taken for this one's."""
    pipe.transformer = freeloc_fx.transform(pipe.transformer, BY_HAND, backend="eager")
    small: dict[str, Any] = {"frames": 13, "height": 32, "width": 32, "steps": 1, "guidance": 1.0}
    assert library.generate(pipe, PROMPT, **small).plan is not None and said() == []
    run_by_blocks(type(pipe), pipe.transformer, monkeypatch)
    assert library.generate(pipe, PROMPT, **small).plan is None
    assert len(said()) == 1 and "was never called" in said()[0]


def test_of_two_transformers_one_may_have_no_step(pipe: Any, said: Any) -> None:
    from diffusers import WanPipeline

    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    two: Any = WanPipeline(**parts, transformer_2=copy.deepcopy(pipe.transformer), boundary_ratio=0.5)
    two.set_progress_bar_config(disable=True)
    freeloc_fx.enable(two, BY_HAND, backend="eager")
    two(PROMPT, num_frames=13, **SMALL)
    assert said() == []


def test_a_failed_call_says_nothing_of_this(pipe: Any, said: Any) -> None:
    freeloc_fx.enable(pipe, BY_HAND, backend="eager")
    with pytest.raises(ValueError, match="height"):
        pipe(PROMPT, num_frames=13, **{**SMALL, "height": 33})
    assert said() == []


@pytest.mark.parametrize("frames", [161, slow(201)])  # the second is one more length that goes the same way
def test_the_unit_of_a_trained_length_is_told_by_one_room(pipe: Any, said: Any, frames: int) -> None:
    """By the pipeline where there is one, else by the model."""
    freeloc_fx.enable(pipe, IN_VIDEO_FRAMES, backend="eager")
    assert len(said()) == 1
    pipe(PROMPT, num_frames=frames, **SMALL)
    assert len(said()) == 1

    freeloc_fx.disable(pipe)
    pipe.transformer = freeloc_fx.transform(pipe.transformer, IN_VIDEO_FRAMES, backend="eager")
    library.generate(pipe, PROMPT, frames=frames, height=32, width=32, steps=1, guidance=1.0)
    assert len(said()) == 2 and f"the {frames} frames asked for" in said()[1]

    pipe.transformer = freeloc_fx.transform(freeloc_fx.restore(pipe.transformer), IN_VIDEO_FRAMES, backend="eager")
    pipe(PROMPT, num_frames=frames, **SMALL)
    assert len(said()) == 3 and "this clip of" in said()[2]
    freeloc_fx.plan_for(pipe, frames, 32, 32)
    library.generate(pipe, PROMPT, frames=frames, height=32, width=32, steps=1, guidance=1.0)
    assert len(said()) == 3
