"""A captured graph for each set of positions that it is called with.

What is read off a graph's RoPE holds for the positions that the graph was captured with. Most models make theirs of the
input's shape, and another shape is another capture. Some are given them as numbers: LTX takes the coordinates of every
token, so that a keyframe may move, or stand where a frame of the clip stood, and no shape changes.

    call 1   coordinates of a clip, keyframes at 4.875 and 8    captured, planned
    call 2   the same numbers                                   runs
    call 3   keyframes at 2 and 6                               planned anew, from the same graph

So may what a model holds: learned rates are loaded, trained, or put aside for their average, and tables in buffers are
written. A write by way of `.data` leaves no trace on a tensor, so values are looked at in each call.

A server meets ever new ones. For each graph, `KEPT` sets are kept beside what was made of them; the set that was used
least lately goes, and is planned anew should it come again.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any, NamedTuple

import torch

from freeloc_fx.compat import outside_fake_mode
from freeloc_fx.planning.plan import Plan

from .capture.facts import running_call

__all__ = ["KEPT", "ByPositions", "KnownPositions", "Position"]


KEPT = 8
"""Sets of positions that one graph is kept ready for. Each is a rewritten graph with its tables (megabytes, not the
weights); planning one anew takes about as long as the first call's planning, a second or two."""


class Position:
    """The values of one position tensor. Equal ones are one object, for as long as somebody keeps that."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value.detach().clone()


class KnownPositions:
    """Position tensors by their values, held once however many graphs read them, and no longer than one does."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Position] = weakref.WeakSet()
        self._seen: dict[int, _Seen] = {}

    def of(self, value: torch.Tensor) -> Position:
        """Give what stands for a tensor's values.

        The blocks of a model that is captured block by block are given the same tensor one after the other: within one
        call of the model it is looked at once, unless somebody writes it meanwhile. So a device is waited for once a
        call, before the attentions of it begin.

        Args:
            value: any tensor; it is not kept, its values are.

        Returns:
            The same object for equal values, while it lives.
        """
        call, version = running_call(), None if value.is_inference() else value._version
        seen = self._seen.get(id(value))
        last = None if seen is None or seen.tensor() is not value else seen.position()
        if seen is not None and last is not None and seen.stands(call, version):
            return last
        likely = [] if last is None else [last]
        with outside_fake_mode():  # a call of one that measures shapes only, with the model's real tables
            equal = (one for one in [*likely, *list(self._all)] if _equal(one.value, value))
            found = next(equal, None) or Position(value)
        self._all.add(found)
        self._seen = {key: entry for key, entry in self._seen.items() if entry.tensor() is not None}
        self._seen[id(value)] = _Seen(weakref.ref(value), weakref.ref(found), call, version)
        return found


class _Seen(NamedTuple):
    """When a tensor was looked at.

    Args:
        tensor: it.
        position: what stood for its values.
        call: of the model, by `running_call`; None outside of any.
        version: how often it had been written; None where it does not count that.
    """

    tensor: weakref.ref[torch.Tensor]
    position: weakref.ref[Position]
    call: object
    version: int | None

    def stands(self, call: object, version: int | None) -> bool:
        """Whether nothing can have happened since."""
        return call is self.call is not None and version == self.version is not None


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and bool(torch.equal(one, other))


class ByPositions:
    """One callable for all positions.

    Args:
        run: what runs for the positions of `inputs`.
        inputs: that were captured.
        read: which of them are positions, or what else was read off by its values.
        make: makes what runs, for other inputs.
        known: of the backend.
        made: plans beside what runs by them, to which `make` adds; what is not kept any more is taken out.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        inputs: Sequence[Any],
        read: Sequence[int],
        make: Callable[[Sequence[Any]], Callable[..., Any]],
        known: KnownPositions,
        made: list[tuple[Plan, Callable[..., Any]]],
    ) -> None:
        self.read, self.make, self.known, self.made = tuple(read), make, known, made
        self._runs: OrderedDict[tuple[Position, ...], Callable[..., Any]] = OrderedDict({self._key(inputs): run})
        self._lock = RLock()

    def _key(self, inputs: Sequence[Any]) -> tuple[Position, ...]:
        return tuple(self.known.of(inputs[place]) for place in self.read)

    def __call__(self, *inputs: Any) -> Any:
        with self._lock:
            key = self._key(inputs)
            if key not in self._runs:
                self._runs[key] = self.make(inputs)
                while len(self._runs) > KEPT:
                    self._runs.popitem(last=False)
                kept = set(map(id, self._runs.values()))
                self.made[:] = [(plan, run) for plan, run in self.made if id(run) in kept]
            self._runs.move_to_end(key)
            run = self._runs[key]
        return run(*inputs)
