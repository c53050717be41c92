"""Calls of an enabled pipeline, watched: texts over time reach its models, and one that never calls them says so."""

from __future__ import annotations

import functools
from typing import Any

from .hints import check_references, checking_calls
from .telling import telling, without_schedule

__all__ = ["is_watched", "unwatch", "watch"]

_PLAIN = "_freeloc_plain"


def watch(pipe: Any) -> None:
    """Tell a pipeline's models of texts over time in each call, and check afterwards whether they were called.

    Python looks `__call__` up on the class, so the pipeline gets a subclass of its own class, of the same name.

    Args:
        pipe: a diffusers pipeline; one that cannot be called, or whose class takes no subclass, stays as it is.
    """
    plain = type(pipe)
    if not callable(pipe) or _PLAIN in vars(plain):
        return

    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_references(self, args, kwargs)
        with checking_calls(self), telling(self, args, kwargs):
            named = {name: without_schedule(value) for name, value in kwargs.items()}
            return plain.__call__(self, *map(without_schedule, args), **named)

    names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    try:
        pipe.__class__ = type(plain.__name__, (plain,), {**names, "__call__": call, _PLAIN: plain})
    except TypeError:  # a final class, or one with slots
        return


def is_watched(pipe: Any) -> bool:
    """Whether `watch` has taken hold of a pipeline.

    Args:
        pipe: a diffusers pipeline.
    """
    return _PLAIN in vars(type(pipe))


def unwatch(pipe: Any) -> None:
    """Give a watched pipeline its own class back, unless somebody has changed it since.

    Args:
        pipe: what `watch` was given.
    """
    plain = vars(type(pipe)).get(_PLAIN)
    if plain is not None:
        pipe.__class__ = plain
