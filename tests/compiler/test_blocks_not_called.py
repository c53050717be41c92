"""Steps in which no block is called, as caches skip them all, run; blocks that are called past our capture, or are not
those of the transform any more, are errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from answers import changed_of, distance
from diffusers_models import arguments, build
from models import DiT, latents, wan, wan_inputs
from slow import slow
from torch import nn

from freeloc_fx import restore
from freeloc_fx.errors import CaptureError, TransformError

# Caches that skip every block of a step


def mag(model: Any) -> None:
    from diffusers import MagCacheConfig

    when = {"max_skip_steps": 2, "retention_ratio": 0.2, "num_inference_steps": 5}
    model.enable_cache(MagCacheConfig(threshold=10.0, mag_ratios=torch.ones(5), **when))


def taylor(model: Any) -> None:
    from diffusers import TaylorSeerCacheConfig

    model.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32, use_lite_mode=True
        )
    )


def sampled(model: Any, frames: int, drift: float) -> list[torch.Tensor]:
    """What a model gives for five steps, whose inputs change by this much from one to the next."""
    given, found = arguments("LTX", model, frames), []
    with model.cache_context("cond"), torch.no_grad():
        for step in range(5):
            found.append(model(**given | {"hidden_states": given["hidden_states"] * (1 + drift * step)})[0])
    return found


@pytest.mark.parametrize("cache", [mag, taylor])
def test_steps_that_skip_every_block_within_the_trained_length(cache: Callable[[Any], None]) -> None:
    """As of the original with the same cache; and other than without one."""
    model, other = build("LTX"), build("LTX")
    plain = sampled(build("LTX"), 4, 0.5)  # diffusers 0.38 has no context for a cache that comes after a call
    cache(model)
    cache(changed := changed_of(other))
    found, expected = sampled(changed, 4, 0.5), sampled(model, 4, 0.5)
    assert all(map(torch.equal, found, expected))
    assert not all(map(torch.equal, found, plain)), "the cache skips nothing"


@pytest.mark.parametrize("cache", [mag, slow(taylor)])
def test_steps_that_skip_every_block_of_a_long_clip(cache: Callable[[Any], None]) -> None:
    """Of one input over and over, what is reused is what would be computed."""
    model = build("LTX")
    changed = changed_of(model)
    expected = sampled(changed, 9, 0.0)[0]
    cache(changed)
    assert all(distance(found, expected) <= 1e-5 for found in sampled(changed, 9, 0.0))


# A model that decides by its data what becomes of its blocks


class Deciding(DiT):
    """Goes past its own blocks as `way` says: "skips" them all and adds what they added the last time."""

    way = "calls"
    residual: torch.Tensor

    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        frames, height, width = (int(n) for n in hidden_states.shape[2:])
        x = first = self.proj_in(hidden_states.flatten(2).transpose(1, 2))
        if float(x.abs().max()) == 0.0:  # no single graph
            return hidden_states
        tables = self.tables((frames, height, width))
        for block in () if self.way == "skips" else self.blocks:
            x = through(block, self.way)(x, tables, context)
        if self.way == "skips":
            x = first + self.residual
        else:
            self.residual = x - first
        return self.proj_out(x).transpose(1, 2).unflatten(2, (frames, height, width))  # type: ignore[no-any-return]


def through(block: nn.Module, way: str) -> Callable[..., Any]:
    """A way to a block's own code."""
    ways: dict[str, Callable[..., Any]] = {
        "calls": block,
        "forward": lambda *args: block.forward(*args),
        "thread": lambda *args: ThreadPoolExecutor(1).submit(torch.no_grad()(block), *args).result(),
    }
    return ways[way]


def test_a_forward_that_skips_its_blocks() -> None:
    model, given = Deciding(layers=3), latents(8, 2, 4)
    changed = changed_of(model)
    expected = changed(given)
    changed.way = "skips"
    assert distance(changed(given), expected) <= 1e-6
    assert distance(changed(2 * given), changed_of(model)(2 * given)) > 1e-3, "nothing is reused"
    changed.way = "calls"
    assert distance(changed(given), expected) <= 1e-6


@pytest.mark.parametrize("way", ["forward", "thread"])
def test_blocks_that_are_called_past_the_capture(way: str) -> None:
    """Before a call that was captured and after it."""
    for before in (False, True):
        changed = changed_of(Deciding())
        if before:
            changed(latents(8))
        changed.way = way
        with pytest.raises(CaptureError, match="Deciding: something that is not known keeps"):
            changed(latents(8))


def test_blocks_that_no_call_ever_came_to() -> None:
    changed = changed_of(Deciding())
    changed.way, changed.residual = "skips", torch.zeros(())
    with pytest.raises(CaptureError, match="Deciding: something that is not known keeps"):
        changed(latents(8))


# Other blocks than those of the transform


def fewer(model: Any) -> None:
    model.blocks = model.blocks[1:]


def another(model: Any) -> None:
    model.blocks.append(copy.deepcopy(model.blocks[0]))


def none(model: Any) -> None:
    del model.blocks


@pytest.mark.parametrize(
    ("change", "found"),
    [(fewer, r"none at blocks\.2;"), (another, "3 of them in blocks, found 4 there;"), (none, r"none at blocks\.0;")],
)
def test_blocks_that_come_or_go_after_the_transform(change: Callable[[Any], None], found: str) -> None:
    model = wan(num_layers=3)
    changed = changed_of(model)
    change(model)
    said = f"WanTransformer3DModel: expected the 3 blocks that it was transformed with, (found )?{found} restore"
    with pytest.raises(TransformError, match=said):
        changed(**wan_inputs(6))
    with pytest.raises(TransformError, match=said):
        changed.compile(backend="eager")
    if change is fewer:
        with torch.no_grad():
            assert changed_of(restore(changed))(**wan_inputs(6))[0].isfinite().all()


def test_a_block_that_comes_twice_after_the_transform_keeps_its_number() -> None:
    model = wan(num_layers=3)
    changed = changed_of(model)
    model.blocks.append(model.blocks[0])
    with torch.no_grad():
        found, fresh = changed(**wan_inputs(6))[0], changed_of(model)(**wan_inputs(6))[0]
    assert torch.equal(found, fresh)
