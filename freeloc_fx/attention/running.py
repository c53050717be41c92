"""What attentions know of the call in which they run: its denoising step, texts over time, and what was checked before.

A value of the thread (and task) that runs the model, not of the process: two generations side by side have one each.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from freeloc_fx.method.checks import is_whole
from freeloc_fx.method.timeline import TextSchedule

__all__ = ["Checked", "Running", "denoising_step", "running", "within"]


class Checked:
    """What one backend has compared with the reference already."""

    def __init__(self) -> None:
        self._done: set[Hashable] = set()

    def __contains__(self, what: Hashable) -> bool:
        return what in self._done

    def add(self, what: Hashable) -> None:
        """Remember that this was compared and agreed."""
        self._done.add(what)


@dataclass(frozen=True)
class Running:
    """The call that is running.

    Args:
        step: the denoising step, counted from 0.
        told: somebody has said which step it is.
        checked: what the backend has compared already; a new one where a graph runs without its backend.
        choices: which lowering the backend has found the quickest, see `quickest`; None where there is no backend.
        texts: what each latent frame sees of several texts; None where all frames see one.
    """

    step: int = 0
    told: bool = False
    checked: Checked = field(default_factory=Checked)
    choices: MutableMapping[Hashable, str] | None = None
    texts: TextSchedule | None = None


_RUNNING: ContextVar[Running | None] = ContextVar("freeloc_fx_running", default=None)


def running() -> Running:
    """The call that is running in this thread; step 0 with nothing checked outside of any."""
    return _RUNNING.get() or Running()


@contextmanager
def within(call: Running) -> Iterator[None]:
    """Context: the long attentions that run inside belong to this call. Nothing is captured or compiled again.

    Args:
        call: what `running` gives inside.
    """
    token = _RUNNING.set(call)
    try:
        yield
    finally:
        _RUNNING.reset(token)


@contextmanager
def denoising_step(step: int) -> Iterator[None]:
    """Context: a transformed model that is called inside is at this denoising step.

    For a loop of your own around a profile that follows steps. In a pipeline nothing need be said: its scheduler tells.

    Args:
        step: counted from 0.

    Raises:
        ValueError: the step is not an integer of at least 0.
    """
    if not is_whole(step, 0):
        raise ValueError(f"step: expected an integer of at least 0, found {step!r}")
    with within(replace(running(), step=int(step), told=True)):
        yield
