"""Transform the transformers of a whole pipeline in place, take that off again, and plan for a video's size.

freeloc_fx.enable(pipe)
print(freeloc_fx.plan_for(pipe, num_frames=321, height=480, width=832))
pipe(prompt, num_frames=321)
freeloc_fx.disable(pipe)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.compiler.inner import compiler
from freeloc_fx.compiler.transform import plan, restore, transform
from freeloc_fx.errors import LengthError
from freeloc_fx.method.build import parse
from freeloc_fx.method.checks import is_whole
from freeloc_fx.planning.plan import Plan
from freeloc_fx.planning.profile import Profile

from .components import check_pipeline, first_transformer, transformers_of
from .hints import check_transformers, check_unit
from .request import check_request, choose_profile
from .watching import unwatch, watch
from .windows import run_in_windows, windowed_model

__all__ = ["apply", "disable", "enable", "is_transformed", "plan_for"]


def enable(
    pipe: Any,
    profile: Profile | str | Path | None = None,
    *,
    strategy: str | None = None,
    backend: str | Callable[..., Any] | Mapping[str, Any] = "inductor",
    attention: str | Mapping[str, Any] = "auto",
    verify: bool = False,
) -> Profile | None:
    """Make a pipeline generate video longer than its model was trained on, in place and without training.

    Every transformer of the pipeline (`transformer`, and where there are such `transformer_2`, as in Wan 2.2, and
    `transformer_ref`, as in MiniMax-H3) is replaced by what `transform` makes of it. Nothing is captured or compiled
    until the first call. The same call again changes nothing and compiles nothing again; with another profile, strategy
    or setting, what was there before is taken off first. If anything fails, the pipeline is as it was. After a call of
    the pipeline that never called a transformed model, a warning names the model; for that the pipeline becomes an
    instance of a subclass of its class until `disable`.

    Args:
        pipe: a diffusers pipeline.
        profile: a `Profile`, a shipped profile's name, or the path of a profile's file; None: the shipped profile for
            this model.
        strategy: None or "profile": the profile's own strategies, layer by layer. "direct": the untouched model, as
            after `disable`. Else the name of a strategy for every layer and denoising step, as in "vrpr+tsa", with the
            profile's settings (see `Profile.with_layers`).
        backend: see `transform`.
        attention: see `transform`.
        verify: see `transform`.

    Returns:
        The profile that is used; None for "direct" without a profile.

    Raises:
        TypeError: `pipe` is a model, or `profile` or `verify` is of another type.
        TransformError: the pipeline has no transformer, one of them is compiled already, or one that was transformed
            before cannot be restored, see `restore`.
        StrategyError: the strategy is unknown.
        ProfileError: there is no such profile, it is malformed, or none is shipped for this model.
        PlanError: the profile is for another model.
        CaptureError: the model is autoregressive.
        ValueError: the backend or the attention is unknown.
    """
    strategy = None if strategy == "profile" else strategy
    if strategy is not None:
        parse(strategy)
    present = check_pipeline(pipe)
    first = _original(next(iter(present.values())))
    if strategy == "direct":
        used = choose_profile(first, profile) if profile is not None else None
        disable(pipe)
        return used
    used = choose_profile(first, profile)
    if strategy is not None:
        used = used.with_layers(strategy)
    made = {
        name: model
        if _runs(model, used, backend, attention, verify)
        else transform(_original(model), used, backend=backend, attention=attention, verify=verify)
        for name, model in present.items()
    }
    _put(pipe, made)
    watch(pipe)
    check_unit(pipe, used)
    return used


def disable(pipe: Any) -> None:
    """Give a pipeline its untouched transformers back; nothing happens where none is transformed. Context windows
    around a transformed one stay, and run the untouched one.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        TypeError: `pipe` is a model, whose original `restore` gives back.
        TransformError: a transformer cannot be restored, see `restore`.
    """
    if isinstance(pipe, nn.Module) and not transformers_of(pipe):
        check_pipeline(pipe)
    present = transformers_of(pipe)
    within = [found for model in present.values() if (found := _transformed_in_windows(model)) is not None]
    originals = [restore(inside) for _, inside in within]
    _put(pipe, {name: _original(model) for name, model in present.items()})
    for (windowed, _), original in zip(within, originals, strict=True):
        run_in_windows(windowed, original)
    unwatch(pipe)


def apply(
    pipe: Any,
    profile: Profile | str | Path | None = None,
    strategy: str | None = None,
    *,
    backend: str | Callable[..., Any] | Mapping[str, Any] = "eager",
    attention: str | Mapping[str, Any] = "auto",
    verify: bool = False,
) -> Profile | None:
    """`enable`, with the strategy by position and the rewritten graph run as it is unless a backend is named.

    Args:
        pipe: see `enable`.
        profile: see `enable`.
        strategy: see `enable`.
        backend: see `transform`.
        attention: see `transform`.
        verify: see `transform`.

    Returns:
        As `enable`.

    Raises:
        FreelocError: as `enable`.
    """
    return enable(pipe, profile, strategy=strategy, backend=backend, attention=attention, verify=verify)


def is_transformed(model: nn.Module) -> bool:
    """Tell whether a model is the result of `transform`.

    Args:
        model: a model. One that `torch.compile` wraps, or a shallow copy of a transformed one, is not transformed.

    Returns:
        True for a transformed model.

    Raises:
        TypeError: `model` is not a module, for example a pipeline.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module, found {type(model).__name__}"
            + ("; ask about its transformer" if transformers_of(model) else "")
        )
    return state_of(model) is not None


def plan_for(pipe: Any, num_frames: int, height: int, width: int, profile: Profile | str | Path | None = None) -> Plan:
    """Say what would become of a pipeline's attention for one video, without running it.

    Args:
        pipe: a diffusers pipeline, enabled or not. Of two transformers, the plan is the one of the first that runs.
        num_frames: frames of the video, 1 more than a multiple of the VAE's temporal compression.
        height: of the video in pixels.
        width: of the video in pixels.
        profile: as for `enable`; None: the profile that the pipeline is enabled with, else the shipped one.

    Returns:
        The plan.

    Raises:
        TypeError: `pipe` is a model, or `profile` is of another type.
        TransformError: the pipeline has no transformer.
        LengthError: a size is no positive integer, or the model cannot make it; the message begins with its name.
        ProfileError: there is no such profile, it is malformed, or none is shipped for this model.
        PlanError: the profile is for another model.
        StrategyError: settings that do not fit this length.
        CaptureError: the model has no attention that a strategy could change, or is autoregressive.
    """
    model = first_transformer(pipe)
    for name, value in (("num_frames", num_frames), ("height", height), ("width", width)):
        if not is_whole(value, 1):
            raise LengthError(f"{name}: expected an integer of at least 1, found {value!r}")
    frames, rows, columns = check_request(pipe, num_frames, height, width, argument="num_frames")
    state = state_of(model)
    used = state.backend.profile if profile is None and state is not None else choose_profile(_original(model), profile)
    made = plan(model, used, frames=frames, height=rows, width=columns)
    check_transformers(pipe)
    if not made.rewritten:
        check_unit(pipe, used, num_frames)
    return made


def _original(model: Any) -> Any:
    """The model that is underneath a transformed one, else the model itself."""
    return model if state_of(model) is None else restore(model)


def _transformed_in_windows(model: Any) -> tuple[Any, Any] | None:
    """Context windows and the transformed model that they run; None where there is none."""
    inside = windowed_model(model)
    if inside is None:
        return None
    return (model, inside) if state_of(inside) is not None else _transformed_in_windows(inside)


def _runs(
    model: Any,
    profile: Profile,
    backend: str | Callable[..., Any] | Mapping[str, Any],
    attention: str | Mapping[str, Any],
    verify: bool,
) -> bool:
    """Whether a model is transformed with exactly these arguments."""
    state = state_of(model)
    if state is None:
        return False
    made = state.backend
    wanted = (profile, attention, verify, compiler(backend))
    return not made.disabled and bool((made.profile, made.attention, made.verify, made.inner) == wanted)


def _put(pipe: Any, models: Mapping[str, Any]) -> None:
    """Set components of a pipeline, all of them or none."""
    before = {name: getattr(pipe, name) for name in models}
    try:
        for name, model in models.items():
            if model is not before[name]:
                setattr(pipe, name, model)
    except BaseException:
        for name, model in before.items():
            if getattr(pipe, name) is not model:
                setattr(pipe, name, model)
        raise
