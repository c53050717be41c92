"""Calls of an enabled pipeline, watched: a pipeline that never calls its transformed model says so afterwards."""

from __future__ import annotations

import functools
from typing import Any

from .hints import checking_calls

__all__ = ["unwatch", "watch"]

_PLAIN = "_freeloc_plain"


def watch(pipe: Any) -> None:
    """Check after each call of a pipeline whether its transformed model was called.

    Python looks `__call__` up on the class, so the pipeline gets a subclass of its own class, of the same name.

    Args:
        pipe: a diffusers pipeline; one that cannot be called, or whose class takes no subclass, stays as it is.
    """
    plain = type(pipe)
    if not callable(pipe) or _PLAIN in vars(plain):
        return

    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with checking_calls(self):
            return plain.__call__(self, *args, **kwargs)

    names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    try:
        pipe.__class__ = type(plain.__name__, (plain,), {**names, "__call__": call, _PLAIN: plain})
    except TypeError:  # a final class, or one with slots
        return


def unwatch(pipe: Any) -> None:
    """Give a watched pipeline its own class back, unless somebody has changed it since.

    Args:
        pipe: what `watch` was given.
    """
    plain = vars(type(pipe)).get(_PLAIN)
    if plain is not None:
        pipe.__class__ = plain
