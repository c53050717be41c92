"""What the call that is running says about its latents, for whoever captures it; and which captured graphs it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import dynamo_switched_off
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.capture import CallFacts

from .conventions import as_clips, check_limits, integer_size, known_patches, latent_size

__all__ = ["calling", "check_captured", "facts", "facts_of", "graphs_run", "noted", "running_call"]

_CALL: ContextVar[CallFacts | None] = ContextVar("freeloc_fx_call", default=None)
_RUN: ContextVar[list[None] | None] = ContextVar("freeloc_fx_graphs_run", default=None)
"""One entry for each captured graph that the running call has run."""


def facts_of(model: nn.Module, given: Mapping[str, Any]) -> CallFacts:
    """What a call says about its latents; refuses sizes that the model cannot hold.

    Args:
        model: that is called.
        given: forward's arguments by name.

    Returns:
        The facts.

    Raises:
        LengthError: the model's own position tables end before.
    """
    size = latent_size(given, model)
    if size is not None:
        check_limits(model, *size)
    shapes = tuple(tuple(clips.shape) for v in given.values() if (clips := as_clips(v)) is not None)
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if there else 1
    return CallFacts(integer_size(given), shapes, _grid(model, size, ranks), ranks)


def _grid(model: nn.Module, size: tuple[int, int, int] | None, ranks: int) -> tuple[int, int, int] | None:
    """Token frames, rows and columns. On one of several ranks a model without a patch size counts as one of single
    latents: fewer tokens than latents may be larger patches, or a rank's share of the tokens."""
    known = known_patches(model) or ((1, 1, 1) if ranks > 1 else None)
    if size is None or known is None:
        return None
    frames, height, width = (count // patch for count, patch in zip(size, known, strict=True))
    return frames, height, width


def facts() -> CallFacts:
    """The facts of the call that is running in this thread; empty ones outside of any."""
    return _CALL.get() or CallFacts()


@contextmanager
def calling(known: CallFacts) -> Iterator[None]:
    """Context: what is captured inside was called like this.

    Args:
        known: what `facts` gives inside.
    """
    token, graphs = _CALL.set(known), _RUN.set([])
    try:
        yield
    finally:
        _CALL.reset(token)
        _RUN.reset(graphs)


def running_call() -> object:
    """What stands for the call that is running in this thread, another object for each; None outside of any."""
    return _RUN.get()


def graphs_run() -> int:
    """How many captured graphs the call that is running in this thread has run so far."""
    return len(_RUN.get() or ())


def check_captured(what: str, before: int) -> None:
    """Refuse a call whose result is that of the model's own code, since nothing captured it.

    Args:
        what: was called, a class name or a module's path.
        before: what `graphs_run` gave before the call.

    Raises:
        CaptureError: names the switch that keeps torch.compile from capturing, where one is known.
    """
    if graphs_run() == before:
        switch = dynamo_switched_off() or "something that is not known"
        raise CaptureError(
            f"{what}: {switch} keeps torch.compile from capturing, so this transformed model ran untransformed; "
            "expected it unset or left, or restore(model) to run the original"
        )


def noted(run: Callable[..., Any]) -> Callable[..., Any]:
    """A captured graph, as compiled, that says when it runs.

    Whatever keeps torch.compile from capturing runs the model's own code instead, without a word.

    Args:
        run: the graph.
    """

    def call(*inputs: Any) -> Any:
        found = _RUN.get()
        if found is not None:
            found.append(None)
        return run(*inputs)

    return call
