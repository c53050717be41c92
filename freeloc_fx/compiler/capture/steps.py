"""Which denoising step a model is called for, told by the timesteps that a pipeline passes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

from freeloc_fx.errors import CaptureError
from freeloc_fx.method.build import parse
from freeloc_fx.method.catalogue import PARTS
from freeloc_fx.planning.profile import Profile

__all__ = ["StepCounter", "follows_steps"]


def follows_steps(profile: Profile) -> bool:
    """Whether anything in the profile depends on the denoising step."""
    names = profile.strategy_names
    return bool(profile.schedule) or any(PARTS[item].stepped for name in names for item in parse(name))


class StepCounter:
    """Counts the steps of one model's generations, each thread's on its own.

    Samplers walk timesteps downwards: the same value again is the same step (guidance calls twice), a lower one the
    next, a higher one a new generation. A pipeline that hands the later steps to a second transformer (Wan 2.2) counts
    each transformer's own steps.
    """

    def __init__(self) -> None:
        self._here = threading.local()

    def see(self, arguments: Mapping[str, Any]) -> int:
        """The step of a call.

        Args:
            arguments: forward's, by name; `timestep` is a number or a tensor of any shape.

        Returns:
            The step, from 0.

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
        step, last = getattr(self._here, "seen", (0, None))
        if last is None or now > last:
            step = 0
        elif now < last:
            step += 1
        self._here.seen = (step, now)
        return int(step)
