"""Score decay: a factor on the attention scores of a pair of frames.

Only positive scores are scaled. A factor below 1 on a negative score would raise it, so negative scores stay.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from .frame_times import Frames

__all__ = ["ScoreDecay"]


@runtime_checkable
class ScoreDecay(Protocol):
    """What a strategy says about the scores of pairs of frames. Implementations are immutable and hashable.

    A score s of a query in frame i and a key in frame j, scaled by 1/sqrt(head_dim) and the temperature, becomes
    table[i, j] * s where s > 0 and stays otherwise. Scores that involve text tokens stay.
    """

    def table(self, frames: Frames) -> np.ndarray:
        """Give the factor of every pair of frames.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.

        Returns:
            float64 (frames, frames) in (0, 1], row = query frame i, column = key frame j.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Give the settings as JSON-serialisable data, with the decay's name under "kind"."""
        ...
