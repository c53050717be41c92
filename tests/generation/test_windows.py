"""Context windows: coverage, weights, and a fused prediction against a plain loop."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import wan, wan_inputs
from torch import nn

from freeloc_fx import plan, transform
from freeloc_fx.errors import LengthError, ProfileError, TransformError
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.windows import Fusion, Schedule, context_windows, fusion_weights, window_frames
from freeloc_fx.planning.profile import Profile

checked = settings(max_examples=50, deadline=None)
schedules = st.sampled_from(["uniform", "staggered", "looped", "batched"])
fusions = st.sampled_from(["pyramid", "flat", "linear"])


@pytest.mark.parametrize("direct", [False, True])
def test_disabling_takes_off_what_is_in_the_windows(pipe: Any, direct: bool) -> None:
    import freeloc_fx

    def run() -> torch.Tensor:
        return library.generate(pipe, "a red circle", frames=17, height=32, width=32, steps=1, guidance=1.0).frames

    original = pipe.transformer
    pipe.transformer = context_windows(original, 4, 1, fusion="flat")
    expected = run()
    heard: list[Any] = []
    pipe.transformer = original
    freeloc_fx.enable(pipe, Profile(2, "vrpr+tsa"), backend="eager")
    pipe.transformer = windowed = context_windows(pipe.transformer, 4, 1, fusion="flat")
    windowed.register_forward_pre_hook(lambda *given: heard.append(given))
    assert not np.array_equal(run(), expected)
    if direct:
        freeloc_fx.enable(pipe, Profile(2), strategy="direct")
    else:
        freeloc_fx.disable(pipe)
    heard.clear()
    assert np.array_equal(run(), expected)
    assert pipe.transformer is windowed and heard, "what was put on the windows stays"
    freeloc_fx.disable(pipe)
    assert pipe.transformer is windowed


class Output(dict[str, Any]):
    """Like diffusers' outputs: a mapping of one."""


class Model(nn.Module):
    """A prediction that depends on the frame's place in the window, so that windows show."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls: list[dict[str, Any]] = []

    def forward(
        self, hidden_states: torch.Tensor, timestep: Any = None, text: Any = None, return_dict: bool = True
    ) -> Any:
        self.calls.append({"shape": tuple(hidden_states.shape), "timestep": timestep, "text": text})
        place = torch.arange(hidden_states.shape[2], dtype=hidden_states.dtype)[:, None, None]
        sample = self.weight.detach().to(hidden_states.dtype) * hidden_states[:, :2] + place
        return Output(sample=sample) if return_dict else (sample,)


@checked
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), schedules, st.integers(0, 20))
def test_windows_hold_every_frame(frames: int, window: int, stride: int, schedule: Schedule, step: int) -> None:
    stride = min(stride, window)
    found = window_frames(frames, window, stride, schedule, step)
    assert {frame for one in found for frame in one} == set(range(frames))
    if frames <= window:
        assert found == [list(range(frames))]
        return
    for one in found:
        assert len(one) == len(set(one)) == window
        steps = {(b - a) % frames for a, b in pairwise(one)}
        assert steps <= {1}
        assert schedule == "looped" or one == sorted(one)
    assert len({one[0] for one in found}) == len(found)


def test_the_schedules() -> None:
    assert [w[0] for w in window_frames(10, 4, 2)] == [0, 2, 4, 6]
    assert [w[0] for w in window_frames(11, 4, 2)] == [0, 2, 4, 6, 7]
    assert [w[0] for w in window_frames(11, 4, 2, "batched")] == [0, 4, 7]
    assert [w[0] for w in window_frames(10, 4, 4, "looped")] == [0, 4, 8]
    assert window_frames(10, 4, 4, "looped")[-1] == [8, 9, 0, 1]
    assert window_frames(12, 4, 4, "staggered", 0) == window_frames(12, 4, 4)
    starts = [[w[0] for w in window_frames(12, 4, 4, "staggered", step)] for step in range(4)]
    assert starts == [[0, 4, 8], [0, 2, 6, 8], [0, 3, 7, 8], [0, 1, 5, 8]]


@checked
@given(st.integers(1, 12), st.integers(0, 11), fusions, st.booleans(), st.booleans())
def test_weights_are_positive_and_symmetric(count: int, overlap: int, fusion: Fusion, first: bool, last: bool) -> None:
    overlap = min(overlap, count - 1)
    weights = fusion_weights(count, overlap, fusion, first, last)
    assert weights.shape == (count,) and (weights > 0).all()
    assert torch.equal(weights.flip(0), fusion_weights(count, overlap, fusion, last, first))


def test_the_weights() -> None:
    assert fusion_weights(5, 2).tolist() == [1, 2, 3, 2, 1]
    assert fusion_weights(4, 2).tolist() == [1, 2, 2, 1]
    assert fusion_weights(3, 2, "flat").tolist() == [1, 1, 1]
    assert fusion_weights(5, 1, "linear").tolist() == [0.5, 1, 1, 1, 0.5]
    assert fusion_weights(5, 1, "linear", first=True).tolist() == [1, 1, 1, 1, 0.5]


@checked
@given(st.integers(2, 20), st.integers(1, 6), st.integers(1, 6), fusions, schedules, st.booleans())
def test_the_prediction_is_the_weighted_mean_over_windows(
    frames: int, window: int, stride: int, fusion: Fusion, schedule: Schedule, positional: bool
) -> None:
    stride = min(stride, window)
    model = Model()
    states = torch.randn(2, 3, frames, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    windowed = context_windows(model, window, stride, fusion=fusion, schedule=schedule)
    timestep = torch.tensor([900])
    if positional:
        (found,) = windowed(states, timestep, return_dict=False)
    else:
        found = windowed(hidden_states=states, timestep=timestep)["sample"]
    groups = window_frames(frames, window, stride, schedule)
    total, weight = torch.zeros(2, 2, frames, 2, 2, dtype=torch.float64), [0.0] * frames
    for number, group in enumerate(groups):
        overlap = 0 if schedule == "batched" else window - stride
        ends = (number == 0, number == len(groups) - 1) if schedule != "looped" else (False, False)
        weights = fusion_weights(window, overlap, fusion, *ends).tolist() if len(groups) > 1 else [1.0] * frames
        for place, frame in enumerate(group):
            total[:, :, frame] += weights[place] * (2 * states[:, :2, frame] + place)
            weight[frame] += weights[place]
    expected = total / torch.tensor(weight, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(found, expected)


def test_other_arguments_and_the_type_of_the_output_stay() -> None:
    model = Model()
    windowed = context_windows(model, 4, 2)
    assert type(windowed) is Model and windowed is not model and windowed.weight is model.weight
    text, timestep = torch.ones(1, 5), torch.tensor([3])
    states = torch.zeros(1, 3, 8, 2, 2, dtype=torch.bfloat16)
    result = windowed(hidden_states=states, timestep=timestep, text=text)
    assert type(result) is Output and result["sample"].shape == (1, 2, 8, 2, 2)
    assert result["sample"].dtype == torch.bfloat16
    assert [call["shape"] for call in model.calls] == [(1, 3, 4, 2, 2)] * 3
    assert all(call["text"] is text and call["timestep"] is timestep for call in model.calls)
    assert type(windowed(states, return_dict=False)) is tuple
    assert "hidden_states" in inspect.signature(windowed.forward).parameters


def test_a_short_clip_runs_as_it_is() -> None:
    model = Model()
    states = torch.randn(1, 3, 4, 2, 2)
    found = context_windows(model, 4, 2)(states)["sample"]
    assert torch.equal(found, model(states)["sample"]) and len(model.calls) == 2


def test_a_prediction_that_ignores_windows_is_unchanged() -> None:
    class Same(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 3 * hidden_states

    states = torch.randn(1, 3, 13, 2, 2)
    for fusion in ("pyramid", "flat", "linear"):
        for schedule in ("uniform", "looped", "batched"):
            found = context_windows(Same(), 5, 3, fusion=fusion, schedule=schedule)(states)  # type: ignore[arg-type]
            torch.testing.assert_close(found, 3 * states)


def test_staggered_windows_move_once_a_step_and_begin_again() -> None:
    model = Model()
    windowed = context_windows(model, 4, 4, schedule="staggered")
    states = torch.zeros(1, 3, 12, 2, 2)

    def windows_of(timestep: float) -> int:
        model.calls.clear()
        windowed(hidden_states=states, timestep=torch.tensor([timestep]))
        return len(model.calls)

    assert [windows_of(t) for t in (900, 900, 500, 500, 100)] == [3, 3, 4, 4, 4]
    assert [windows_of(t) for t in (900, 500)] == [3, 4]
    with pytest.raises(TypeError, match="timestep: expected an argument of this name"):
        windowed(hidden_states=states)


def test_the_copy_keeps_hooks_and_compiled_calls_to_the_windows() -> None:
    model = Model()
    seen: list[int] = []
    model.register_forward_hook(lambda module, args, output: seen.append(1))
    windowed = context_windows(model, 4, 4)
    windowed(torch.zeros(1, 3, 8, 2, 2))
    assert len(seen) == 2
    compiled = Model()
    calls: list[tuple[int, ...]] = []

    def call(hidden_states: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(hidden_states.shape))
        return hidden_states

    compiled._compiled_call_impl = call  # type: ignore[assignment]
    context_windows(compiled, 4, 4)(torch.zeros(1, 3, 8, 2, 2))
    assert calls == [(1, 3, 4, 2, 2)] * 2


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, found str"):
        context_windows("model", 4)  # type: ignore[type-var]
    with pytest.raises(ProfileError, match="no shipped profile is for this Model"):
        context_windows(Model())
    for window, stride, message in ((0, 1, "windows window"), (4, 5, "at most the window's 4"), (4, 0, "stride")):
        with pytest.raises(LengthError, match=message):
            context_windows(Model(), window, stride)
    with pytest.raises(ValueError, match="fusion: expected one of pyramid, flat, linear, found 'mean'"):
        context_windows(Model(), 4, fusion="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedule: expected one of uniform, staggered, looped, batched, found 'x'"):
        context_windows(Model(), 4, schedule="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"hidden_states: expected .*, found \(3, 8, 2, 2\)"):
        context_windows(Model(), 4)(torch.zeros(3, 8, 2, 2))

    class Two(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> Any:
            return hidden_states, hidden_states

    with pytest.raises(TypeError, match="output: expected one prediction, found a tuple of 2 values"):
        context_windows(Two(), 4)(torch.zeros(1, 3, 8, 2, 2))

    class Halved(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> Any:
            return hidden_states[:, :, ::2]

    with pytest.raises(
        TypeError, match=r"output: expected a prediction of five axes, 4 long on axis 2, found \(1, 3, 2, 2, 2\)"
    ):
        context_windows(Halved(), 4)(torch.zeros(1, 3, 8, 2, 2))


def test_a_wan_in_windows_is_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan()
    monkeypatch.setattr(Profile, "for_model", classmethod(lambda cls, model: Profile(5)))  # the trained length
    windowed = context_windows(model, schedule="batched")
    assert isinstance(windowed, type(model)) and windowed.config == model.config
    inputs = wan_inputs(10, 2, 3)
    with torch.no_grad():
        found = windowed(**{**inputs, "return_dict": True}).sample
        halves = [model(**{**inputs, "hidden_states": half})[0] for half in inputs["hidden_states"].split(5, 2)]
    torch.testing.assert_close(found, torch.cat(halves, 2))


def test_the_model_inside_windows_is_the_one_to_transform() -> None:
    windowed = context_windows(wan(), 4, 2)
    with pytest.raises(TransformError, match=r"runs in context windows, .*windows\(transform\(model\), "):
        transform(windowed, Profile(3, "vrpr"))
    with pytest.raises(TransformError, match="runs in context windows"):
        plan(windowed, Profile(3, "vrpr"), frames=9, height=4, width=4)
