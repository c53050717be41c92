"""What the metrics ask of a model. Any object of the right shape will do; `name` goes into every output."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ["FeatureModel", "FlowModel", "InterpolationModel", "QualityModel"]


@runtime_checkable
class FeatureModel(Protocol):
    """Frames to feature vectors, e.g. DINO ViT-B/16 (subject) or CLIP ViT-B/32 (background)."""

    @property
    def name(self) -> str:
        """What outputs call the model."""

    def features(self, frames: np.ndarray) -> np.ndarray:
        """Turn frames into vectors, of which only directions count, not lengths.

        Args:
            frames: uint8 RGB (frames, height, width, 3).

        Returns:
            float (frames, channels).
        """


@runtime_checkable
class FlowModel(Protocol):
    """Optical flow between two frames, e.g. RAFT."""

    @property
    def name(self) -> str:
        """What outputs call the model."""

    @property
    def bias(self) -> float:
        """The ratio of measured to true magnitude, 1 for a model without bias; thresholds on the flow are multiplied by
        it.
        """

    def flow(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Measure how pixels move from one frame to another.

        Args:
            first: uint8 RGB (height, width, 3).
            second: as first.

        Returns:
            float (height, width, 2): x and y in pixels, first to second.
        """


@runtime_checkable
class InterpolationModel(Protocol):
    """The frame half-way between two, e.g. AMT-S."""

    @property
    def name(self) -> str:
        """What outputs call the model."""

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Make the frame half-way between two.

        Args:
            first: uint8 RGB (height, width, 3).
            second: as first.

        Returns:
            uint8 RGB (height, width, 3).
        """


@runtime_checkable
class QualityModel(Protocol):
    """Technical quality of single frames without a reference, e.g. MUSIQ."""

    @property
    def name(self) -> str:
        """What outputs call the model."""

    def quality(self, frames: np.ndarray) -> np.ndarray:
        """Judge single frames.

        Args:
            frames: uint8 RGB (frames, height, width, 3).

        Returns:
            float (frames,), 0 (worst) to 1 (best).
        """
