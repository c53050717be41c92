"""Models of random spelling: bitwise within the trained length, the reference beyond it, or an error of ours."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from spellings import Spelled, inputs, spelled, spellings

from freeloc_fx import Plan, Profile, plans, transform
from freeloc_fx.attention.reference import reference
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.errors import FreelocError

TRAINED = 3
PROFILES = (
    Profile(trained_frames=TRAINED, layers="vrpr+tsa"),
    Profile(trained_frames=TRAINED, layers="vrpr"),
    Profile(trained_frames=TRAINED, layers={0: "vrpr", 1: "tsa", 2: "vrpr+tsa"}),
    Profile(trained_frames=TRAINED, layers={0: "tsa", 1: "direct"}),
)


class Run:
    """Records the kernel calls of a model that runs as it is written, and can answer them literally.

    Args:
        plan: what each call in order becomes; None: the calls are left as they are.
    """

    def __init__(self, plan: Plan | None) -> None:
        self.plan, self.count = plan, 0

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
        number, self.count = self.count, self.count + 1
        if self.plan is None:
            return SDPA(q, k, v, **options)
        return reference(q, k, v, self.plan.sites[number].spec())


SDPA = F.scaled_dot_product_attention


def expected(model: Spelled, given: dict[str, Any], plan: Plan, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the model makes, as it is written, with a literal long attention in place of each kernel call."""
    calls = Run(plan)
    with monkeypatch.context() as patched, model.how.autocast():
        patched.setattr(F, "scaled_dot_product_attention", calls)
        result: torch.Tensor = model(**given)
    assert calls.count == len(plan.sites)
    return result


def check_plan(model: Spelled, plan: Plan, profile: Profile, shape: tuple[int, int, int]) -> None:
    """The plan tells the truth of a model that is known."""
    assert (plan.grid.frames, plan.grid.tokens) == (shape[0], shape[1] * shape[2])
    if model.how.patches or 1 not in shape[1:]:  # else RoPE does not tell a row from a column
        assert (plan.grid.height, plan.grid.width) == shape[1:]
    assert plan.grid.text == (0 if model.how.text == "none" else 5)
    table = {id(model.get_submodule(path)): layer for path, layer in reversed(layer_table(model).items())}
    first: dict[int, int] = {}
    for site, block in zip(plan.sites, model.ordered(), strict=True):
        if not table:
            assert site.layer == first.setdefault(id(block), len(first)), "a block called again is the same layer"
        elif model.how.order != "one shared":
            assert site.layer == table[id(block)]
        assert site.strategy.name == profile.strategy_name(site.layer)
        rates = sorted(rate for rate in site.rope.omega[0])
        truth = sorted(50.0 ** (-p / model.split[0]) for p in range(model.split[0]))
        assert rates == pytest.approx(truth, abs=1e-4)


def outcome(model: Spelled, profile: Profile, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> str:
    """What became of a model: "right" or the name of our error. Anything else fails."""
    torch._dynamo.reset()
    short, long = inputs(model, TRAINED, *shape[1:]), inputs(model, *shape)
    try:
        changed = transform(model, profile, backend="eager")
        with model.how.autocast():
            found_short, found = changed(**short), changed(**long)
    except FreelocError as error:
        note(f"refused: {error}")
        return type(error).__name__
    with model.how.autocast():
        assert torch.equal(found_short, model(**short)), "within the trained length"
    plan = plans(changed)[-1]
    check_plan(model, plan, profile, shape)
    truth = expected(model, long, plan, monkeypatch)
    error = (found.double() - truth.double()).abs().max() / truth.double().abs().max()
    assert error < (5e-5 if found.dtype == torch.float32 and model.how.number == "float32" else 0.06), f"off by {error}"
    return "right"


def run(examples: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each outcome was seen."""
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        how=spellings(),
        profile=st.sampled_from(PROFILES),
        shape=st.tuples(st.integers(4, 9), st.integers(1, 3), st.integers(1, 3)),
        seed=st.integers(0, 3),
    )
    @torch.no_grad()
    def one(how: Any, profile: Profile, shape: tuple[int, int, int], seed: int) -> None:
        seen[outcome(spelled(how, seed), profile, shape, monkeypatch)] += 1

    one()
    return seen


def test_some_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run(8, monkeypatch)
    assert seen["right"] >= seen.total() / 2, seen


@pytest.mark.slow
def test_many_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run(500, monkeypatch)
    assert seen["right"] >= seen.total() / 2, seen
