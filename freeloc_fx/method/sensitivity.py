"""How much a layer reacts to position and to context length."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """How much one layer reacts; a larger number is more sensitive.

    Args:
        position: how much it reacts to keys moved outside the trained distances.
        context: how much it reacts to more visible tokens than in training.
        position_error: standard error of `position`; None where it is not known.
        context_error: standard error of `context`; None where it is not known.
    """

    position: float
    context: float
    position_error: float | None = None
    context_error: float | None = None
