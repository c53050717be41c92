"""Which denoising step a model is called for."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from freeloc_fx.errors import CaptureError
from freeloc_fx.method.build import parse
from freeloc_fx.method.catalogue import PARTS
from freeloc_fx.planning.profile import Profile

from .loop import solver_order, steps_made

__all__ = ["StepCounter", "follows_steps"]

log = logging.getLogger("freeloc_fx")


def follows_steps(profile: Profile) -> bool:
    """Whether anything in the profile depends on the denoising step."""
    names = profile.strategy_names
    return bool(profile.schedule) or any(PARTS[item].stepped for name in names for item in parse(name))


class _Generation:
    """How far one generation has come, of those that walk along the same timesteps one after the other.

    A loop walks them in one direction, whatever the model is told of them: as they are, or one minus them. A step in
    the other direction goes back to where generations begin. Timesteps that turn back by themselves, as of a sampler
    that adds noise again, count on until the last one is followed by the first.

    Timesteps that are rounded may be one number where the loop has two steps: for a model of half precision, or by the
    scheduler to whole ones (UniPC's of a hundred steps and more). There the scheduler's own count tells them apart.

    Args:
        timesteps: the scheduler's, by which the generation is known; None once nobody holds them.
        value: the timestep of the first call, as the model is given it.
        now: the same as a number.
        made: by `steps_made`.
        order: by `solver_order`; above 1 the same timestep twice is one step, and so it is where it is not known.
    """

    def __init__(
        self, timesteps: torch.Tensor, value: Any, now: float, made: int | None, order: int | None = None
    ) -> None:
        self.timesteps = weakref.ref(timesteps)
        entries = timesteps.detach().flatten().cpu().double()
        changes = entries.diff()
        self.turns_back = bool((changes > 0).any() and (changes < 0).any())
        self.differs = [True, *((changes != 0) | (order == 1)).tolist()]
        if isinstance(value, torch.Tensor):
            entries = entries.to(value.dtype)
        self.rounded = sum(self.differs) > 1 + int((entries.diff() != 0).sum())
        self.made = made
        self.begin, self.end = (float(entries[place]) if len(entries) else None for place in (0, -1))
        self.first = self.last = now
        self.rises: bool | None = None
        self.step = 0

    def see(self, now: float, made: int | None) -> int:
        """The step of the next call.

        Args:
            now: its timestep.
            made: by `steps_made`.

        Raises:
            CaptureError: it goes back, but not to where generations begin; or timesteps are rounded so that several are
                one, and the scheduler does not count.
        """
        before, self.made = self.made, made
        if now == self.last:
            if self.rounded and made is not None and made != before and self.differs[made : made + 1] == [True]:
                self.step += 1
            return self.step
        rises = now > self.last
        if (self.last, now) == (self.end, self.begin) and self.rises is not rises:
            self._begin(now)
        elif self.turns_back:
            self.step, self.last = self.step + 1, now
        elif self.rises is None and now == self.begin:
            self._begin(now)
        elif self.rounded and made is None and self.rises in (None, rises):
            raise CaptureError(
                "the profile follows denoising steps: expected timesteps that differ from step to step, or a loop that "
                f"calls its scheduler's step, which counts, found {now:g} after {self.last:g}, rounded so that several "
                "of the scheduler's are one number; call the model within freeloc_fx.denoising_step(i)"
            )
        elif self.rises in (None, rises):
            self.step, self.last, self.rises = self.step + 1, now, rises
        elif now == self.first or (now > self.first) is rises or self.last == self.end:
            self._begin(now)
        else:
            raise CaptureError(
                f"the profile follows denoising steps: expected timesteps that {'rise' if self.rises else 'fall'} "
                f"from {self.first:g} on, or another generation from there, found {now:g} after {self.last:g}: it may "
                "be any step; call the scheduler's set_timesteps before each generation, or the model within "
                "freeloc_fx.denoising_step(i)"
            )
        return self.step

    def _begin(self, now: float) -> None:
        self.first = self.last = now
        self.step = 0


def _check_together(value: Any, timesteps: torch.Tensor) -> None:
    """Refuse frames that are denoised one after another, as diffusion forcing may: no step is all of theirs.

    They stand at several of the scheduler's timesteps. Conditioning frames have noise levels of their own, which are no
    timesteps, or lie in the last tenth of them.
    """
    if not isinstance(value, torch.Tensor) or value.numel() == 1:
        return
    entries = timesteps.detach().to(value.device, value.dtype)
    levels = value.unique()
    levels = levels[torch.isin(levels, entries) & (levels > entries.max() / 10)]
    if len(levels) > 1:
        raise CaptureError(
            "the profile follows denoising steps: expected the frames of a call at one step, beside conditioning "
            f"frames, found {len(levels)} of the scheduler's timesteps, from {float(levels[0]):g} to "
            f"{float(levels[-1]):g}: they are denoised one after another; denoise all frames together (SkyReels-V2: "
            "ar_step=0), or take a profile that does not follow steps"
        )


class StepCounter:
    """Counts the steps of one model's generations.

    A generation is known by its scheduler's timesteps, which `set_timesteps` makes anew for each (`running_timesteps`
    finds them), or where somebody walks along the same ones once more, by going back to where it began. Within it the
    same timestep again is the same step (guidance calls twice, a solver of second order visits it twice), another one
    the next. A pipeline that hands the later steps to a second transformer (Wan 2.2) counts each transformer's own
    steps.

    Without a scheduler steps are told by falling timesteps, each thread's on their own: a higher one is a new
    generation. That is said once, since a generation that begins below the last one's end looks like its next step;
    `denoising_step` tells the step instead. Timesteps that rise twice in a row are refused, and so is a thread whose
    first call is below where generations begin: it may go on with another thread's generation.

    Args:
        together: whether frames that stand at different steps of a scheduler are refused, since they have no step.
    """

    def __init__(self, *, together: bool = True) -> None:
        self._together = together
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
            CaptureError: the model takes no `timestep`, so its steps cannot be told apart; or its frames stand at
                different steps; or a thread's first call without a scheduler, or one that goes back along a scheduler's
                timesteps, may be any step.
        """
        value = arguments.get("timestep")
        if value is None:
            raise CaptureError(
                "the profile follows denoising steps: expected the model to be called with a timestep, found none"
            )
        # Per-token timesteps hold 0 for conditioning frames; the others share the step's value.
        now = float(value.max()) if isinstance(value, torch.Tensor) else float(value)
        if self._together and timesteps is not None:
            _check_together(value, timesteps)
        return self._falling(now) if timesteps is None else self._of(timesteps, value, now)

    def _of(self, timesteps: torch.Tensor, value: Any, now: float) -> int:
        with self._lock:
            self._generations = [run for run in self._generations if run.timesteps() is not None]
            run = next((run for run in self._generations if run.timesteps() is timesteps), None)
            made = steps_made(timesteps)
            if run is not None:
                return run.see(now, made)
            self._generations.append(_Generation(timesteps, value, now, made, solver_order(timesteps)))
            return 0

    def _falling(self, now: float) -> int:
        step, last, rose = getattr(self._here, "seen", (0, None, False))
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
        if last is not None and now > last and rose:
            raise CaptureError(
                "the profile follows denoising steps, and this call comes from no loop with a scheduler: expected "
                f"timesteps that fall within a generation, found {now:g} after {last:g}, which rises for the second "
                "time in a row; call the model within freeloc_fx.denoising_step(i)"
            )
        if last is None or now > last:
            step = 0
        elif now < last:
            step += 1
        self._here.seen = (step, now, now > last if last not in (None, now) else rose)
        return int(step)
