"""Which denoising step a model is called for, told by the timesteps that a pipeline passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .errors import CaptureError
from .profile import Profile
from .strategy import STEPPED, parse

__all__ = ["StepCounter", "follows_steps"]


def follows_steps(profile: Profile) -> bool:
    """Whether anything in the profile depends on the denoising step."""
    names = {profile.layers} if isinstance(profile.layers, str) else set(profile.layers.values())
    return bool(profile.schedule) or any(STEPPED & set(parse(name)) for name in names)


class StepCounter:
    """Counts the steps of one model's generations. Samplers walk timesteps downwards: the same value again is the same
    step (guidance calls twice), a lower one the next, a higher one a new generation.

    A pipeline that hands the later steps to a second transformer (Wan 2.2) counts each transformer's own steps.
    """

    def __init__(self) -> None:
        self.number = 0
        self._last: float | None = None

    def see(self, arguments: Mapping[str, Any]) -> int:
        """The step, from 0, of a call with these arguments.

        Raises:
            CaptureError: the model takes no `timestep`, so its steps cannot be told apart.
        """
        value = arguments.get("timestep")
        if value is None:
            raise CaptureError(
                "the profile follows denoising steps: expected the model to be called with a timestep, found none"
            )
        # Per-token timesteps hold 0 for conditioning frames; the others share the step's value.
        now = float(value.max()) if isinstance(value, torch.Tensor) else float(value)
        if self._last is None or now > self._last:
            self.number = 0
        elif now < self._last:
            self.number += 1
        self._last = now
        return self.number
