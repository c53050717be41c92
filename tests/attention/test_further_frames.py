"""A clip with keyframes and references beside it: every lowering equals the formula at the frames' own times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_cases import distance
from hypothesis import given, settings
from slow import slow
from spans_cases import SpanCase, span_cases

from freeloc_fx.attention.op import LOWERINGS, run
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.tiles.lowering import engine
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.build import build
from freeloc_fx.method.grid import Further
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry

VRPR = {"w1": 3, "w2": 7, "g1": 2, "g2": 3}
TSA = {"d1": 2, "d2": 6, "ds": 2}
KEYFRAMES = SpanCase(
    clip=(12, 2, 3),
    before=((4.375, 2, 3), (10.875, 2, 3), (10.875, 2, 3)),
    after=((0.0, 2, 3), (-2.0, 2, 3), (15.0, 2, 3)),
    text=(2, 3),
    vrpr=VRPR,
    tsa=TSA,
    temperature=1.2,
)
FAST = [name for name in LOWERINGS if name != "reference"]


@settings(max_examples=25)
@given(span_cases())
def test_the_reference_is_the_formula(case: SpanCase) -> None:
    found = reference(*case.tensors(torch.float64), case.spec)
    assert distance(found, torch.from_numpy(case.expected())) <= 1e-9


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=10)
@given(case=span_cases(one_size=True))
def test_every_lowering_equals_the_reference(name: str, case: SpanCase) -> None:
    q, k, v = case.tensors()
    assert distance(run(name, q, k, v, case.spec), reference(q, k, v, case.spec)) <= 2e-5


@pytest.mark.parametrize("name", ["tiles", "flex"])
@settings(max_examples=8)
@given(case=span_cases(one_size=False))
def test_frames_of_other_sizes(name: str, case: SpanCase) -> None:
    q, k, v = case.tensors()
    assert distance(run(name, q, k, v, case.spec), reference(q, k, v, case.spec)) <= 2e-5


SMALL = replace(KEYFRAMES, before=((4.375, 1, 2),), after=((0.0, 2, 3), (3.0, 1, 1)))


def test_calls_refuse_frames_of_other_sizes_by_name() -> None:
    q, k, v = SMALL.tensors()
    with pytest.raises(CaptureError, match=r"calls run frames of one size, expected 2x3 tokens, found .*1x2.*further"):
        run("calls", q, k, v, SMALL.spec)
    assert distance(run("auto", q, k, v, SMALL.spec), torch.from_numpy(SMALL.expected())) <= 2e-5


def test_tiles_without_the_kernel_take_frames_of_other_sizes() -> None:
    assert engine(torch.device("cpu"), torch.float64)[0] == "calls"
    found = run("tiles", *SMALL.tensors(torch.float64), SMALL.spec)
    assert distance(found, torch.from_numpy(SMALL.expected())) <= 1e-9


@pytest.mark.parametrize("name", ["vrpr", "clip", "group", "longdiff", "riflex", "anchors", "ultravico", "freelong",
                                  "vrpr+tsa+temp", slow("tsa"), slow("window"), slow("yarn+tsa")])  # fmt: skip
@pytest.mark.parametrize("lowering", FAST)
def test_every_part_takes_times(name: str, lowering: str) -> None:
    """Lowerings agree with each other; of the strategies' tables the clip's own part is that of the clip alone."""
    settings_of = {"ultravico": {"ultravico": {"period": 7}}}.get(name, {})
    strategy = build(name, Geometry(5, 12, 2, 3), settings_of)
    spec = AttentionSpec(strategy, KEYFRAMES.grid, KEYFRAMES.spec.rope)
    q, k, v = KEYFRAMES.tensors()
    assert distance(run(lowering, q, k, v, spec), run("reference", q, k, v, spec)) <= 2e-5
    own = slice(3, 15)
    for member in strategy.members:
        times = KEYFRAMES.grid.frame_times
        assert np.array_equal(member.positions.table(times)[own, own], member.positions.table(12))
        assert np.array_equal(member.visibility.levels(times)[own, own], member.visibility.levels(12))
        if member.decay is not None:
            assert np.array_equal(member.decay.table(times)[own, own], member.decay.table(12))


@pytest.mark.parametrize("name", ["vrpr", "clip", "group", "longdiff", "tsa", "window", "anchors"])
def test_a_further_frame_at_a_frame_of_the_clip_is_treated_as_it(name: str) -> None:
    strategy = build(name, Geometry(5, 12, 2, 3), {})
    times = replace(KEYFRAMES.grid, before=(Further(7.0, 2, 3),), after=()).frame_times
    for member in strategy.members:
        table = member.positions.table(times)
        assert np.array_equal(table[0], table[8]) and np.array_equal(table[:, 0], table[:, 8])
        levels = member.visibility.levels(times)
        if name != "anchors":  # whose key frames are the clip's
            assert np.array_equal(levels[0], levels[8]) and np.array_equal(levels[:, 0], levels[:, 8])


def test_a_time_is_exact_or_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a multiple of 1/64, found 0\.1"):
        Further(0.1, 2, 2)


def test_spans_in_words() -> None:
    assert SMALL.grid.spans() == [
        ("text", 0, 2),
        ("1 further frame of 1x2 at time 4.375", 2, 4),
        ("clip: 12 frames of 2x3 at times 0 to 11", 4, 76),
        ("1 further frame of 2x3 at time 0", 76, 82),
        ("1 further frame of 1x1 at time 3", 82, 83),
        ("text", 83, 86),
    ]
