"""Denoising steps are those of the loop that calls the model, whatever ran before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from models import wan, wan_inputs

from freeloc_fx import Profile, denoising_step, transform
from freeloc_fx.compiler.capture.steps import StepCounter
from freeloc_fx.errors import CaptureError

PROFILE = Profile(
    trained_frames=3,
    layers="vrpr+tsa",
    schedule=[{"steps": 1, "layers": "tsa"}, {"steps": 1, "layers": {0: "direct", 1: "vrpr"}}],
)
FRAMES = 7

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "flow matching": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "several steps": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "no step index": lambda: DDIMScheduler(prediction_type="v_prediction"),
}


class Pipeline:
    """From noise, or with `strength` below 1 from given latents, as diffusers' pipelines do it."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        self.transformer, self.scheduler = transformer, scheduler

    def __call__(self, steps: int, strength: float = 1.0, stop: int | None = None) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        start = steps - round(steps * strength)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(start)
        given = wan_inputs(FRAMES)
        x = given["hidden_states"]
        for number, t in enumerate(self.scheduler.timesteps[start:]):
            if number == stop:
                raise KeyboardInterrupt
            for _ in range(2):  # guidance
                out = self.transformer(**given | {"hidden_states": x, "timestep": t.expand(1).float()})[0]
            x = self.scheduler.step(out, t, x, return_dict=False)[0]
        return x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_generation_that_begins_below_the_last_ones_end(name: str) -> None:
    model = wan()
    changed = transform(model, PROFILE, backend="eager")
    with torch.no_grad():
        alone = Pipeline(changed, SCHEDULERS[name]())(8, strength=0.3)
        pipe = Pipeline(changed, SCHEDULERS[name]())
        whole = pipe(2)
        assert torch.equal(pipe(8, strength=0.3), alone), "after a run that ended at a higher timestep"
        with pytest.raises(KeyboardInterrupt):
            pipe(4, stop=1)
        assert torch.equal(pipe(8, strength=0.3), alone), "after a run that was interrupted"
        assert torch.equal(pipe(2), whole)


def test_two_pipelines_of_one_model_take_turns() -> None:
    """Each has a scheduler of its own; a step of one does not count for the other."""
    counter, seen = StepCounter(), []
    first, second = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler()
    first.set_timesteps(4)
    second.set_timesteps(3)
    for one, other in zip(first.timesteps, [*second.timesteps, second.timesteps[-1]], strict=True):
        seen.append(
            (counter.see({"timestep": one}, first.timesteps), counter.see({"timestep": other}, second.timesteps))
        )
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 2)]


def test_a_generation_that_goes_from_thread_to_thread() -> None:
    """A server may make each step in another thread; the pipeline's loop is a coroutine."""
    model = wan()
    changed = transform(model, PROFILE, backend="eager")
    with torch.no_grad():
        expected = Pipeline(changed, SCHEDULERS["flow matching"]())(3)

    def call(scheduler: Any, given: dict[str, Any], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = changed(**given | {"hidden_states": x, "timestep": t.expand(1).float()})[0]
        return scheduler.step(out, t, x, return_dict=False)[0]

    async def generation() -> torch.Tensor:
        scheduler, given = SCHEDULERS["flow matching"](), wan_inputs(FRAMES)
        scheduler.set_timesteps(3)
        x = given["hidden_states"]
        for t in scheduler.timesteps:
            with ThreadPoolExecutor(1) as pool:  # another thread each time
                x = await asyncio.get_running_loop().run_in_executor(pool, call, scheduler, given, x, t)
        return x

    assert torch.equal(asyncio.run(generation()), expected)


def test_steps_that_nobody_tells_are_guessed_aloud_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    counter = StepCounter()
    with caplog.at_level(logging.WARNING, logger="freeloc_fx"):
        assert [counter.see({"timestep": t}) for t in (900, 500)] == [0, 1]
    assert [r.message.count("no loop with a scheduler") for r in caplog.records] == [1]
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(CaptureError, match="first call at timestep 900, where generations begin, found 500"):
            pool.submit(counter.see, {"timestep": 500}).result()
        assert pool.submit(counter.see, {"timestep": 900}).result() == 0


def test_a_step_told_by_hand() -> None:
    model = wan()
    changed = transform(model, PROFILE, backend="eager")
    given = wan_inputs(FRAMES)
    with torch.no_grad():
        expected = [changed(**given | {"timestep": torch.tensor([t])})[0] for t in (900.0, 600.0)]
        same = given | {"timestep": torch.tensor([600.0])}
        for step in (1, 0, 1):
            with denoising_step(step):
                found = changed(**same)[0]
            assert torch.equal(found, expected[1]) is (step == 1)
    with pytest.raises(ValueError, match="step: expected an integer of at least 0, found -1"), denoising_step(-1):
        pass
