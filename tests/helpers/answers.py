"""What a video transformer, as it is or transformed, answers to a call, and how far two answers are apart."""

from __future__ import annotations

from typing import Any

import torch
from newer_models import first_tensor

from freeloc_fx import Profile, transform

__all__ = ["PROFILE", "changed_of", "distance", "run"]

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")


def changed_of(model: Any, **options: Any) -> Any:
    """A model transformed by `PROFILE`, with literal attention unless told otherwise."""
    return transform(model, PROFILE, **({"backend": "eager", "attention": "reference"} | options))


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """The video of a call, which holds finite numbers only."""
    with torch.no_grad():
        result = first_tensor(model(**given))
    assert isinstance(result, torch.Tensor) and result.isfinite().all()
    return result


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference beside that of what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
