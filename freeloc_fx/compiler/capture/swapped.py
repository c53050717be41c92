"""Put something in place of an attribute for a while: the one way in which this library takes over a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["ABSENT", "swapped"]

ABSENT: Final = object()
"""As a value: the owner has no entry of its own under this name, so that its class's shows."""


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the context `owner.name` is `value`; afterwards the owner's own entry is what it was, or gone again.

    Swaps of one attribute may be nested. What somebody else puts on top within the context, and leaves there, stays.

    Args:
        owner: a module, a class, or any object with a `__dict__`.
        name: of the attribute.
        value: what to put there, or `ABSENT` to take the owner's own entry away.
    """
    before = vars(owner).get(name, ABSENT)
    _put(owner, name, value)
    try:
        yield
    finally:
        if vars(owner).get(name, ABSENT) is value:
            _put(owner, name, before)


def _put(owner: Any, name: str, value: Any) -> None:
    if value is not ABSENT:
        setattr(owner, name, value)
    elif name in vars(owner):
        delattr(owner, name)
