"""Find the denoising loop that a call of a model comes from, by the scheduler that the loop works with."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

__all__ = ["running_timesteps", "solver_order", "steps_made"]


def running_timesteps(model: nn.Module) -> torch.Tensor | None:
    """The timesteps of the generation that is running, which every generation makes anew (`scheduler.set_timesteps`).

    A model is not told which pipeline calls it, and a pipeline may be given another model or scheduler at any time. So
    the callers are looked through, from the innermost on: first for an object that holds both this model and a
    scheduler, as a pipeline does; then for any scheduler, as a local variable or held by one (a loop written by hand, a
    pipeline that holds something around this model).

    Args:
        model: that is called.

    Returns:
        The scheduler's own tensor, one object a generation; None where no caller has a scheduler.
    """
    nearest = None
    for value in _locals(sys._getframe(1)):
        held = _contents(value)
        timesteps = _timesteps(held["scheduler"]) if "scheduler" in held else _timesteps(value)
        if timesteps is None:
            continue
        if any(part is model for part in held.values()):
            return timesteps
        nearest = timesteps if nearest is None else nearest
    return nearest


def steps_made(timesteps: torch.Tensor) -> int | None:
    """At which of its timesteps a scheduler is, by its own count.

    Args:
        timesteps: as `running_timesteps` gives them, to a caller of this function or to one of its callers.

    Returns:
        The place, from 0; None before its first step, and for a scheduler that does not count.
    """
    index = getattr(_scheduler(timesteps), "step_index", None)
    return index if isinstance(index, int) else None


def solver_order(timesteps: torch.Tensor) -> int | None:
    """How often a scheduler's loop calls the model in one step, of which its timesteps then have as many.

    Args:
        timesteps: as for `steps_made`.

    Returns:
        The order that diffusers' schedulers say, 1 for most; None for a scheduler that does not say, or does not count
        its steps (PNDM says 1, and visits some timesteps twice).
    """
    scheduler = _scheduler(timesteps)
    order = getattr(scheduler, "order", None)
    return order if isinstance(order, int) and hasattr(scheduler, "step_index") else None


def _scheduler(timesteps: torch.Tensor) -> Any:
    """The scheduler of these timesteps, among what the callers hold; None where there is none."""
    for value in _locals(sys._getframe(1)):
        for one in (_contents(value).get("scheduler"), value):
            if _timesteps(one) is timesteps:
                return one
    return None


def _locals(frame: FrameType | None) -> Iterator[Any]:
    while frame is not None:
        yield from list(frame.f_locals.values())
        frame = frame.f_back


def _contents(value: Any) -> Mapping[str, Any]:
    """What an object holds under names of its own."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return {}
    return found if type(found) is dict else {}


def _timesteps(value: Any) -> torch.Tensor | None:
    """The timesteps of a scheduler, told by the methods that every scheduler of diffusers has; None for all else."""
    if not all(callable(getattr(type(value), name, None)) for name in ("set_timesteps", "step")):
        return None
    found = _contents(value).get("timesteps")
    return found if isinstance(found, torch.Tensor) else None
