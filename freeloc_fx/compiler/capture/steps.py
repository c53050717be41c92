"""Which denoising step a model is called for."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from freeloc_fx.errors import CaptureError
from freeloc_fx.method.build import parse
from freeloc_fx.method.catalogue import PARTS
from freeloc_fx.planning.profile import Profile

__all__ = ["StepCounter", "follows_steps"]

log = logging.getLogger("freeloc_fx")


def follows_steps(profile: Profile) -> bool:
    """Whether anything in the profile depends on the denoising step."""
    names = profile.strategy_names
    return bool(profile.schedule) or any(PARTS[item].stepped for name in names for item in parse(name))


@dataclass
class _Generation:
    """How far one generation has come.

    Args:
        timesteps: the scheduler's, by which the generation is known; returns None once nobody holds them.
        step: of the last call.
        last: timestep of the last call.
    """

    timesteps: weakref.ref[torch.Tensor]
    step: int
    last: float


class StepCounter:
    """Counts the steps of one model's generations.

    A generation is known by its scheduler's timesteps, which `set_timesteps` makes anew for each (`running_timesteps`
    finds them). Within it the same timestep again is the same step (guidance calls twice), another one the next. A
    pipeline that hands the later steps to a second transformer (Wan 2.2) counts each transformer's own steps.

    Without a scheduler steps are told by falling timesteps, each thread's on their own: a higher one is a new
    generation. That is said once, since a generation that begins below the last one's end looks like its next step;
    `denoising_step` tells the step instead. A thread whose first call is below where generations begin is refused: it
    may go on with another thread's generation.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generations: list[_Generation] = []
        self._here = threading.local()
        self._top: float | None = None

    def see(self, arguments: Mapping[str, Any], timesteps: torch.Tensor | None = None) -> int:
        """The step of a call.

        Args:
            arguments: forward's, by name; `timestep` is a number or a tensor of any shape.
            timesteps: of the scheduler whose loop makes the call; None where there is none.

        Returns:
            The step, from 0.

        Raises:
            CaptureError: the model takes no `timestep`, so its steps cannot be told apart; or a thread's first call
                without a scheduler may be any step.
        """
        value = arguments.get("timestep")
        if value is None:
            raise CaptureError(
                "the profile follows denoising steps: expected the model to be called with a timestep, found none"
            )
        # Per-token timesteps hold 0 for conditioning frames; the others share the step's value.
        now = float(value.max()) if isinstance(value, torch.Tensor) else float(value)
        return self._falling(now) if timesteps is None else self._of(timesteps, now)

    def _of(self, timesteps: torch.Tensor, now: float) -> int:
        with self._lock:
            self._generations = [run for run in self._generations if run.timesteps() is not None]
            run = next((run for run in self._generations if run.timesteps() is timesteps), None)
            if run is None:
                run = _Generation(weakref.ref(timesteps), 0, now)
                self._generations.append(run)
            elif now != run.last:
                run.step, run.last = run.step + 1, now
            return run.step

    def _falling(self, now: float) -> int:
        step, last = getattr(self._here, "seen", (0, None))
        with self._lock:
            if self._top is None:
                log.warning(
                    "the profile follows denoising steps, and this call comes from no loop with a scheduler: steps are "
                    "told by falling timesteps; with freeloc_fx.denoising_step(i) around each call they are told by you"
                )
            elif last is None and now < self._top:
                raise CaptureError(
                    f"the profile follows denoising steps: expected a thread's first call at timestep {self._top:g}, "
                    f"where generations begin, found {now:g}: it may be any step of a generation; call the model "
                    "within freeloc_fx.denoising_step(i)"
                )
            self._top = now if self._top is None else max(now, self._top)
        if last is None or now > last:
            step = 0
        elif now < last:
            step += 1
        self._here.seen = (step, now)
        return int(step)
