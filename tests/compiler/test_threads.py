"""Several threads at one model: each gets what it gets alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from models import wan, wan_inputs
from slow import slow
from transformed import LONG

from freeloc_fx import Profile, plans, transform

STEPS = (900.0, 500.0, 100.0)
"""Timesteps of a generation; every step has strategies of its own."""
PROFILE = Profile(
    trained_frames=5,
    layers="vrpr+tsa",
    schedule=[{"steps": 1, "layers": "tsa"}, {"steps": 1, "layers": {0: "direct", 1: "vrpr"}}],
)
ROUNDS = 20


def call(model: Any, timestep: float) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**wan_inputs(LONG) | {"timestep": torch.tensor([timestep])})[0]
    return result


# Cold, both meet at the first capture, and from then on all is as when one of them made it before.
@pytest.mark.parametrize("warm", [slow(True, id="warm"), pytest.param(False, id="cold")])
def test_two_threads_each_with_a_generation_of_its_own(warm: bool) -> None:
    """One is a step ahead of the other all the time, and each pair of calls begins at one moment."""
    model = wan()
    alone = transform(model, PROFILE, backend="eager")
    expected = [call(alone, t) for t in STEPS]
    last = transform(model, Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager")
    for found, t in zip(expected[:2], STEPS, strict=False):
        assert not torch.allclose(found, call(last, t), atol=1e-3), "the strategies of the steps show in the output"
    torch._dynamo.reset()
    changed = transform(model, PROFILE, backend="eager")
    if warm:
        call(changed, STEPS[0])
    count = ROUNDS * len(STEPS) - 1
    begin = threading.Barrier(2, timeout=120)

    def generations(ahead: int) -> list[torch.Tensor]:
        try:
            found = [call(changed, STEPS[0]) for _ in range(ahead)]
            for number in range(ahead, ahead + count):
                begin.wait()
                found.append(call(changed, STEPS[number % len(STEPS)]))
            return found
        except BaseException:
            begin.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(generations, ahead) for ahead in (0, 1)]
        outputs = [future.result(timeout=300) for future in futures]
    for found in outputs:
        assert [torch.equal(x, expected[i % len(STEPS)]) for i, x in enumerate(found)] == [True] * len(found)
    assert len(plans(changed)) == 1


def test_the_original_beside_a_transformed_model_that_runs_block_by_block() -> None:
    """While one thread is inside the transformed model, at each of its blocks, another calls the original."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    model, profile = wan(), Profile(trained_frames=5, layers="vrpr+tsa")
    untouched = call(model, STEPS[0])
    expected = call(transform(model, profile, backend="eager"), STEPS[0])
    torch._dynamo.reset()
    assert not torch.allclose(untouched, expected, atol=1e-3)
    beside: list[torch.Tensor] = []
    inside = threading.current_thread()

    class Meanwhile(ModelHook):
        """Has the original called by another thread, before and after a block."""

        def look(self) -> None:
            if threading.current_thread() is inside:
                with ThreadPoolExecutor(1) as pool:
                    beside.append(pool.submit(call, model, STEPS[0]).result(timeout=240))

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.look()
            return args, kwargs

        def post_forward(self, module: Any, output: Any) -> Any:
            self.look()
            return output

    changed = transform(model, profile, backend="eager")
    for block in model.blocks:
        add_hook_to_module(block, Meanwhile())
    for _ in range(2):
        torch.testing.assert_close(call(changed, STEPS[0]), expected, atol=1e-5, rtol=1e-4)
    assert len(beside) == 2 * 2 * len(model.blocks)
    assert all(torch.equal(found, untouched) for found in beside)
    assert [plan.rewritten for plan in plans(changed)] == [2]
