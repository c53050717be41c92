"""Capture a model's call as one graph, equal blocks traced once where that can be."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from freeloc_fx.compat import dynamo_errors, dynamo_settings, without_default_cpu
from freeloc_fx.compiler.backend import Backend, PlanReady
from freeloc_fx.errors import FreelocError, StampError

from .blocks import first_line
from .imports import let_imports_through
from .kernels import let_kernels_through
from .trace_once import Marks

__all__ = ["RECOMPILE_LIMIT", "call_whole", "capture_settings"]

log = logging.getLogger("freeloc_fx")

RECOMPILE_LIMIT = 256
"""Input shapes (and adapters) one transformed model may see. Past Dynamo's own limit of 8 it would silently run the
untransformed model; here the limit is higher and passing it is an error."""


@contextmanager
def capture_settings(backend: Backend) -> Iterator[None]:
    """Context: Dynamo's settings for a capture.

    Enough entries for every shape (and block), an error past them, sizes that depend on data as symbols, weights as
    inputs, no mode in the way that changes nothing, and no warnings of the model's own, which Dynamo cannot trace.

    Args:
        backend: of the model; it knows how many blocks there are.
    """
    let_imports_through()
    let_kernels_through()
    limit = RECOMPILE_LIMIT * (1 + len(backend.layers))
    settings = dynamo_settings(
        recompile_limit=limit,
        accumulated_recompile_limit=limit,
        fail_on_recompile_limit_hit=True,
        capture_dynamic_output_shape_ops=True,
        ignore_logging_functions={warnings.warn},
    )
    with settings, without_default_cpu():
        yield


def call_whole(marks: Marks, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call with equal blocks traced once; where Dynamo cannot do that, with each of them traced.

    Args:
        marks: of the model's blocks.
        compiled: the model's call by way of torch.compile.
        *args: of the call.
        **kwargs: of the call.

    Returns:
        The model's result.

    Raises:
        FreelocError: as our backend raised it.
    """
    if marks.active:
        try:
            with marks.on():
                return _unwrapped(compiled, *args, **kwargs)
        except dynamo_errors("NO_SINGLE_GRAPH") + dynamo_errors("CANNOT_STAMP") + (StampError,) as why:
            reason = _reason(why)
        output = _unwrapped(compiled, *args, **kwargs)
        marks.active = False  # only now: what this call failed for may be the call's own
        log.info("each block is traced: %s", reason)
        return output
    return _unwrapped(compiled, *args, **kwargs)


def _reason(error: Exception) -> str:
    """What an error says first, or of a region that cannot be one, why."""
    _, _, said = str(error).partition("Explanation: ")
    return first_line(said or error)


def _unwrapped(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call, and raise our own errors as themselves rather than inside Dynamo's."""
    try:
        return compiled(*args, **kwargs)
    except dynamo_errors("BACKEND_FAILED") as failure:
        inner = getattr(failure, "inner_exception", None)
        if isinstance(inner, (FreelocError, PlanReady)):
            raise inner from None
        raise
