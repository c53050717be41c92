"""Context windows: run a model on overlapping windows of latent frames and fuse its predictions.

The prediction-level counterpart of sliding-window attention: MultiDiffusion (Bar-Tal et al., ICML 2023, arXiv
2302.08113) over time, as FreeNoise (arXiv 2310.15169, "Window-based Attention Fusion") does inside attention and
ComfyUI's context windows do for any model. Every window has the trained length, so a model meets
neither new positions nor new context, and no frame sees beyond its windows.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from freeloc_fx.attention.running import running, within
from freeloc_fx.compat import COMPILED_CALL, own_hooks
from freeloc_fx.compiler.capture.conventions import call_arguments, config_of, forward_signature
from freeloc_fx.compiler.capture.loop import running_timesteps
from freeloc_fx.compiler.capture.shallow import shallow_copy
from freeloc_fx.compiler.capture.state import WINDOWS
from freeloc_fx.compiler.capture.steps import StepCounter
from freeloc_fx.errors import FreelocError, LengthError
from freeloc_fx.method.checks import is_whole
from freeloc_fx.planning.profile import Profile

from .window_arguments import WholeClip

__all__ = ["context_windows", "fusion_weights", "run_in_windows", "window_frames", "windowed_model"]


Model = TypeVar("Model", bound=nn.Module)


Fusion = Literal["pyramid", "flat", "linear"]


Schedule = Literal["uniform", "staggered", "looped", "batched"]


def window_frames(
    frames: int, window: int, stride: int, schedule: Schedule = "uniform", step: int = 0
) -> list[list[int]]:
    """List the latent frames of each window; together the windows hold every latent frame.

    Args:
        frames: latent frames of the clip, at least 1.
        window: latent frames of a window, at least 1.
        stride: latent frames from one window to the next, 1 to window.
        schedule: "uniform": a window every `stride` frames, the last one moved back to end with the clip. "staggered":
            as uniform, but the grid moves at every step, by the bit-reversed fractions 0, 1/2, 1/4, 3/4, ... of a
            stride, so that no latent frame stays at an edge. "looped": the windows run round the end of the clip to its
            beginning, for a video that loops. "batched": windows side by side without overlap but for the last.
        step: denoising step, counted from 0, for "staggered".

    Returns:
        Lists of `window` indices of latent frames in the order in which the model sees them, or one list of all of them
        where the clip is no longer than a window.

    Raises:
        LengthError: a number is not a positive integer, or the stride exceeds the window.
        ValueError: the schedule is unknown.
    """
    _check_sizes(window, stride)
    if not is_whole(frames, 1):
        raise LengthError(f"windows frames: expected an integer of at least 1, found {frames!r}")
    _check_choice("schedule", schedule, Schedule)
    if frames <= window:
        return [list(range(frames))]
    if schedule == "looped":
        return [[(start + k) % frames for k in range(window)] for start in range(0, frames, stride)]
    if schedule == "batched":
        stride = window
    last, shift = frames - window, int(_reversed_bits(step) * stride) if schedule == "staggered" else 0
    starts = [min(max(start, 0), last) for start in range(-shift, last + stride, stride)]
    return [list(range(start, start + window)) for start in sorted(set(starts))]


def fusion_weights(
    count: int, overlap: int, fusion: Fusion = "pyramid", first: bool = False, last: bool = False
) -> torch.Tensor:
    """Say how much each latent frame of a window counts.

    Args:
        count: latent frames of the window.
        overlap: latent frames that it shares with its neighbour.
        fusion: "flat": all alike. "pyramid": rising by one from either end to the middle (FreeNoise). "linear": rising
            within the overlap only.
        first: there is no window before this one, so that "linear" does not fall there.
        last: there is no window after this one, so that "linear" does not fall there.

    Returns:
        float32 (count,), above 0.

    Raises:
        ValueError: the fusion is unknown.
    """
    _check_choice("fusion", fusion, Fusion)
    index = torch.arange(count, dtype=torch.float32)
    from_end = count - 1 - index
    if fusion == "flat":
        return torch.ones(count)
    if fusion == "pyramid":
        return torch.minimum(index, from_end) + 1
    weights = torch.ones(count)
    for edge, distance in ((first, index), (last, from_end)):
        if not edge:
            weights = torch.minimum(weights, (distance + 1) / (overlap + 1))
    return weights


def context_windows(
    model: Model,
    window: int | None = None,
    stride: int | None = None,
    *,
    fusion: Fusion = "pyramid",
    schedule: Schedule = "uniform",
) -> Model:
    """Make a model that runs on overlapping windows of latent frames and fuses the predictions by a weighted mean.

    It shares the weights; the original is untouched. A clip no longer than a window runs as it is. The model may itself
    be transformed or compiled, since every window has one shape.

    Args:
        model: a video transformer whose forward takes `hidden_states` (batch, channels, latent frames, height, width),
            or these axes in the order of the model's own pipeline, and returns one prediction of as many latent frames.
            Further tensors of the clip's size (VACE's control), timesteps of each token or frame and rotary tables are
            cut likewise; every other argument reaches each window unchanged.
        window: latent frames of a window, or positions in time where a model's `patch_size_t` makes one of several;
            default the trained length of the shipped profile for this model.
        stride: from one window to the next, 1 to window; default half a window.
        fusion: see `fusion_weights`.
        schedule: see `window_frames`. "staggered" counts a step when `timestep` changes, so that conditional and
            unconditional calls of one step share their windows, and begins again when it rises.

    Returns:
        A model of the same class; the same call gives the same type of output.

    Raises:
        TypeError: `model` is not a module; later, from a call, `hidden_states` is not of that shape, the output is not
            a single prediction, or "staggered" finds no timestep.
        LengthError: a size is out of range; later, from a call of more than one window, the model takes the first frame
            of each call for a clean image, or fails on a window beside tensors that could not be cut.
        ValueError: the fusion or the schedule is unknown.
        ProfileError: no window is given and no shipped profile is for this model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    if window is None:
        window = Profile.for_model(model).trained_frames
    _check_sizes(window, 1)
    stride = max(1, window // 2) if stride is None else stride
    _check_sizes(window, stride)
    _check_choice("fusion", fusion, Fusion)
    _check_choice("schedule", schedule, Schedule)
    windowed = _Windowed(model, window, stride, fusion, schedule)
    result = shallow_copy(model)
    # The inner call runs the original with its compiled call, its hooks and whatever replaced its forward.
    result.__dict__[COMPILED_CALL] = None
    for name in own_hooks(result):
        result.__dict__[name] = OrderedDict()

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return windowed(*args, **kwargs)

    result.__dict__["forward"] = forward
    result.__dict__[WINDOWS] = windowed
    return result


def windowed_model(model: nn.Module) -> nn.Module | None:
    """The model that runs on each window; None for a model without windows.

    Args:
        model: any model.
    """
    found = vars(model).get(WINDOWS)
    return found.model if isinstance(found, _Windowed) else None


def run_in_windows(windowed: nn.Module, model: nn.Module) -> None:
    """Let context windows run another model; the windowed one stays the object that it is, with its hooks.

    Args:
        windowed: has context windows, see `windowed_model`.
        model: to run in each window.
    """
    vars(windowed)[WINDOWS].model = model


class _Windowed:
    """The forward of a windowed model."""

    def __init__(self, model: nn.Module, window: int, stride: int, fusion: Fusion, schedule: Schedule) -> None:
        self.model, self.window, self.stride = model, window, stride
        self.fusion, self.schedule = fusion, schedule
        self.counter = StepCounter(together=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        states: Any = args[0] if args else kwargs.get("hidden_states")
        clip = WholeClip.of(self.model, states)
        frames = clip.positions
        if frames <= self.window:
            return self.model(*args, **kwargs)
        step = self._step(args, kwargs) if self.schedule == "staggered" else 0
        self._check_first_frames(frames)
        windows = window_frames(frames, self.window, self.stride, self.schedule, step)
        overlap = 0 if self.schedule == "batched" else self.window - self.stride
        total = counted = output = prediction = None
        named, told = self._named(args), running()
        if told.texts is not None:
            told.texts.over(frames)  # raises for a timeline of another clip, before any window runs
        for number, window in enumerate(windows):
            index = torch.tensor(clip.latent_frames(window), device=states.device)
            part, rest = clip.part(states, window), clip.cut(kwargs, window)
            texts = None if told.texts is None else told.texts.window(clip.latent_frames(window))
            others = clip.cut(named, window)
            with (
                within(replace(told, texts=texts)),
                _naming_what_is_whole(clip, {**named, **kwargs}, others | rest),
            ):
                if args:
                    output = self.model(part, *others.values(), **rest)
                else:
                    output = self.model(**{**rest, "hidden_states": part})
            prediction = _prediction(output, len(index), clip.axis)
            ends = (False, False) if self.schedule == "looped" else (number == 0, number == len(windows) - 1)
            weights = fusion_weights(self.window, overlap, self.fusion, *ends)
            weights = weights.repeat_interleave(clip.step).to(prediction.device)
            weights = weights.view(-1, *[1] * (4 - clip.axis))
            if total is None or counted is None:
                work = torch.promote_types(prediction.dtype, torch.float32)
                shape = (*prediction.shape[: clip.axis], clip.frames, *prediction.shape[clip.axis + 1 :])
                total = torch.zeros(shape, dtype=work, device=prediction.device)
                counted = torch.zeros(clip.frames, *weights.shape[1:], dtype=work, device=prediction.device)
            total.index_add_(clip.axis, index, prediction.to(total.dtype) * weights)
            counted.index_add_(0, index, weights.to(counted.dtype))
        assert total is not None and counted is not None and prediction is not None
        return _like(output, (total / counted).to(prediction.dtype))

    def _check_first_frames(self, frames: int) -> None:
        """Refuse a model that takes the first latent frame of each call for a clean image."""
        if config_of(self.model).get("image_condition_type") == "token_replace":
            raise LengthError(
                f"context windows: {type(self.model).__name__} with image_condition_type='token_replace' takes the "
                "first latent frame of each call for the clean image, which only the first window has; expected at "
                f"most {self.window} latent frames, found {frames}"
            )

    def _named(self, args: tuple[Any, ...]) -> dict[str, Any]:
        """The positional arguments after the first by name, and by a number where the signature does not tell."""
        names = [*forward_signature(self.model).parameters, *map(str, range(len(args)))]
        return dict(zip(names[1 : len(args)], args[1:], strict=True))

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """The denoising step of a call, told by its timestep."""
        timestep = {**call_arguments(self.model, args, kwargs), **kwargs}.get("timestep")
        if timestep is None and len(args) > 1:
            timestep = args[1]
        if timestep is None:
            raise TypeError("timestep: expected an argument of this name, or the second one, for schedule 'staggered'")
        return self.counter.see({"timestep": torch.as_tensor(timestep)}, running_timesteps(self.model))


@contextmanager
def _naming_what_is_whole(clip: WholeClip, given: Mapping[str, Any], cut: Mapping[str, Any]) -> Iterator[None]:
    """Context: where a model fails on a window, the error names the tensors that every window gets whole although one
    of their sizes is about the clip's."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        count = clip.positions * clip.tokens
        sizes = {clip.frames - 1, clip.frames, clip.frames + 1, clip.positions, count}
        same = [name for name, value in given.items() if cut.get(name) is value and not name.startswith("encoder_")]
        tensors = {name: given[name] for name in same if isinstance(given[name], torch.Tensor)}
        whole = [f"{name} {tuple(x.shape)}" for name, x in tensors.items() if x.ndim > 2 and sizes & set(x.shape[1:])]
        if not whole or isinstance(error, (FreelocError, torch.OutOfMemoryError)) or "CUDA error" in str(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LengthError(
            f"context windows: the model cannot run on one window: {reason}; these were not cut, since they have "
            f"neither the clip's size nor a value a frame: {', '.join(whole)}"
        ) from error


def _prediction(output: Any, frames: int, axis: int) -> torch.Tensor:
    """The prediction in a model's output: a tensor, a tuple of one, or a mapping of one (diffusers' outputs)."""
    found = output
    if isinstance(output, (tuple, dict)):
        values = list(output.values()) if isinstance(output, dict) else list(output)
        if len(values) != 1:
            raise TypeError(f"output: expected one prediction, found a {type(output).__name__} of {len(values)} values")
        found = values[0]
    if not isinstance(found, torch.Tensor) or found.ndim != 5 or found.shape[axis] != frames:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise TypeError(f"output: expected a prediction of five axes, {frames} long on axis {axis}, found {what}")
    return found


def _like(output: Any, prediction: torch.Tensor) -> Any:
    """An output of the same type with another prediction."""
    if isinstance(output, dict):
        return type(output)(**dict.fromkeys(output, prediction))
    return (prediction,) if isinstance(output, tuple) else prediction


def _reversed_bits(step: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: van der Corput's sequence, whose first n members are spread about evenly."""
    value, unit = 0.0, 0.5
    while step:
        value, unit, step = value + unit * (step & 1), unit / 2, step >> 1
    return value


def _check_sizes(window: Any, stride: Any) -> None:
    """Refuse sizes of windows that are no positive integers, or leave gaps."""
    for name, value in (("window", window), ("stride", stride)):
        if not is_whole(value, 1):
            raise LengthError(f"windows {name}: expected an integer of at least 1, found {value!r}")
    if stride > window:
        raise LengthError(f"windows stride: expected at most the window's {window} latent frames, found {stride}")


def _check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse a word that is not among the choices of a Literal."""
    if value not in get_args(choices):
        raise ValueError(f"{name}: expected one of {', '.join(get_args(choices))}, found {value!r}")
