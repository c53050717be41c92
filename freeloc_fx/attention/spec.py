"""What one long attention computes, as a value: strategy, token grid, temporal RoPE.

Graphs name a spec by its key, a readable label with a hash of the content. Equal specs have equal keys in every
process,
so a graph that Inductor cached on disk finds the same spec again; layers and denoising steps share one entry.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import CaptureError
from ..meta import RopeLayout, TokenGrid
from ..rope import angles
from ..strategy import Strategy
from ..visibility import FULL, STRIPE

__all__ = ["AttentionSpec", "Cache", "get", "register"]

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

    def kept_pairs(self) -> float:
        """Share of token pairs that are visible, in (0, 1]."""
        levels = self.strategy.visibility.levels(self.grid.frames)
        n = self.grid.tokens
        stripe = self.strategy.visibility.stripe(self.grid.height, self.grid.width)
        visible = int((levels == FULL).sum()) * n * n + int((levels == STRIPE).sum()) * int(stripe.sum())
        return float(visible / self.grid.sequence**2)

    def shifts(self) -> np.ndarray:
        """By how many frames key j must turn for query i: i - P[i, j] - j, float64 (frames, frames)."""
        index = np.arange(self.grid.frames)
        return (index[:, None] - index[None, :]) - self.strategy.positions.table(self.grid.frames)

    def rotation(
        self, frames: np.ndarray, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for one turn per latent frame: (heads or 1, frames, 1, pairs), to broadcast over tokens."""
        cos, sin = angles(self.rope, frames)
        return cos[:, :, None].to(device, dtype), sin[:, :, None].to(device, dtype)


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
