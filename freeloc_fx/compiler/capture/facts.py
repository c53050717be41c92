"""What the call that is running says about its latents, for whoever captures it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from freeloc_fx.graph.capture import CallFacts

from .conventions import check_limits, config_of, integer_size, latent_size, patches

__all__ = ["calling", "facts", "facts_of"]

_CALL: ContextVar[CallFacts | None] = ContextVar("freeloc_fx_call", default=None)


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
    shapes = tuple(tuple(v.shape) for v in given.values() if isinstance(v, torch.Tensor) and v.ndim == 5)
    return CallFacts(integer_size(given), shapes, _grid(model, size))


def _grid(model: nn.Module, size: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
    if size is None or config_of(model).get("patch_size") is None:
        return None
    frames, height, width = (count // patch for count, patch in zip(size, patches(model), strict=True))
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
    token = _CALL.set(known)
    try:
        yield
    finally:
        _CALL.reset(token)
