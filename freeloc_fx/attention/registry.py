"""Specs by the key or the number under which graphs name them.

A graph holds strings and numbers only, and a compiled one may come from a cache on disk, so what a long attention
computes is looked up by name when it runs. A spec is known as long as a `Specs` that it was added to lives; a rewritten
graph has one, so what a process knows is bounded by the graphs in it, and equal specs of several graphs are one entry.
"""

from __future__ import annotations

import itertools
import weakref
from threading import Lock

import torch

from freeloc_fx.errors import CaptureError
from freeloc_fx.method.spec import AttentionSpec

__all__ = ["Specs", "by_key", "by_number"]


class _Entry:
    """One spec with its two names: the key, and a number as data (int64, no axes, on the CPU)."""

    def __init__(self, spec: AttentionSpec, key: str) -> None:
        self.spec, self.key = spec, key
        self.index = next(_COUNT)
        self.number = torch.tensor(self.index, device="cpu")


_COUNT = itertools.count()
_LOCK = Lock()
_BY_KEY: weakref.WeakValueDictionary[str, _Entry] = weakref.WeakValueDictionary()
_BY_INDEX: weakref.WeakValueDictionary[int, _Entry] = weakref.WeakValueDictionary()


class Specs:
    """The specs of one rewritten graph. Graphs can name a spec as long as the `Specs` that it was added to lives."""

    def __init__(self) -> None:
        self._held: dict[str, _Entry] = {}

    def add(self, spec: AttentionSpec) -> str:
        """Make a spec known.

        Args:
            spec: what a long attention computes.

        Returns:
            The spec's key, equal for equal specs in every process.
        """
        key = spec.key
        with _LOCK:
            entry = _BY_KEY.get(key)
            if entry is None:
                entry = _BY_KEY[key] = _Entry(spec, key)
                _BY_INDEX[entry.index] = entry
            self._held[key] = entry
        return key

    def number(self, key: str) -> torch.Tensor:
        """The number of a spec as data, the same tensor each time. The spec is one of these from now on.

        A compiled block that reads its strategy from an input serves every strategy.

        Args:
            key: what `add` returned, of these specs or of others that live.

        Returns:
            int64, no axes, on the CPU.

        Raises:
            CaptureError: no such spec lives in this process.
        """
        entry = self._held.get(key) or _BY_KEY.get(key)
        if entry is None:
            raise _unknown(key)
        self._held[key] = entry
        return entry.number


def by_key(key: str) -> AttentionSpec:
    """The spec of a key.

    Args:
        key: what `Specs.add` returned.

    Returns:
        The spec.

    Raises:
        CaptureError: no such spec lives in this process (a graph was run without the backend that made it).
    """
    entry = _BY_KEY.get(key)
    if entry is None:
        raise _unknown(key)
    return entry.spec


def by_number(number: torch.Tensor) -> AttentionSpec:
    """The spec that has a number.

    Args:
        number: what `Specs.number` returned, int64 without axes.

    Returns:
        The spec.

    Raises:
        CaptureError: no living spec has it.
    """
    entry = _BY_INDEX.get(int(number))
    if entry is None:
        raise CaptureError(
            f"long attention number {int(number)}: expected that of one of the {len(_BY_INDEX)} living specs"
        )
    return entry.spec


def _unknown(key: str) -> CaptureError:
    return CaptureError(
        f"long attention {key!r}: no such spec lives; expected one registered by transform, "
        f"found {sorted(_BY_KEY) or 'none'}"
    )
