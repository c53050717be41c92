"""What "auto" runs on a CPU: measured once for a class of attentions, kept with the backend, logged."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import distance, named
from models import wan
from transformed import run

from freeloc_fx import Profile, transform
from freeloc_fx.attention import op, quickest
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.running import Running, within
from freeloc_fx.method.spec import AttentionSpec

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that each lowering ran; `calls` gives its time in `slow`."""
    shapes: dict[str, list[tuple[int, ...]]] = {"tiles": [], "calls": []}

    def noted(name: str, run: op.Lowering) -> op.Lowering:
        def lowering(q: torch.Tensor, *rest: Any) -> torch.Tensor:
            shapes[name].append(tuple(q.shape))
            return run(q, *rest)

        return lowering

    for name in shapes:
        monkeypatch.setitem(op.LOWERINGS, name, noted(name, op.LOWERINGS[name]))
    return shapes


@pytest.fixture(autouse=True)
def short_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure also what is small enough for a test."""
    monkeypatch.setattr(quickest, "LEAST", 0)


def clock(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Time passes as said, whatever the machine does meanwhile."""
    now = [0.0]
    monkeypatch.setattr(quickest.time, "perf_counter", lambda: now[0])
    for name, takes in seconds.items():
        run = op.LOWERINGS[name]

        def slow(*given: Any, run: op.Lowering = run, takes: float = takes) -> torch.Tensor:
            now[0] += takes
            return run(*given)

        monkeypatch.setitem(op.LOWERINGS, name, slow)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((1.0, 0.5), "calls"), ((1.0, 0.9), "tiles"), ((1.0, 2.0), "tiles")],
    ids=["clearly quicker", "as quick", "slower"],
)
def test_the_quickest_is_measured_once_and_said(
    ran: dict[str, list[tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: tuple[float, float],
    expected: str,
) -> None:
    clock(monkeypatch, dict(zip(("tiles", "calls"), seconds, strict=True)))
    case = named("vrpr+tsa+temp", heads=5)
    inputs = case.tensors()
    choices: dict[Any, str] = {}
    with caplog.at_level(logging.INFO, "freeloc_fx"), within(Running(choices=choices)):
        for _ in range(3):
            found = op.run("auto", *inputs, case.spec)
            assert distance(found, reference(*inputs, case.spec)) <= 1e-5
    assert list(choices.values()) == [expected]
    full = tuple(inputs[0].shape)
    assert {name: shapes.count(full) for name, shapes in ran.items()} == {
        name: 3 if name == expected else 0 for name in ran
    }
    assert all(shape[1] <= torch.get_num_threads() for shapes in ran.values() for shape in shapes if shape != full)
    lines = [r.getMessage() for r in caplog.records if "calls" in r.getMessage()]
    assert len(lines) == 1 and lines[0].endswith(f": {expected}")


def test_other_classes_are_measured_each(ran: dict[str, list[tuple[int, ...]]]) -> None:
    case = named("vrpr", heads=1)
    choices: dict[Any, str] = {}
    with within(Running(choices=choices)):
        for dtype in (torch.float32, torch.bfloat16):
            op.run("auto", *case.tensors(dtype), case.spec)
        op.run("auto", *named("vrpr", heads=2).tensors(), named("vrpr", heads=2).spec)
        warmer = replace(case.spec.strategy, temperature=1.1)  # a step's other number is no other class
        op.run("auto", *case.tensors(), AttentionSpec(warmer, case.spec.grid, case.spec.rope))
    assert len(choices) == 3


def test_outside_of_a_transformed_model_nothing_is_measured(ran: dict[str, list[tuple[int, ...]]]) -> None:
    case = named("vrpr")
    op.run("auto", *case.tensors(), case.spec)
    assert not ran["calls"] and len(ran["tiles"]) == 1


def test_where_the_kernel_cannot_run_there_is_no_choice(ran: dict[str, list[tuple[int, ...]]]) -> None:
    case = named("vrpr")
    with within(Running(choices={})):
        op.run("auto", *case.tensors(torch.float64), case.spec)
    assert not ran["calls"] and len(ran["tiles"]) == 1


def test_a_transformed_model_measures_once_for_all_its_layers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "freeloc_fx"):
        one, two = (transform(wan(), PROFILE, backend="eager") for _ in range(2))
        for model in (one, one, two):
            run(model)
    lines = [r.getMessage() for r in caplog.records if r.name == "freeloc_fx.attention.quickest"]
    assert len(lines) == 2, "one measurement for each transformed model, none for its second layer or call"


def test_what_is_short_is_not_measured(ran: dict[str, list[tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch) -> None:
    case = named("vrpr+tsa+temp")
    monkeypatch.setattr(quickest, "LEAST", case.spec.grid.sequence + 1)
    choices: dict[Any, str] = {}
    with within(Running(choices=choices)):
        op.run("auto", *case.tensors(), case.spec)
    assert not choices and ran["calls"] == [] and len(ran["tiles"]) == 1
