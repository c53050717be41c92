"""Noise that a scheduler adds on the way, drawn from a generator of the request's own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from freeloc_fx.compiler.capture.swapped import swapped

__all__ = ["adds_noise", "another_seed", "seeded_steps"]


log = logging.getLogger("freeloc_fx")

_ADDING = {
    "CMStochasticIterativeScheduler", "CogVideoXDPMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler", "LCMScheduler", "SASolverScheduler", "SCMScheduler", "TCDScheduler",
    "UnCLIPScheduler",
}  # fmt: skip
"""Schedulers of diffusers that add noise in each step by themselves; others do by a setting."""


def adds_noise(scheduler: Any) -> bool:
    """Tell whether a scheduler adds new noise in its steps (ancestral and SDE samplers, consistency models).

    Args:
        scheduler: one of diffusers', or of a class derived from one.

    Returns:
        True where it is known to.
    """
    config = getattr(scheduler, "config", None)
    settings = config if isinstance(config, Mapping) else {}
    by_setting = settings.get("stochastic_sampling") is True or str(settings.get("algorithm_type")).startswith("sde")
    eta = settings.get("eta")  # LTXEulerAncestralRFScheduler
    by_setting = by_setting or (isinstance(eta, (int, float)) and eta > 0)
    return by_setting or any(cls.__name__ in _ADDING for cls in type(scheduler).__mro__)


def another_seed(seed: int) -> int:
    """Derive a seed for other noise than that of a seed itself.

    Args:
        seed: of the initial noise, as `torch.Generator.manual_seed` takes it.

    Returns:
        A seed from 0 to 2**64 - 1, always the same for the same seed.
    """
    return int(np.random.SeedSequence([seed % 2**64, 1]).generate_state(1, np.uint64)[0])


class _Step:
    """A scheduler's `step` that gets a generator where its caller gives it none.

    A pipeline may copy its scheduler, as those with audio do; a copy's step is the copy's, from the same generator.
    """

    def __init__(self, scheduler: Any, generator: torch.Generator) -> None:
        self._owner, self._generator = scheduler, generator
        self.__signature__ = inspect.signature(type(scheduler).step.__get__(scheduler))  # pipelines ask what it takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs)
        if given.arguments.get("generator") is None:
            given.arguments["generator"] = self._generator
        return type(self._owner).step(self._owner, *given.args, **given.kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Step:
        return _Step(memo[id(self._owner)], self._generator) if id(self._owner) in memo else self


def _schedulers(pipe: Any) -> list[Any]:
    """A pipeline's schedulers, each once: LTX-2's may have another for the audio."""
    found = [getattr(pipe, "scheduler", None), *vars(pipe).values()]
    known = {id(one): one for one in found if hasattr(one, "set_timesteps") and hasattr(type(one), "step")}
    return list(known.values())


@contextmanager
def seeded_steps(pipe: Any, seed: int) -> Iterator[None]:
    """Context: the noise that a pipeline's schedulers add on the way depends on the seed alone.

    Most pipelines of diffusers (Wan, HunyuanVideo, LTX, Mochi) hand their scheduler no generator, so that one which
    adds noise draws it from torch's global generator: the same request gives another video each time, strategies are
    compared under different noise, and ranks that share a generation go apart without a word.

    Args:
        pipe: a diffusers pipeline. What it hands over by itself stays. A scheduler that takes no generator, or whose
            `step` somebody has replaced on the object, is left alone; where it adds noise a warning says so.
        seed: of the request. The noise is drawn on the CPU, so that it is the same on every device.
    """
    # Not the seed itself: the initial noise was drawn from that.
    generator = torch.Generator("cpu").manual_seed(another_seed(seed))
    with ExitStack() as held:
        for scheduler in _schedulers(pipe):
            replaced = vars(scheduler).get("step")  # one of ours is left in a copy that outlived its context
            takes = "generator" in inspect.signature(type(scheduler).step).parameters
            if takes and (replaced is None or isinstance(replaced, _Step)):
                held.enter_context(swapped(scheduler, "step", _Step(scheduler, generator)))
            elif adds_noise(scheduler):
                why = "takes no generator" if not takes else "has had its step replaced"
                log.warning("%s %s: the noise that it adds does not follow the seed", type(scheduler).__name__, why)
        yield
