"""Give a model our backend: its calls are captured and run through it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from freeloc_fx.attention.running import Running, running, within
from freeloc_fx.compat import COMPILED_CALL, dynamo_errors, dynamo_switched_off, is_compiled_function, uses_cuda_graphs
from freeloc_fx.compiler.backend import Backend
from freeloc_fx.compiler.inner import compiler
from freeloc_fx.errors import CaptureError, TransformError
from freeloc_fx.method.timeline import TextSchedule
from freeloc_fx.planning.profile import Profile

from .blocks import BlockByBlock, first_line
from .captures import Captures, Taken
from .conventions import call_arguments
from .facts import calling, check_captured, facts_of
from .gate import gate_of
from .hooks import HOOKED, blocks_of, check_blocks, check_devices, hooks_hidden, outside_hooks
from .loop import running_timesteps
from .parallel import token_group_of
from .state import State, lock_of, state_of
from .steps import StepCounter, follows_steps
from .texts import schedule_of_call
from .timed_texts import refuse_timed_texts
from .whole import call_whole, capture_settings

__all__ = ["Model", "attach", "check_forward", "check_mode"]

Model = TypeVar("Model", bound=nn.Module)

log = logging.getLogger("freeloc_fx")


def attach(result: Model, original: Model, backend: Backend) -> Model:
    """Give a shallow copy of a model our backend: its calls are captured and run through it from now on.

    Calls of all models that share the original's weights wait for each other; the step is the generation's own.

    Args:
        result: the copy, or a model that has a backend already.
        original: the untouched model.
        backend: captures and compiles.

    Returns:
        `result`.
    """
    blocks_of(result, backend.layers)
    state = State(original, result, backend)
    compile = _choose_backend(result, backend)
    result.__dict__["compile"] = compile
    if hasattr(result, "compile_repeated_blocks"):  # of diffusers; equal blocks are compiled once anyway
        result.__dict__["compile_repeated_blocks"] = compile
    gate, lock = gate_of(result), lock_of(original)
    captures = Captures(result, backend)
    counter = StepCounter() if follows_steps(backend.profile) else None

    def run_scheduled(taken: Taken, texts: TextSchedule, *args: Any, **kwargs: Any) -> Any:
        if taken.by_block is not None:
            raise taken.scheduled.refuse_blocks(taken.by_block.reason)
        try:
            output = call_whole(taken.marks, taken.scheduled.call_for(texts), *args, **kwargs)
        except dynamo_errors("NO_SINGLE_GRAPH") as why:
            raise taken.scheduled.refuse_blocks(first_line(why)) from why
        check_captured(type(result).__name__, 0)
        return output

    def run(taken: Taken, *args: Any, **kwargs: Any) -> Any:
        by_block, reason = taken.by_block, ""
        if by_block is None:
            try:
                output = call_whole(taken.marks, taken.compiled, *args, **kwargs)
                check_captured(type(result).__name__, 0)
                return output
            except dynamo_errors("NO_SINGLE_GRAPH") as why:
                by_block, reason = BlockByBlock(result, taken.backend, why), first_line(why)
        output, found = by_block.run(*args, **kwargs)
        if found is not None:
            backend.plans.append(found)
        if taken.by_block is None:
            taken.by_block = by_block  # only now: what this call failed for may be the call's own
            log.info("%s: captured block by block: %s", type(result).__name__, reason)
        return output

    @torch.compiler.disable(reason="a transformed model compiles itself; choose its backend in transform")
    def call(*args: Any, **kwargs: Any) -> Any:
        if switch := dynamo_switched_off(entirely=True):
            raise CaptureError(
                f"{type(result).__name__}: {switch} keeps torch.compile from capturing, so this transformed model "
                "would run untransformed; expected it unset or left, or restore(model) to run the original"
            )
        check_forward(result)
        check_devices(result)
        given = call_arguments(result, args, kwargs)
        refuse_timed_texts(type(result).__name__, given)
        state.warn_of_gradients(given)
        known = facts_of(result, given)
        told = running()
        texts = schedule_of_call(type(result).__name__, told.texts, given)
        step = told.step if counter is None or told.told else counter.see(given, running_timesteps(result))
        with lock:
            state.calls += 1
            before = backend.plans.total
            group = token_group_of(result)
            blocks = blocks_of(result, backend.layers)
            hooks = check_blocks(blocks)
            taken = captures.now(dict(blocks))
            if hooks and taken.by_block is None and group is None:
                taken.by_block = BlockByBlock(result, taken.backend, HOOKED)
                log.info("%s: captured block by block: %s", type(result).__name__, HOOKED)
            with (
                torch.no_grad(),
                capture_settings(backend),
                calling(known),
                within(Running(step, told.told, backend.checked, backend.choices, texts)),
                gate.open(),
            ):
                if texts is not None:
                    taken.scheduled.refuse_ranks(group)
                    output = run_scheduled(taken, texts, *args, **kwargs)
                elif group is not None:
                    output = taken.shared.run(group, known, given, args, kwargs)
                else:
                    output = run(taken, *args, **kwargs)
            state.units.look_at(backend.plans.since(before))
        return output

    @torch.compiler.disable(reason="a transformed model compiles itself; choose its backend in transform")
    def hooked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return outside_hooks(result, call, args, kwargs)

    def unhooked(*args: Any, **kwargs: Any) -> Any:
        with lock, hooks_hidden(result):
            return call(*args, **kwargs)

    gate.call = unhooked
    setattr(result, COMPILED_CALL, hooked)
    return result


def _choose_backend(result: nn.Module, made: Backend) -> Callable[..., None]:
    def compile(*args: Any, **kwargs: Any) -> None:
        """`nn.Module.compile` of a transformed model: the same as `transform(..., backend=...)`.

        Args:
            *args: none may be given.
            **kwargs: torch.compile's backend, mode and options. fullgraph and dynamic say nothing new: a transformed
                model is captured whole where it can be, and once for each shape.

        Raises:
            TransformError: any other argument.
            ValueError: an unknown backend.
        """
        unknown = kwargs.keys() - {"backend", "mode", "options", "fullgraph", "dynamic"}
        if args or unknown:
            raise TransformError(
                "compile of a transformed model: expected backend, mode, options by name, found "
                f"{[*args, *sorted(unknown)]}"
            )
        chosen = {k: v for k, v in kwargs.items() if k in ("backend", "mode", "options") and v is not None}
        inner = compiler(chosen)
        check_mode(inner, made.profile)
        state = state_of(result)
        assert state is not None
        attach(result, state.original, made.with_compiler(inner))

    return compile


def check_forward(model: nn.Module) -> None:
    """Refuse a model whose forward is compiled on its own: torch.compile would step over it, and us, without a word.

    Args:
        model: to be transformed, or transformed.

    Raises:
        TransformError: names the model.
    """
    if is_compiled_function(vars(model).get("forward")):
        raise TransformError(
            f"the forward of this {type(model).__name__} is compiled on its own; expected the model's own forward, and "
            "the backend chosen in transform"
        )


def check_mode(inner: Callable[..., Any] | None, profile: Profile) -> None:
    """Refuse a compiler that would repeat the first denoising step where the profile follows steps.

    Args:
        inner: from `freeloc_fx.compiler.inner.compiler`.
        profile: that the model gets.

    Raises:
        ValueError: the compiler records CUDA graphs and the profile follows denoising steps.
    """
    if uses_cuda_graphs(inner) and follows_steps(profile):
        raise ValueError(
            "backend: this compiler records CUDA graphs, which would repeat the first step's attention; profile "
            f"{profile.name!r} follows denoising steps: expected another mode, e.g. 'max-autotune-no-cudagraphs'"
        )
