"""A list that does not grow for the life of a model."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["NEWEST", "Newest"]

T = TypeVar("T")

NEWEST = 128
"""How many are kept: plans of a model, what its passes did. A server with keyframes makes one for each set of them."""


class Newest(list[T]):
    """The newest things that were appended, in order.

    Attributes:
        total: how many were appended ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def append(self, item: T) -> None:
        """Append one; the oldest goes where there are too many.

        Args:
            item: the thing.
        """
        super().append(item)
        self.total += 1
        if len(self) > NEWEST:
            del self[0]

    def since(self, total: int) -> list[T]:
        """Give what was appended after a moment.

        Args:
            total: how many had been appended then.

        Returns:
            Those of it that are kept.
        """
        return self[max(0, len(self) - (self.total - total)) :]
