"""What one long attention computes, as a value: strategy, token grid, temporal RoPE.

Graphs name a spec by its key, a readable label with a hash of the content. Equal specs have equal keys in every
process,
so a graph that Inductor cached on disk finds the same spec again; layers and denoising steps share one entry.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import CaptureError
from ..meta import RopeLayout, TokenGrid
from ..strategy import Strategy
from ..visibility import FULL, STRIPE

__all__ = ["AttentionSpec", "Cache", "denoising_step", "get", "number", "numbered", "register", "step"]

T = TypeVar("T")


@dataclass(frozen=True)
class AttentionSpec:
    """Immutable and hashable."""

    strategy: Strategy
    grid: TokenGrid
    rope: RopeLayout

    @property
    def key(self) -> str:
        content = [self.strategy.describe(), asdict(self.grid), {**asdict(self.rope), "residual": 0.0}]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        grid = self.grid
        return f"{self.strategy.name}@{grid.frames}x{grid.height}x{grid.width}#{digest}"

    def at(self, step: int) -> AttentionSpec:
        """The spec at a denoising step, counted from 0."""
        strategy = self.strategy.at(step)
        return self if strategy is self.strategy else replace(self, strategy=strategy)

    def kept_pairs(self) -> float:
        """Token pairs that are computed, relative to dense attention: the visible share, in (0, 1], or for a mixture
        the sum over its strategies. Text sees and is seen by all."""
        n, text = self.grid.tokens, self.grid.text
        visible = 0
        for member in self.strategy.members:  # each strategy of a mixture computes its own pairs
            levels = member.visibility.levels(self.grid.frames)
            stripe = member.visibility.stripe(self.grid.height, self.grid.width)
            visible += int((levels == FULL).sum()) * n * n + int((levels == STRIPE).sum()) * int(stripe.sum())
            visible += text * (2 * self.grid.video + text)
        return float(visible / self.grid.sequence**2)

    def shifts(self) -> np.ndarray:
        """By how many frames key j must turn for query i: i - P[i, j] - j, float64 (frames, frames)."""
        index = np.arange(self.grid.frames)
        return (index[:, None] - index[None, :]) - self.strategy.positions.table(self.grid.frames)

    @property
    def effective_rope(self) -> RopeLayout:
        """The layout with the strategy's frequencies in place of the model's."""
        omega = self.strategy.frequencies.omega(np.asarray(self.rope.omega), self.grid.frames)
        return replace(self.rope, omega=tuple(tuple(float(w) for w in row) for row in omega))

    def frequency_change(self) -> RopeLayout | None:
        """A layout that turns q and k of frame t from the model's frequencies to the strategy's; None where equal."""
        before, after = np.asarray(self.rope.omega), np.asarray(self.effective_rope.omega)
        if np.array_equal(before, after):
            return None
        return replace(self.rope, omega=tuple(tuple(float(w) for w in row) for row in after - before))

    def text_turn(self) -> np.ndarray | None:
        """By how many frames a video token turns when it meets a text token, float64 (frames,); None for not at all.

        Text is not rotated, so RoPE tells it a video token's absolute frame, which a long clip takes out of the trained
        range; `text_scale` and `text_last` bring it back.
        """
        scale, last = self.strategy.text_scale, self.strategy.text_last
        if scale == 1.0 and (last is None or last >= self.grid.frames - 1):
            return None
        index = np.arange(self.grid.frames, dtype=np.float64)
        return np.minimum(index * scale, np.inf if last is None else last) - index


_STEP: ContextVar[int] = ContextVar("freeloc_fx_denoising_step", default=0)


def step() -> int:
    """The denoising step that is running, counted from 0."""
    return _STEP.get()


@contextmanager
def denoising_step(number: int) -> Iterator[None]:
    """Tell the long attentions that run inside which denoising step it is. Nothing is captured or compiled again."""
    token = _STEP.set(number)
    try:
        yield
    finally:
        _STEP.reset(token)


_SPECS: dict[str, AttentionSpec] = {}


def register(spec: AttentionSpec) -> str:
    """Make a spec known under its key."""
    key = spec.key
    _SPECS[key] = spec
    return key


def get(key: str) -> AttentionSpec:
    """The spec of a key.

    Raises:
        CaptureError: no such spec in this process (a graph was run without the backend that made it).
    """
    try:
        return _SPECS[key]
    except KeyError:
        raise CaptureError(
            f"long attention {key!r}: no such spec in this process; expected one registered by transform, "
            f"found {sorted(_SPECS) or 'none'}"
        ) from None


_NUMBERS: dict[str, torch.Tensor] = {}
_NUMBERED: list[str] = []
_NUMBERING = Lock()


def number(key: str) -> torch.Tensor:
    """A key as data: int64, no axes, on the CPU, the same tensor each time.

    A compiled block that reads its strategy from an input serves every strategy.
    """
    with _NUMBERING:
        if key not in _NUMBERS:
            _NUMBERS[key] = torch.tensor(len(_NUMBERED))
            _NUMBERED.append(key)
        return _NUMBERS[key]


def numbered(value: torch.Tensor) -> str:
    """The key that `number` gave this value.

    Raises:
        CaptureError: none has it.
    """
    index = int(value)
    if not 0 <= index < len(_NUMBERED):
        raise CaptureError(f"long attention number {index}: expected one of the {len(_NUMBERED)} given in this process")
    return _NUMBERED[index]


class Cache:
    """A bounded least-recently-used store for tables and masks, shared by layers and denoising steps."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.built = 0
        self._items: OrderedDict[Any, Any] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, build: Callable[[], T]) -> T:
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

    def clear(self) -> None:
        with self._lock:
            self._items.clear()
