"""Noise that a scheduler adds on the way, drawn from a generator of the request's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from freeloc_fx.compiler.capture.swapped import swapped

__all__ = ["adds_noise", "seeded_steps"]


_ADDING = {
    "CMStochasticIterativeScheduler", "CogVideoXDPMScheduler", "DDPMScheduler", "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler",
    "LTXEulerAncestralRFScheduler", "SASolverScheduler", "SCMScheduler", "TCDScheduler",
}  # fmt: skip
"""Schedulers of diffusers that add noise in each step, whatever their settings; others do by a setting."""


def adds_noise(scheduler: Any) -> bool:
    """Tell whether a scheduler adds new noise in its steps (ancestral and SDE samplers, consistency models).

    Args:
        scheduler: one of diffusers'.

    Returns:
        True where it is known to.
    """
    config = getattr(scheduler, "config", {})
    by_setting = config.get("stochastic_sampling") is True or str(config.get("algorithm_type")).startswith("sde")
    return by_setting or type(scheduler).__name__ in _ADDING


class _Step:
    """A scheduler's `step` that gets a generator where its caller gives it none.

    A pipeline may copy its scheduler, as those with audio or with frames at different steps do; a copy's step is the
    copy's, from the same generator.
    """

    def __init__(self, scheduler: Any, generator: torch.Generator) -> None:
        self._owner, self._generator = scheduler, generator
        self.__signature__ = inspect.signature(scheduler.step)  # pipelines ask it what it takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs)
        if given.arguments.get("generator") is None:
            given.arguments["generator"] = self._generator
        return type(self._owner).step(self._owner, *given.args, **given.kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Step:
        return _Step(memo[id(self._owner)], self._generator) if id(self._owner) in memo else self


@contextmanager
def seeded_steps(pipe: Any, seed: int) -> Iterator[None]:
    """Context: the noise that a pipeline's scheduler adds on the way depends on the seed alone.

    Most pipelines of diffusers (Wan, HunyuanVideo, LTX, Mochi) hand their scheduler no generator, so that one which
    adds noise draws it from torch's global generator: the same request gives another video each time, strategies are
    compared under different noise, and ranks that share a generation go apart without a word.

    Args:
        pipe: a diffusers pipeline. A scheduler that takes no generator, or whose `step` somebody has replaced on the
            object, is left alone; what a pipeline hands over by itself stays.
        seed: of the request. The noise is drawn on the CPU, so that it is the same on every device.
    """
    scheduler = getattr(pipe, "scheduler", None)
    step = getattr(type(scheduler), "step", None)
    if step is None or "step" in vars(scheduler) or "generator" not in inspect.signature(step).parameters:
        yield
        return
    # Not the seed itself: the initial noise was drawn from that.
    derived = int(np.random.SeedSequence([seed % 2**64, 1]).generate_state(1, np.uint64)[0])
    generator = torch.Generator("cpu").manual_seed(derived)
    with swapped(scheduler, "step", _Step(scheduler, generator)):
        yield
