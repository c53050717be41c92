"""`transform`, `restore` and `plan`: the public way in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from freeloc_fx.compat import compiled_call, unwrapped
from freeloc_fx.compat_diffusers import sharding_hooks
from freeloc_fx.compiler.capture.attach import Model, attach, check_forward, check_mode
from freeloc_fx.compiler.capture.conventions import check_limits, check_one_clip, layer_table
from freeloc_fx.compiler.capture.examples import example_inputs
from freeloc_fx.compiler.capture.facts import facts_of
from freeloc_fx.compiler.capture.rehearsal import plan_of_call
from freeloc_fx.compiler.capture.shallow import shallow_copy
from freeloc_fx.compiler.capture.state import WINDOWS, State, lock_of, state_of
from freeloc_fx.errors import CaptureError, FreelocError, TransformError
from freeloc_fx.method.checks import is_whole
from freeloc_fx.planning.plan import Plan
from freeloc_fx.planning.profile import Profile
from freeloc_fx.versions import warn_of_newer

from .backend import Backend, PlanReady
from .inner import compiler
from .listing import Listing
from .pipeline import Rewriting, check_names
from .runner import PassRun

__all__ = ["choose_profile", "passes_run", "plan", "plans", "rehearse", "restore", "transform"]


def choose_profile(model: nn.Module, profile: Profile | str | Path | None) -> Profile:
    """The profile that a model gets.

    Args:
        model: an untransformed model.
        profile: a Profile, a shipped profile's name, a path; None: the shipped one for this model.

    Returns:
        The profile, which fits the model.

    Raises:
        ProfileError: there is none, it is malformed, or it names layers that the model does not have.
        PlanError: it is for another model.
        TypeError: it is none of these.
    """
    if profile is None:
        return Profile.for_model(model)
    if isinstance(profile, (str, Path)):
        profile = Profile.load(profile)
    if not isinstance(profile, Profile):
        raise TypeError(f"profile: expected a Profile, a shipped name or a path, found {type(profile).__name__}")
    profile.check_model(model)
    layers = layer_table(model)
    if layers:
        profile.check_layers(len(layers))
    return profile


def transform(
    model: Model,
    profile: Profile | str | Path | None = None,
    *,
    backend: str | Callable[..., Any] | Mapping[str, Any] = "inductor",
    attention: str | Mapping[str, Any] = "auto",
    verify: bool = False,
    disable_passes: Collection[str] = (),
) -> Model:
    """Make a model that generates longer video than it was trained on; it shares the weights of the untouched one.

    Nothing is captured or compiled until the first call; each input shape is captured once. Within the profile's
    trained length the model runs unchanged, bitwise. For inference only: outputs carry no gradient.

    Args:
        model: a diffusers video transformer (or any module whose self-attention has temporal RoPE).
        profile: a Profile, a shipped profile's name, a path; default `Profile.for_model(model)`.
        backend: any torch.compile backend by name or as a callable, a mapping of torch.compile's "backend", "mode" and
            "options", or "eager" to run the rewritten graph as it is.
        attention: how long attention runs: "auto" (on CUDA flex if Inductor compiles, else calls; on CPU
            tiles, or calls where they are measured to be clearly quicker), "flex" (rotary and FlexAttention nodes in
            the graph, for CUDA), "tiles" (one C++ kernel on CPU, else as "calls"), "calls" (SDPA calls on views),
            "reference" (literal and slow, for checking).
            Choices about FlexAttention as a mapping: {"flex": {"kernel_options": ..., "block": ..., "heads": ...}}, see
            `freeloc_fx.attention.flex.options.FlexOptions`.
        verify: after each pass also propagate shapes and dtypes again; check each long attention against the reference
            on sampled frames the first time it runs with a shape and dtype.
        disable_passes: for debugging: names of passes that do not run, out of `freeloc_fx.compiler.pipeline.PASSES`.

    Returns:
        A model of the same class.

    Raises:
        TypeError: `model`, `profile` or `verify` is of another type.
        TransformError: the model is already transformed or compiled.
        ProfileError: no profile fits, or it names layers that this model does not have.
        PlanError: the profile is for another model, or, on the first call, gives a strategy to a layer without a site.
        ValueError: an unknown backend, attention or pass; CUDA graphs beside a profile whose strategies follow steps.
        CaptureError: the model is autoregressive; on the first call with a shape: no attention that can be rewritten.
        LengthError: on the first call with a shape: the model's own position tables end before.
        StrategyError: on the first call with a shape: settings that do not fit this length.
        VerificationError: with `verify`, on the first call with a shape: a pass or a long attention is wrong.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    if state_of(model) is not None:
        raise TransformError(
            f"this {type(model).__name__} is already transformed; restore(model) gives the original back"
        )
    if compiled_call(model) is not None or unwrapped(model) is not model:
        raise TransformError(
            f"this {type(model).__name__} is already compiled; "
            "transform the uncompiled model and choose its backend here"
        )
    _check_whole(model)
    warn_of_newer()
    check_forward(model)
    check_one_clip(model)
    Rewriting.read(attention)
    if not isinstance(verify, bool):
        raise TypeError(f"verify: expected True or False, found {verify!r}")
    disabled = check_names(disable_passes)
    chosen = choose_profile(model, profile)
    inner = compiler(backend)
    check_mode(inner, chosen)
    result = shallow_copy(model)
    made = Backend(chosen, layer_table(model), inner, attention, verify, model=result, disabled=disabled)
    return attach(result, model, made)


def _state(model: nn.Module) -> State:
    state = state_of(model)
    if state is None:
        raise TransformError(f"this {type(model).__name__} is not a transformed model")
    return state


def restore(model: Model) -> Model:
    """The original of a transformed model, with what was put onto the transformed one since: adapters, caches.

    Args:
        model: what `transform` returned.

    Returns:
        The model that `transform` was given.

    Raises:
        TransformError: the model is not transformed, its tokens were shared out after it was, or hooks were put on it
            or taken off it since.
    """
    state = _state(model)
    if (alone := sharding_hooks(model)) and len(sharding_hooks(state.original)) < len(alone):
        raise TransformError(
            f"context parallelism was enabled on this transformed {type(model).__name__}, whose hooks the original "
            "shares but for those on the model itself; expected enable_parallelism before transform"
        )
    state.additions.give_back(state.original, model)
    return state.original  # type: ignore[return-value]


def plans(model: nn.Module) -> list[Plan]:
    """The plans that a transformed model has made so far, one for each captured input shape; the newest 128.

    A model that is given positions as numbers, such as keyframes', makes one for each set of them, too.

    Args:
        model: what `transform` returned.

    Returns:
        The plans in the order in which they were made.

    Raises:
        TransformError: the model is not transformed.
    """
    return list(_state(model).backend.plans)


def passes_run(model: nn.Module) -> list[list[PassRun]]:
    """The passes that ran over each graph that a transformed model has captured so far; the newest 128.

    Args:
        model: what `transform` returned.

    Returns:
        For each captured graph its passes in order: name, how many sites matched, seconds, how operations changed.

    Raises:
        TransformError: the model is not transformed.
    """
    return [list(runs) for runs in _state(model).backend.passes]


def plan(
    model: nn.Module,
    profile: Profile | str | Path | None = None,
    *,
    frames: int,
    height: int,
    width: int,
    inputs: Mapping[str, Any] | None = None,
) -> Plan:
    """What `transform` would do for one input size, without running the model.

    Args:
        model: a video transformer, transformed or not.
        profile: as of `transform`; default, for a transformed model, its own.
        frames: latent frames of the model's input.
        height: latent height of the model's input.
        width: latent width of the model's input.
        inputs: forward arguments for which no example can be made from the model's configuration.

    Returns:
        The plan.

    Raises:
        ValueError: a size is not a positive integer.
        TransformError: the model runs in context windows.
        CaptureError: no attention that can be rewritten was found; the message collects the reasons.
        LengthError: the model's own position tables end before.
        StrategyError: settings that do not fit this length.
        TypeError: as `transform`.
        ProfileError: as `transform`.
        PlanError: as `transform`.
    """
    return rehearse(model, profile, frames=frames, height=height, width=width, inputs=inputs)[0]


def _check_whole(model: nn.Module) -> None:
    """Refuse a model whose calls are of parts of a clip."""
    if WINDOWS in vars(model):
        raise TransformError(
            f"this {type(model).__name__} runs in context windows, whose calls are of the model inside; transform that "
            "one: context_windows(transform(model), ...)"
        )


@contextmanager
def _explained(model: nn.Module, size: tuple[int, int, int]) -> Iterator[None]:
    """Context: what a model's own code raises on example inputs is said to be that."""
    try:
        yield
    except (FreelocError, PlanReady):
        raise
    except Exception as error:
        frames, height, width = size
        raise CaptureError(
            f"{type(model).__name__}: its forward failed on example inputs of {frames} x {height} x {width} latents "
            f"with {type(error).__name__}: {error}; expected a size that the model takes, of whole "
            "patches, or arguments for its forward in plan(..., inputs={...})"
        ) from error


def rehearse(
    model: nn.Module,
    profile: Profile | str | Path | None = None,
    *,
    frames: int,
    height: int,
    width: int,
    inputs: Mapping[str, Any] | None = None,
    attention: str | Mapping[str, Any] = "auto",
    listings: list[Listing] | None = None,
) -> tuple[Plan, list[list[PassRun]]]:
    """`plan`, and how the passes got there: the graph is captured and rewritten, nothing is compiled or run.

    Args:
        model: as of `plan`, like the others.
        profile: as of `plan`.
        frames: as of `plan`.
        height: as of `plan`.
        width: as of `plan`.
        inputs: as of `plan`.
        attention: as of `transform`.
        listings: gets the first rewritten block of each captured graph as text; None where nobody wants it.

    Returns:
        The plan, and for each captured graph the passes that ran over it, in order.

    Raises:
        FreelocError: as `plan`.
    """
    for name, value in (("frames", frames), ("height", height), ("width", width)):
        if not is_whole(value, 1):
            raise ValueError(f"{name}: expected a positive integer, found {value!r}")
    state = state_of(model)
    if state is not None:
        model, profile = state.original, profile if profile is not None else state.backend.profile
    _check_whole(model)
    check_one_clip(model)
    check_limits(model, frames, height, width)
    copied = shallow_copy(model)
    chosen = choose_profile(model, profile)
    made = Backend(chosen, layer_table(model), None, attention, plan_only=True, model=copied)
    made.listings = listings
    arguments = example_inputs(model, frames, height, width, inputs)
    known = facts_of(model, arguments)
    with lock_of(model), _explained(model, (frames, height, width)):
        # While a call is running it has put compiled calls of its own on the blocks.
        found = plan_of_call(model, copied, made, known, arguments)
    return found, made.passes
