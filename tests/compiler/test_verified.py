"""What `verify=True` has compared belongs to one backend, and to a shape, dtype and device; no class is without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers_models import CASES, arguments, build
from models import wan
from slow import slow
from torch.utils._pytree import tree_leaves
from transformed import LONG, run

from freeloc_fx import Profile, plans, transform
from freeloc_fx.attention import op
from freeloc_fx.errors import VerificationError

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, int]]:
    """(dtype, batch) of every comparison with the reference."""
    found: list[tuple[torch.dtype, int]] = []
    check = op.check_agreement

    def noting(out: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, about: str) -> None:
        found.append((dtype, out.shape[0]))
        check(out, expected, dtype, about)

    monkeypatch.setattr(op, "check_agreement", noting)
    return found


def verified(model: Any) -> Any:
    return transform(model, PROFILE, backend="eager", verify=True)


def test_once_for_each_model(compared: list[Any]) -> None:
    """Both layers are one spec, which the first of them compares."""
    one, two = verified(wan()), verified(wan(seed=1))
    for _ in range(2):
        run(one)
    assert compared == [(torch.float32, 1)]
    for _ in range(2):
        run(two)
    assert compared == [(torch.float32, 1)] * 2, "another model of the same strategy begins anew"
    again = verified(wan())
    run(again)
    assert len(compared) == 3, "nothing is left of a model that was verified before"


def test_once_for_each_shape(compared: list[Any]) -> None:
    changed = verified(wan())
    for batch in (1, 2, 1, 2):
        run(changed, batch=batch)
    assert compared == [(torch.float32, 1), (torch.float32, 2)]


def test_once_for_each_dtype(compared: list[Any]) -> None:
    """The same spec, called in another dtype."""
    changed = verified(wan())
    run(changed)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            run(changed)
    run(changed)
    assert compared == [(torch.float32, 1), (torch.bfloat16, 1)]


def test_not_without_the_switch(compared: list[Any]) -> None:
    run(transform(wan(), PROFILE, backend="eager"))
    assert compared == []


def test_what_has_failed_is_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what agreed counts as compared."""
    changed = verified(wan())
    right = op.LOWERINGS["tiles"]
    with monkeypatch.context() as wrong:
        wrong.setitem(op.LOWERINGS, "tiles", lambda *given: right(*given) * 1.01)
        for _ in range(2):
            with pytest.raises(VerificationError, match="differs from the reference"):
                run(changed)
    assert run(changed).shape == (1, 4, LONG, 4, 4)


@pytest.mark.parametrize("lowering", [slow("tiles"), "calls"])
def test_heads_are_compared_one_by_one_where_scores_are_large(
    lowering: str, compared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LTX2's heads turn at rates of their own."""
    monkeypatch.setattr(op, "_SCORES", 1)
    model = build("LTX2 split")
    given = {**arguments("LTX2 split", model, 10), "return_dict": False}
    changed = transform(model, PROFILE, backend="eager", attention=lowering, verify=True)
    with torch.no_grad():
        changed(**given)
    assert compared
    right = op.LOWERINGS[lowering]

    def wrong(*given: Any) -> torch.Tensor:
        out = right(*given).clone()
        out[:, -1] *= 1.01  # the last head
        return out

    monkeypatch.setitem(op.LOWERINGS, lowering, wrong)
    changed = transform(model, PROFILE, backend="eager", attention=lowering, verify=True)
    with torch.no_grad(), pytest.raises(VerificationError, match="differs from the reference"):
        changed(**given)


# Every class, its numbers of tokens that depend on data among them


def small(name: str) -> Any:
    """A model of a class, of as few layers as it can have where shapes are propagated slowly."""
    case = CASES[name]
    return build(name, case=replace(case, config={**case.config, "num_layers": 1}) if name == "Mochi" else None)


@pytest.mark.parametrize("name", [name if name == "Mochi" else slow(name) for name in CASES if not CASES[name].refused])
def test_every_class_within_and_above_its_trained_length(name: str) -> None:
    patch = CASES[name].patch[0]
    changed = verified(model := small(name))
    for frames in (10, 5):
        given = {**arguments(name, model, frames * patch), "return_dict": False}
        with torch.no_grad():
            found, expected = (call(**given) for call in (changed, model))
        same = [torch.equal(a, b) for a, b in zip(*map(tensors, (found, expected)), strict=True)]
        assert all(same) if frames == 5 else not all(same)
    assert [bool(plan.rewritten) for plan in plans(changed)] == [True, False]


def tensors(result: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]


def test_padding_that_is_left_out_by_data(compared: list[Any]) -> None:
    """Mochi, a row with as many words as there is room for beside one with few: each is compared as the long one."""
    changed = verified(model := small("Mochi"))
    for shown in (16, 3, 0):
        given = {**arguments("Mochi", model, 10, text_shown=shown), "return_dict": False}
        with torch.no_grad():
            assert changed(**given)[0].isfinite().all()
    assert len(plans(changed)) == 1 and compared
