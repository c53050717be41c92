"""A transformed Wan, run: what the tests of `transform` share."""

from __future__ import annotations

from typing import Any

import torch
from models import wan_inputs

from freeloc_fx import Profile, transform

__all__ = ["ALL", "LONG", "distance", "first", "reference", "run"]

ALL = Profile(trained_frames=5, layers="vrpr+tsa+temp")
LONG = 12
"""Latent frames, more than the trained ones."""


def run(model: Any, *, frames: int = LONG, **changes: Any) -> torch.Tensor:
    """What a Wan makes of the inputs of `models.wan_inputs`."""
    with torch.no_grad():
        result: torch.Tensor = model(**wan_inputs(frames, **changes))[0]
    return result


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference beside the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def first(output: Any) -> torch.Tensor:
    """The first tensor of a model's output."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def reference(model: Any, profile: Profile = ALL, **changes: Any) -> torch.Tensor:
    """The same with long attention that is literal and slow."""
    return run(transform(model, profile, backend="eager", attention="reference"), **changes)
