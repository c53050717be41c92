"""A captured graph for each set of positions that it is called with.

What is read off a graph's RoPE holds for the positions that the graph was captured with. Most models make theirs of the
input's shape, and another shape is another capture. Some are given them as numbers: LTX takes the coordinates of every
token, so that a keyframe may move, or stand where a frame of the clip stood, and no shape changes.

    call 1   coordinates of a clip, keyframes at 4.875 and 8    captured, planned
    call 2   the same numbers                                   runs
    call 3   keyframes at 2 and 6                               planned anew, from the same graph
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import torch

__all__ = ["ByPositions", "KnownPositions"]


class KnownPositions:
    """Position tensors by number: equal ones have one number, and are held once however many graphs read them."""

    def __init__(self) -> None:
        self._values: list[torch.Tensor] = []
        self._seen: dict[int, tuple[weakref.ref[torch.Tensor], int, int]] = {}

    def number(self, value: torch.Tensor) -> int:
        """Give the number of a tensor's values.

        A tensor that was asked about before and has not been written since is not looked at again, so that a device is
        waited for once a generation and not at every step.

        Args:
            value: any tensor; it is not kept, its values are.

        Returns:
            The number, from 0.
        """
        version = None if value.is_inference() else value._version
        seen = self._seen.get(id(value))
        if seen is not None and seen[0]() is value and seen[1] == version:
            return seen[2]
        known = (n for n, one in enumerate(self._values) if _equal(one, value))
        found = next(known, len(self._values))
        if found == len(self._values):
            self._values.append(value.detach().clone())
        if version is not None:
            self._seen = {key: entry for key, entry in self._seen.items() if entry[0]() is not None}
            self._seen[id(value)] = (weakref.ref(value), version, found)
        return found


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and bool(torch.equal(one, other))


class ByPositions:
    """One callable for all positions.

    Args:
        run: what runs for the positions of `inputs`.
        inputs: that were captured.
        read: which of them are positions.
        make: makes what runs, for other inputs.
        known: numbers positions.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        inputs: Sequence[Any],
        read: Sequence[int],
        make: Callable[[Sequence[Any]], Callable[..., Any]],
        known: KnownPositions,
    ) -> None:
        self.read, self.make, self.known = tuple(read), make, known
        self._made = {self._key(inputs): run}
        self._lock = RLock()

    def _key(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        return tuple(self.known.number(inputs[place]) for place in self.read)

    def __call__(self, *inputs: Any) -> Any:
        with self._lock:
            key = self._key(inputs)
            if key not in self._made:
                self._made[key] = self.make(inputs)
            run = self._made[key]
        return run(*inputs)
