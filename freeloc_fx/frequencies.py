"""Frequency maps: the angles by which temporal RoPE turns, changed for a long clip.

A position map moves frames; a frequency map keeps the frames and changes how far each channel pair turns per frame. The
two compose: a query of frame i leaves i * omega and gets P * omega'. Maps see the measured omegas only, so they hold
for any model, whatever base or spelling its RoPE has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

__all__ = ["FrequencyMap", "Unchanged", "ranks", "stretch"]


@runtime_checkable
class FrequencyMap(Protocol):
    """What a strategy says about the frequencies of temporal RoPE. Immutable and hashable."""

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        """The angles to use in a clip of `frames` latent frames.

        Args:
            omega: the model's, (heads, pairs), radians per latent frame, of either sign and in any order.

        Returns: float64, same shape and order; signs are kept.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-serialisable settings, with the map's name under "kind"."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """The model's own frequencies."""

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        return np.asarray(omega, dtype=np.float64)

    def describe(self) -> dict[str, Any]:
        return {"kind": "unchanged"}


def ranks(omega: np.ndarray) -> np.ndarray:
    """Place of each pair in the order of falling |omega|, int64, same shape: 0 is the head's fastest pair.

    Equal frequencies keep their order.
    """
    order = np.argsort(-np.abs(omega), axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable")


def stretch(trained_frames: int, frames: int) -> float:
    """s = frames / trained_frames, and 1 within the trained length."""
    return max(1.0, frames / trained_frames)
