"""`transform`, `restore` and `plan`: the public way in."""

from __future__ import annotations

import copy
import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, InternalTorchDynamoError, UncapturedHigherOrderOpError

from .attention import op
from .attention.spec import denoising_step
from .backend import Backend, PlanReady, compiler, layer_table
from .errors import CaptureError, FreelocError, TransformError
from .hooks import check_blocks, without_caches
from .inputs import call_arguments, check_limits, check_one_clip, example_inputs, integer_size, latent_size
from .plan import Plan
from .profile import Profile
from .regions import NO_SINGLE_GRAPH, Regions, first_line
from .steps import StepCounter, follows_steps
from .trace_once import Marks, StampError

__all__ = ["plan", "plans", "restore", "transform"]

Model = TypeVar("Model", bound=nn.Module)

log = logging.getLogger("freeloc_fx")

HOOKED = "the blocks carry hooks, which stay outside the graphs"

RECOMPILE_LIMIT = 256
"""Input shapes (and adapters) one transformed model may see. Past Dynamo's own limit of 8 it would silently run the
untransformed model; here the limit is higher and passing it is an error."""


class _State:
    """Kept on a transformed model: the original and the backend. Refuses to be copied or pickled, since a copy would
    silently lose the rewrite."""

    def __init__(self, original: nn.Module, result: nn.Module, backend: Backend) -> None:
        self.original, self.backend = original, backend
        self.result = weakref.ref(result)
        self.regions: Regions | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _State:
        raise TransformError("a transformed model cannot be deep-copied: copy restore(model) and transform the copy")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TransformError("a transformed model cannot be pickled: save restore(model), or use save_pretrained")


def state_of(model: nn.Module) -> _State | None:
    """What transform keeps on its result; None for a model that is not transformed.

    A shallow copy of a transformed model carries the record but not the compiled call: it is not transformed.
    """
    found = model.__dict__.get("_freeloc")
    return found if isinstance(found, _State) and found.result() is model else None


def _profile(model: nn.Module, profile: Profile | str | Path | None) -> Profile:
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
    attention: str = "auto",
    verify: bool = False,
) -> Model:
    """A model that generates video longer than it was trained on. It shares the weights; the original is untouched.

    Nothing is captured or compiled until the first call; each input shape is captured once. Within the profile's
    trained length the model runs unchanged, bitwise. For inference only: outputs carry no gradient.

    Args:
        model: a diffusers video transformer (or any module whose self-attention has temporal RoPE).
        profile: a Profile, a shipped profile's name, a path; default `Profile.for_model(model)`.
        backend: any torch.compile backend by name or as a callable, a mapping of torch.compile's "backend", "mode" and
            "options", or "eager" to run the rewritten graph as it is.
        attention: how long attention runs: "auto" (flex on CUDA, tiles elsewhere), "flex", "tiles" (one
            C++ kernel on CPU, else as "calls"), "calls" (SDPA calls on views), "reference".
        verify: after each pass also propagate shapes and dtypes again; check each long attention against the reference
            on sampled frames the first time it runs.

    Returns: a model of the same class.

    Raises:
        TransformError: the model is already transformed or compiled.
        ProfileError: the profile is for another model, or names layers that this one does not have.
        ValueError: unknown backend or attention.
        CaptureError: the model is autoregressive.
        On the first call with a shape: CaptureError, LengthError, SolveError.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    if state_of(model) is not None:
        raise TransformError(
            f"this {type(model).__name__} is already transformed; restore(model) gives the original back"
        )
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise TransformError(
            f"this {type(model).__name__} is already compiled; "
            "transform the uncompiled model and choose its backend here"
        )
    check_one_clip(model)
    op.choose(attention, torch.device("cpu"))
    chosen = _profile(model, profile)
    _check_mode(backend, chosen)
    made = Backend(chosen, layer_table(model), compiler(backend), attention, verify)
    return attach(copy.copy(model), model, made)


def attach(result: Model, original: Model, made: Backend) -> Model:
    """Give a shallow copy of a model our backend: its calls are captured and run through it from now on."""
    state = _State(original, result, made)
    result.__dict__["_freeloc"] = state
    result.__dict__["compile"] = _choose_backend(result, made)
    gate = _gate(result)
    compiled = torch.compile(result._call_impl, backend=made, fullgraph=True, dynamic=False)
    marks = Marks(result.get_submodule(path) for path in made.layers)
    counter = StepCounter() if follows_steps(made.profile) else None

    @torch.compiler.disable(reason="a transformed model compiles itself; choose its backend in transform")
    def call(*args: Any, **kwargs: Any) -> Any:
        _describe(result, made, args, kwargs)
        if check_blocks((path, result.get_submodule(path)) for path in made.layers) and state.regions is None:
            state.regions = Regions(result, made, HOOKED)
            log.info("%s: captured block by block: %s", type(result).__name__, HOOKED)
        step = 0 if counter is None else counter.see(call_arguments(result, args, kwargs))
        with torch.no_grad(), _capturing(made), denoising_step(step), gate.open():
            if state.regions is None:
                try:
                    return _marked(marks, compiled, *args, **kwargs)
                except NO_SINGLE_GRAPH as why:
                    state.regions = Regions(result, made, why)
                    log.info("%s: captured block by block: %s", type(result).__name__, why)
            output, found = state.regions.run(*args, **kwargs)
        if found is not None:
            made.plans.append(found)
        return output

    result._compiled_call_impl = call
    return result


class _Gate:
    """Sends every call of a model's forward through our own, but for those that our own makes.

    Dynamo steps over a module's compiled call into its forward, so somebody's torch.compile around a transformed model
    would run it untransformed without a word; so would a direct call of forward.
    """

    def __init__(self, result: nn.Module) -> None:
        self.own = result.__dict__.get("forward")  # of a hook that was there before us
        self.running = False
        self.result = weakref.ref(result)
        plain, model = result.forward, cast("Any", result)  # whose compiled call is there by the time of a call

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return plain(*args, **kwargs) if self.running else model._compiled_call_impl(*args, **kwargs)

        self.forward = forward
        result.__dict__["forward"] = forward

    @contextmanager
    def open(self) -> Iterator[None]:
        """The model's own forward in place, as a capture must see it; under later hooks, ours lets through."""
        result = self.result()
        on_top = result is not None and result.__dict__.get("forward") is self.forward
        self.running = True
        if result is not None and on_top:
            del result.__dict__["forward"]
            if self.own is not None:
                result.__dict__["forward"] = self.own
        try:
            yield
        finally:
            self.running = False
            if result is not None and on_top:
                result.__dict__["forward"] = self.forward


def _gate(result: nn.Module) -> _Gate:
    """The gate of a model, made at its first attach."""
    known: _Gate | None = result.__dict__.get("_freeloc_gate")
    if known is None or known.result() is not result:
        if known is not None and result.__dict__.get("forward") is known.forward:
            del result.__dict__["forward"]  # a shallow copy of a transformed model
        known = result.__dict__["_freeloc_gate"] = _Gate(result)
    return known


def _choose_backend(result: nn.Module, made: Backend) -> Callable[..., None]:
    def compile(*args: Any, **kwargs: Any) -> None:
        """`nn.Module.compile` of a transformed model: the same as `transform(..., backend=...)`.

        Args: torch.compile's backend, mode and options. fullgraph and dynamic say nothing new: a transformed model is
            captured whole where it can be, and once for each shape.

        Raises:
            TransformError: any other argument. ValueError: an unknown backend.
        """
        unknown = kwargs.keys() - {"backend", "mode", "options", "fullgraph", "dynamic"}
        if args or unknown:
            raise TransformError(
                "compile of a transformed model: expected backend, mode, options by name, found "
                f"{[*args, *sorted(unknown)]}"
            )
        chosen = {k: v for k, v in kwargs.items() if k in ("backend", "mode", "options") and v is not None}
        _check_mode(chosen, made.profile)
        again = Backend(made.profile, made.layers, compiler(chosen), made.attention, made.verify)
        again.plans = made.plans
        state = state_of(result)
        assert state is not None
        attach(result, state.original, again)

    return compile


def _check_mode(backend: str | Callable[..., Any] | Mapping[str, Any], profile: Profile) -> None:
    mode = backend.get("mode") if isinstance(backend, Mapping) else backend
    if mode in ("reduce-overhead", "max-autotune", "cudagraphs") and follows_steps(profile):
        raise ValueError(
            f"backend: {mode!r} records CUDA graphs, which would repeat the first step's attention; profile "
            f"{profile.name!r} follows denoising steps: expected another mode, e.g. 'max-autotune-no-cudagraphs'"
        )


def _describe(model: nn.Module, made: Backend, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Tell the backend what a call says about its latents; refuse sizes that the model cannot hold.

    Raises:
        LengthError: the model's own position tables end before.
    """
    given = call_arguments(model, args, kwargs)
    size = latent_size(given, model)
    if size is not None:
        check_limits(model, *size)
    made.size = integer_size(given)
    made.shapes = tuple(tuple(v.shape) for v in given.values() if isinstance(v, torch.Tensor) and v.ndim == 5)


def _capturing(made: Backend) -> Any:
    """Dynamo's settings for a capture: enough entries for every shape (and block), an error past them, sizes that
    depend on data as symbols."""
    limit = RECOMPILE_LIMIT * (1 + len(made.layers))
    return torch._dynamo.config.patch(
        recompile_limit=limit,
        accumulated_recompile_limit=limit,
        fail_on_recompile_limit_hit=True,
        capture_dynamic_output_shape_ops=True,
    )


def _marked(marks: Marks, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call with equal blocks traced once; where Dynamo cannot do that, with each of them traced."""
    if marks.active:
        try:
            with marks.on():
                return _unwrapped(compiled, *args, **kwargs)
        except (*NO_SINGLE_GRAPH, InternalTorchDynamoError, UncapturedHigherOrderOpError, StampError) as why:
            marks.active = False
            log.info("each block is traced: %s", _reason(why))
    return _unwrapped(compiled, *args, **kwargs)


def _reason(error: Exception) -> str:
    """What an error says first, or of a region that cannot be one, why."""
    _, _, said = str(error).partition("Explanation: ")
    return first_line(said or error)


def _unwrapped(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call, and raise our own errors as themselves rather than inside Dynamo's."""
    try:
        return compiled(*args, **kwargs)
    except BackendCompilerFailed as failure:
        inner = failure.inner_exception
        if isinstance(inner, (FreelocError, PlanReady)):
            raise inner from None
        raise


def restore(model: Model) -> Model:
    """The original of a transformed model.

    Raises:
        TransformError: the model is not transformed.
    """
    state = state_of(model)
    if state is None:
        raise TransformError(f"this {type(model).__name__} is not a transformed model")
    # Adapters sit on the shared modules; the original must know of those that were loaded or unloaded here.
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in model.__dict__:
            state.original.__dict__[name] = model.__dict__[name]
        else:
            state.original.__dict__.pop(name, None)
    return state.original  # type: ignore[return-value]


def plans(model: nn.Module) -> list[Plan]:
    """The plans that a transformed model has made so far, one for each captured input shape.

    Raises:
        TransformError: the model is not transformed.
    """
    state = state_of(model)
    if state is None:
        raise TransformError(f"this {type(model).__name__} is not a transformed model")
    return list(state.backend.plans)


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
        frames, height, width: latent sizes of the model's input.
        inputs: forward arguments for which no example can be made from the model's configuration.

    Raises: as `transform`, at once.
    """
    for name, value in (("frames", frames), ("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, found {value!r}")
    state = state_of(model)
    if state is not None:
        model, profile = state.original, profile if profile is not None else state.backend.profile
    check_one_clip(model)
    check_limits(model, frames, height, width)
    made = Backend(_profile(model, profile), layer_table(model), None, plan_only=True)
    arguments = example_inputs(model, frames, height, width, inputs)
    _describe(model, made, (), arguments)
    blocks = [(path, model.get_submodule(path)) for path in made.layers]
    check_blocks(blocks)
    with without_caches(model), torch.no_grad(), _capturing(made):
        try:
            if check_blocks(blocks):
                _, found = Regions(model, made, HOOKED).run(**arguments)
            else:
                compiled = torch.compile(copy.copy(model)._call_impl, backend=made, fullgraph=True, dynamic=False)
                _marked(Marks(block for _, block in blocks), compiled, **arguments)
                found = None
        except PlanReady as ready:
            return ready.plan
        except NO_SINGLE_GRAPH as why:
            _, found = Regions(model, made, why).run(**arguments)
    if found is not None:
        return found
    raise CaptureError(f"{type(model).__name__}: the forward pass ran without anything to capture")
