"""Denoising steps are those of the loop that calls the model, whatever ran before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    PNDMScheduler,
    RePaintScheduler,
    UniPCMultistepScheduler,
)
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


def test_timesteps_that_rise_are_refused_where_nobody_tells_the_step() -> None:
    """A loop from noise at 0 to data at 1 would be at step 0 all the time."""
    counter = StepCounter()
    assert [counter.see({"timestep": t}) for t in (0.0, 0.0, 0.25, 0.25)] == [0, 0, 0, 0]
    with pytest.raises(CaptureError, match=r"found 0\.5 after 0\.25, which rises for the second time.*denoising_step"):
        counter.see({"timestep": 0.5})
    assert [counter.see({"timestep": t}) for t in (0.1, 0.3, 0.2, 0.9, 0.1)] == [1, 0, 1, 0, 1]


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


@pytest.mark.parametrize(("shift", "steps"), [(12.0, 100), (8.0, 200)])
def test_timesteps_that_a_scheduler_rounds_to_one_number_are_steps_each(shift: float, steps: int) -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    counter, x = StepCounter(), torch.zeros(1, 1, 1, 1)
    for _ in range(2):
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        timesteps, found = scheduler.timesteps, []
        assert len(set(timesteps.tolist())) < steps
        for t in timesteps:
            twice = [counter.see({"timestep": t.expand(1)}, timesteps) for _ in range(2)]  # guidance
            assert twice[0] == twice[1]
            found.append(twice[0])
            x = scheduler.step(torch.ones_like(x), t, x, return_dict=False)[0]
        assert found == list(range(steps))


# Several generations along the same timesteps


TOLD: dict[str, Callable[[torch.Tensor], Any]] = {
    "as they are": lambda t: t.expand(1),
    "in half precision": lambda t: t.expand(2).bfloat16(),
    "scaled": lambda t: t.double() / 1000,
    "from the other end": lambda t: 1 - t.double() / 1000,
    "of tokens": lambda t: torch.tensor([[0.0, float(t), float(t)]]),
}
WALKED: dict[str, Callable[[], Any]] = {
    "falling": lambda: DDIMScheduler(),
    "each twice": lambda: HeunDiscreteScheduler(),
    "between": lambda: KDPM2AncestralDiscreteScheduler(),
    "some twice": lambda: PNDMScheduler(),
    "rising": lambda: DDIMInverseScheduler(),
}


def walk(counter: StepCounter, timesteps: torch.Tensor, told: Any = TOLD["as they are"], **part: Any) -> list[int]:
    """Steps of a loop that calls twice at each timestep of a part, for guidance."""
    loop = timesteps[slice(part.get("start"), part.get("stop"))]
    pairs = [[counter.see({"timestep": told(t)}, timesteps) for _ in range(2)] for t in loop]
    assert all(one == other for one, other in pairs)
    return [one for one, _ in pairs]


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize(
    ("name", "told"), [(name, told) for name in WALKED for told in TOLD if (name[:3], told[:7]) != ("bet", "in half")]
)
def test_videos_one_after_the_other(name: str, told: str) -> None:
    """A loop may go along its scheduler's timesteps again, all or the later ones, and may have been interrupted."""
    counter, scheduler = StepCounter(), WALKED[name]()
    scheduler.set_timesteps(7)
    timesteps, how = scheduler.timesteps, TOLD[told]
    values = torch.stack([torch.as_tensor(how(t)).max().double() for t in timesteps])
    distinct = values.unique_consecutive(return_inverse=True)[1].tolist()
    assert walk(counter, timesteps, how, stop=5) == distinct[:5], "interrupted"
    for _ in range(2):
        assert walk(counter, timesteps, how) == distinct
    scheduler.set_timesteps(7)  # all of it once more from the middle on
    timesteps = scheduler.timesteps
    later = [step - distinct[3] for step in distinct[3:]]
    for _ in range(2):
        assert walk(counter, timesteps, how, start=3) == later
    assert walk(counter, timesteps, how, stop=1) == [0] and walk(counter, timesteps, how, stop=4) == distinct[:4]


def test_a_loop_that_goes_back_to_its_middle() -> None:
    """After its end another one begins there; before, nothing tells, and it is refused rather than guessed."""
    counter, scheduler = StepCounter(), DDIMScheduler()
    scheduler.set_timesteps(6)
    timesteps = scheduler.timesteps
    assert walk(counter, timesteps) == [0, 1, 2, 3, 4, 5]
    assert walk(counter, timesteps, start=2) == [0, 1, 2, 3]
    assert walk(counter, timesteps, start=4) == [0, 1] and walk(counter, timesteps, stop=4) == [0, 1, 2, 3]
    with pytest.raises(CaptureError, match=r"fall from 830 on, or .* found 498 after 332: it may .* set_timesteps"):
        walk(counter, timesteps, start=2)
    assert walk(counter, timesteps) == [0, 1, 2, 3, 4, 5]


def test_a_clean_frame_is_looked_at_before_a_generation() -> None:
    """Models that go on from a clip are called once for it, at timestep 0, before each clip that they add."""
    counter, scheduler = StepCounter(), FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    clean = {"timestep": torch.zeros(1)}
    for end in (0, 4):
        assert counter.see(clean, scheduler.timesteps) == end
        assert walk(counter, scheduler.timesteps) == [0, 1, 2, 3]


def staircase(steps: int, blocks: int, lag: int) -> list[torch.Tensor]:
    """Timesteps (1, blocks) of each call of diffusion forcing: each block is `lag` steps behind the one before it."""
    levels = [1000.0 - 900 * step / (steps - 1) for step in range(steps)]
    calls = range(1, steps + lag * (blocks - 1))
    return [torch.tensor([[levels[min(max(n - lag * b, 0), steps - 1)] for b in range(blocks)]]) for n in calls]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize(("blocks", "lag"), [(2, 1), (2, 3), (3, 2), (10, 2), (5, 7)])
def test_frames_that_are_denoised_one_after_another_have_no_step(blocks: int, lag: int, dtype: torch.dtype) -> None:
    """SkyReels-V2 with ar_step above 0."""
    counter, timesteps = StepCounter(), torch.linspace(1000, 100, 8).to(dtype)
    with pytest.raises(CaptureError, match=r"frames of a call at one step, .* 2 of the scheduler's .* ar_step=0"):
        for call in staircase(8, blocks, lag):
            for _ in range(2):  # guidance
                counter.see({"timestep": call.to(dtype)}, timesteps)
    free = StepCounter(together=False)
    assert [free.see({"timestep": call.to(dtype)}, timesteps) for call in staircase(8, blocks, lag)]


@pytest.mark.parametrize("beside", [[0.0], [20.0], [0.0, 250.0], [500.0, 20.0], [900.0, 300.0, 0.0]])
def test_conditioning_frames_have_noise_levels_of_their_own(beside: list[float]) -> None:
    """Clean, or with as much noise as they were given and no more than the others have."""
    counter, timesteps = StepCounter(), torch.linspace(1000, 100, 4)
    for _ in range(2):
        steps = []
        for now in timesteps.tolist():
            call = torch.tensor([[*(min(level, now) for level in beside), now, now]])
            steps += [counter.see({"timestep": call}, timesteps) for _ in range(2)]
        assert steps == [0, 0, 1, 1, 2, 2, 3, 3]


def test_windows_have_conditioning_frames_of_their_own() -> None:
    """A model that follows steps inside context windows: the same step, other frames in each call."""
    counter, timesteps = StepCounter(), torch.linspace(1000, 0, 5)
    for now in timesteps.tolist():
        for beside in ([now, now], [300.0, 200.0], [20.0, 0.0], [100.0, now], [0.0, 0.0]):
            call = torch.tensor([[now, *(min(level, now) for level in beside)]])
            assert counter.see({"timestep": call}, timesteps) == timesteps.tolist().index(now)


def test_timesteps_that_half_precision_does_not_tell_apart() -> None:
    """HunyuanVideo's pipeline rounds them, two to one at its first steps; the scheduler knows how many it has made."""
    counter, scheduler = StepCounter(), FlowMatchEulerDiscreteScheduler(shift=12.0)
    for start in (0, 0, 5):
        scheduler.set_timesteps(40)
        scheduler.set_begin_index(start)
        x, seen = torch.zeros(1), []
        for t in scheduler.timesteps[start:]:
            pair = [counter.see({"timestep": t.expand(1).bfloat16()}, scheduler.timesteps) for _ in range(2)]
            assert pair[0] == pair[1]
            seen.append(pair[0])
            x = scheduler.step(x, t, x, return_dict=False)[0]
        assert seen == list(range(40 - start))
    assert len(scheduler.timesteps.bfloat16().unique()) < 38
    scheduler.set_timesteps(40)  # and nobody takes its steps
    first = scheduler.timesteps[:2].bfloat16()
    with pytest.raises(CaptureError, match=r"found 996 after 1000, rounded so that several .*denoising_step"):
        [counter.see({"timestep": t}, scheduler.timesteps) for t in (*first, torch.tensor(996.0).bfloat16())]


def test_timesteps_that_turn_back() -> None:
    counter, scheduler = StepCounter(), RePaintScheduler()
    scheduler.set_timesteps(8, jump_length=2, jump_n_sample=2)
    timesteps = scheduler.timesteps
    assert (timesteps.diff() > 0).any() and (timesteps.diff() < 0).any()
    for _ in range(2):
        assert walk(counter, timesteps) == list(range(len(timesteps)))


def test_two_videos_of_one_model_are_alike() -> None:
    model = wan(num_layers=1)
    changed = transform(model, Profile(2, "vrpr", schedule=[{"steps": 1, "layers": "direct"}]), backend="eager")
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)

    def video() -> list[torch.Tensor]:
        given = wan_inputs(5)
        return [changed(**given | {"timestep": t.expand(1)})[0] for t in scheduler.timesteps]

    with torch.no_grad():
        first, second = video(), video()
        plain = [model(**wan_inputs(5) | {"timestep": t.expand(1)})[0] for t in scheduler.timesteps]
    assert all(map(torch.equal, first, second))
    assert [torch.allclose(*pair, atol=1e-4) for pair in zip(first, plain, strict=True)] == [True, False, False]
