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
    """What a strategy says about the frequencies of temporal RoPE. Implementations are immutable and hashable."""

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        """Give the angles to use in a clip.

        Args:
            omega: the model's angles, (heads, pairs), radians per latent frame, of either sign and in any order.
            frames: latent frames of the clip, at least 1.

        Returns:
            float64 (heads, pairs), radians per latent frame, in the same order. Signs are kept.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Give the settings as JSON-serialisable data, with the map's name under "kind"."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """The model's own frequencies."""

    def omega(self, omega: np.ndarray, frames: int) -> np.ndarray:
        return np.asarray(omega, dtype=np.float64)

    def describe(self) -> dict[str, Any]:
        return {"kind": "unchanged"}


def ranks(omega: np.ndarray) -> np.ndarray:
    """Rank each channel pair of a head by falling |omega|; equal frequencies keep their order.

    Args:
        omega: (heads, pairs) or (pairs,), radians per latent frame.

    Returns:
        int64 of the same shape: 0 is the head's fastest pair.
    """
    order = np.argsort(-np.abs(omega), axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable")


def stretch(trained_frames: int, frames: int) -> float:
    """Give how many times longer than the training clips a clip is: s = frames / trained_frames, at least 1.

    Args:
        trained_frames: latent frames of the training clips, at least 1.
        frames: latent frames of the clip.

    Returns:
        s, and 1 within the trained length.
    """
    return max(1.0, frames / trained_frames)
