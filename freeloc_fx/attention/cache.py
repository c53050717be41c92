"""A bounded store for tables and masks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

__all__ = ["Cache"]

T = TypeVar("T")


class Cache:
    """A bounded store for tables and masks, shared by layers and denoising steps; what was used least lately goes.

    It decides nothing about results, since `build` makes the same value again.

    Args:
        size: how many values are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.built = 0
        self._items: OrderedDict[Any, Any] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, build: Callable[[], T]) -> T:
        """The value under a key, built where it is not there.

        Args:
            key: hashable.
            build: makes the value.

        Returns:
            The value; two threads that ask at the same time may each build one.
        """
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]  # type: ignore[no-any-return]
        value = build()
        with self._lock:
            self._items[key] = value
            self.built += 1
            while len(self._items) > self.size:
                self._items.popitem(last=False)
        return value
