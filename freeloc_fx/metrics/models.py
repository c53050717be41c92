"""What the metrics ask of a model. Any object of the right shape will do; `name` goes into every output."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ["FeatureModel", "FlowModel", "InterpolationModel", "QualityModel"]


@runtime_checkable
class FeatureModel(Protocol):
    """Frames to feature vectors, e.g. DINO ViT-B/16 (subject) or CLIP ViT-B/32 (background)."""

    @property
    def name(self) -> str: ...

    def features(self, frames: np.ndarray) -> np.ndarray:
        """uint8 RGB (frames, height, width, 3) -> float (frames, channels). Only directions count, not lengths."""


@runtime_checkable
class FlowModel(Protocol):
    """Optical flow between two frames, e.g. RAFT."""

    @property
    def name(self) -> str: ...

    @property
    def bias(self) -> float:
        """Measured / true magnitude; thresholds on the flow are multiplied by it. 1 for a model without bias."""

    def flow(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Two uint8 RGB frames (height, width, 3) -> float (height, width, 2): x and y in pixels, first to second."""


@runtime_checkable
class InterpolationModel(Protocol):
    """The frame half-way between two, e.g. AMT-S."""

    @property
    def name(self) -> str: ...

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Two uint8 RGB frames (height, width, 3) -> uint8 of the same shape."""


@runtime_checkable
class QualityModel(Protocol):
    """Technical quality of single frames without a reference, e.g. MUSIQ."""

    @property
    def name(self) -> str: ...

    def quality(self, frames: np.ndarray) -> np.ndarray:
        """uint8 RGB (frames, height, width, 3) -> float (frames,), 0 (worst) to 1 (best)."""
