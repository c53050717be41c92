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
        weigh: value -> its bytes; None to count values alone.
        most: bytes that all values may take together; 0 for no bound.
        least: how many values are kept whatever they take, so that those of one denoising step do not push each other
            out.
    """

    def __init__(self, size: int, *, weigh: Callable[[Any], int] | None = None, most: int = 0, least: int = 1) -> None:
        self.size = size
        self.weigh = weigh
        self.most = most
        self.least = least
        self.built = 0
        self.bytes = 0
        self._items: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
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
                return self._items[key][0]  # type: ignore[no-any-return]
        value = build()
        weight = 0 if self.weigh is None else self.weigh(value)
        with self._lock:
            self.bytes += weight - self._items.pop(key, (None, 0))[1]
            self._items[key] = (value, weight)
            self.built += 1
            while len(self._items) > self.size or self._too_heavy():
                self.bytes -= self._items.popitem(last=False)[1][1]
        return value

    def _too_heavy(self) -> bool:
        return 0 < self.most < self.bytes and len(self._items) > self.least
