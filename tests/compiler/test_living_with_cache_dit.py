"""DBCache of the real cache-dit around a transformed model, put on before the transform or after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import wan, wan_inputs
from slow import slow

from freeloc_fx import Profile, plans, transform

cache_dit: Any = pytest.importorskip("cache_dit", reason="cache-dit is not installed: pip install cache-dit")

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")
STEPS = 6


def cached(model: Any, threshold: float) -> Any:
    """The model with all blocks but the first skipped where that one's residual has changed by less."""
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=model.blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_2,
        has_separate_cfg=False,
    )
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2, residual_diff_threshold=threshold,
        num_inference_steps=STEPS,
    )  # fmt: skip
    cache_dit.enable_cache(adapter, cache_config=config)
    return model


def sampled(model: Any) -> list[torch.Tensor]:
    """What the model gives for inputs that change a little from step to step."""
    results = []
    for step in range(STEPS):
        given = wan_inputs(12)
        given["timestep"] = torch.tensor([900 - step])
        given["hidden_states"] = given["hidden_states"] * (1 - 1e-3 * step)
        with torch.no_grad():
            results.append(model(**given)[0])
    return results


@pytest.fixture(scope="module")
def expected() -> list[torch.Tensor]:
    return sampled(transform(wan(num_layers=4), PROFILE, backend="eager"))


# Each order and each threshold once; with every pair of them where time allows.
@pytest.mark.parametrize(
    ("first", "threshold"), [("cache", 0.3), ("transform", 0.0), slow("cache", 0.0), slow("transform", 0.3)]
)
def test_dbcache(first: str, threshold: float, expected: list[torch.Tensor]) -> None:
    model = wan(num_layers=4)
    if first == "cache":
        changed = transform(cached(model, threshold), PROFILE, backend="eager")
    else:
        changed = cached(transform(model, PROFILE, backend="eager"), threshold)
    found = sampled(changed)
    assert [plan.rewritten for plan in plans(changed)] == [4]
    same = [torch.equal(a, b) for a, b in zip(found, expected, strict=True)]
    if threshold:  # the first steps are computed, later ones reuse what the blocks behind the first have given
        assert same == [True, True] + [False] * (STEPS - 2)
        assert all((a - b).norm() < 0.1 * b.norm() for a, b in zip(found, expected, strict=True))
    else:
        assert all(same)
