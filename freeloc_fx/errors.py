"""The errors of several rooms; others stand beside what raises them, and are FreelocErrors, too.

Each message names the object, what was expected and what was found.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CaptureError",
    "FreelocError",
    "LengthError",
    "MatchFailure",
    "ModelError",
    "PlanError",
    "ProfileError",
    "SolveError",
    "StampError",
    "StrategyError",
    "TimelineError",
    "TransformError",
    "VerificationError",
]


class FreelocError(Exception):
    """Base class."""


class ProfileError(FreelocError, ValueError):
    """A profile is malformed; the message begins with the path of the offending field."""


class StrategyError(FreelocError, ValueError):
    """An unknown strategy name, parts that do not compose, or settings that do not fit the length."""


class SolveError(FreelocError, ValueError):
    """An argument of a solver is not of the kind that it takes."""


class LengthError(FreelocError, ValueError):
    """The requested number of frames cannot be run by this model."""


class TimelineError(FreelocError, ValueError):
    """Texts over time that do not fit the clip, the pipeline or the model."""


class CaptureError(FreelocError, RuntimeError):
    """The captured graph lacks what a strategy needs (attention sites, temporal RoPE, a token grid)."""


class PlanError(ProfileError):
    """Profile and model do not fit together."""


class TransformError(FreelocError, RuntimeError):
    """`transform` or `restore` was called on an object in the wrong state."""


class VerificationError(FreelocError, AssertionError):
    """A pass left the graph inconsistent, or a fast lowering disagrees with the reference."""


@dataclass(frozen=True)
class MatchFailure:
    """Why something was not found, and at which node.

    Args:
        reason: for people to read.
        node: name of the node in the graph; empty where there is none to name.
    """

    reason: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}" if self.node else self.reason


class ModelError(FreelocError, ValueError):
    """A model's files are missing or are not a pipeline."""


class StampError(CaptureError):
    """A block was stamped out wrong; each has to be traced."""
