"""A clip is found among keyframes, references and text by how tokens are turned, and what stands beside it is dated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turned_frames import DIM, TIME, Frame, clip, turned

from freeloc_fx.errors import MatchFailure
from freeloc_fx.method.grid import Further, TokenGrid
from freeloc_fx.method.rope.beside import NO_CLIP, stretch_of
from freeloc_fx.method.rope.dating import dated, more_than_a_clip
from freeloc_fx.method.rope.measure import Rotations
from freeloc_fx.method.rope.temporal import temporal


def found(rotations: Rotations, known: tuple[int, int] | None = None) -> TokenGrid | MatchFailure:
    """As the pass goes about it; these rates are known."""
    whole = temporal(rotations, DIM, 1e-4)
    if not isinstance(whole, MatchFailure) and not more_than_a_clip(rotations, *whole, 1e-4, known):
        return whole[1]
    parted = stretch_of(rotations, DIM, 1e-4, known)
    if isinstance(parted, MatchFailure):
        return parted
    placed = dated(rotations, *parted, 1e-4, known)
    return placed if isinstance(placed, MatchFailure) else placed[1]


@settings(max_examples=25)
@given(st.data())
def test_any_list_of_frames(data: st.DataObject) -> None:
    frames, height, width = data.draw(st.integers(6, 12)), data.draw(st.integers(1, 4)), data.draw(st.integers(2, 4))
    late = data.draw(st.sampled_from([None, 7 / 8, 1 / 2]))
    # Not where a frame would go on the clip's own time.
    when = st.integers(-3 * 64, 16 * 64).map(lambda n: n / 64)
    when = when.filter(lambda t: 1 < t <= frames - 1 or t < -2 or t > frames + 1)
    before, after = ([(t, height, width) for t in data.draw(st.lists(when, max_size=2))] for _ in range(2))
    text = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    grid = found(turned([*before, *clip(frames, height, width, late), *after], text))
    assert isinstance(grid, TokenGrid), grid
    own = [tuple(Further(t, height, width) for t, _, _ in some) for some in (before, after)]
    assert (grid.before, grid.after) == tuple(own)
    assert (grid.frames, grid.tokens) == (frames, height * width)
    assert (grid.text_first, grid.text_last) == text


CASES: dict[str, tuple[list[Frame], dict[int, int], TokenGrid]] = {
    "a reference before a clip that has its time": ([(0.0, 2, 3), *clip(8, 2, 3)], {}, TokenGrid(
        8, 2, 3, before=(Further(0.0, 2, 3),))),
    "keyframes at one time": ([*clip(8, 2, 3), (3.0, 2, 3), (3.0, 2, 3)], {}, TokenGrid(
        8, 2, 3, after=(Further(3.0, 2, 3),) * 2)),
    "a keyframe on a causal encoder's first frame": ([*clip(8, 2, 3, 7 / 8), (7 / 8, 2, 3), (4.875, 2, 3)], {},
        TokenGrid(8, 2, 3, after=(Further(0.0, 2, 3), Further(4.875, 2, 3)))),
    "a short clip beside a clip": ([*clip(3, 2, 3), *clip(8, 2, 3)], {}, TokenGrid(
        8, 2, 3, before=tuple(Further(float(t), 2, 3) for t in range(3)))),
    "half the rows and columns, twice as far apart": ([*clip(8, 4, 6), (2.5, 2, 3), (40.0, 2, 3)], {8: 2, 9: 2},
        TokenGrid(8, 4, 6, after=(Further(2.5, 2, 3),))),
    "far outside": ([(-9.0, 2, 3), *clip(8, 2, 3), (23.0, 2, 3)], {}, TokenGrid(
        8, 2, 3, before=(Further(-9.0, 2, 3),), after=(Further(23.0, 2, 3),))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("text", [(0, 0), (5, 0), (0, 5)])
def test_what_models_do(name: str, text: tuple[int, int]) -> None:
    frames, stride, expected = CASES[name]
    if name.startswith("half"):
        frames, stride = frames[:-1], {8: 2}
    grid = found(turned(frames, text, stride))
    assert grid == TokenGrid(expected.frames, expected.height, expected.width, *text, expected.before, expected.after)


@pytest.mark.parametrize("later", [0.0, 9.0])
def test_a_reference_as_long_as_the_clip_needs_the_call_to_say_which_is_which(later: float) -> None:
    both = turned([*clip(6, 2, 3), *((t + later, h, w) for t, h, w in clip(6, 2, 3))])
    assert found(both) is NO_CLIP
    grid = found(both, (6, 6))
    assert isinstance(grid, TokenGrid) and grid.frames == 6
    assert grid.after == tuple(Further(later + t, 2, 3) for t in range(6))


@pytest.mark.parametrize("frames", [5, 8, 21])
@pytest.mark.parametrize("time", [-40.0, -12.5, 30.0, 66.5, 79.0])
def test_a_lone_reference_far_off_is_not_the_clip_s_first_frame(frames: int, time: float) -> None:
    grid = found(turned([(time, 2, 3), *clip(frames, 2, 3)]), (frames, 6))
    assert isinstance(grid, MatchFailure) or (grid.frames == frames and grid.before == (Further(time, 2, 3),))


STEPS = (1.0, 4.0, 4.0, 4.0, 4.0)
"""Of MiniMax-H3's frames, in its own units."""


@settings(max_examples=15)
@given(st.integers(8, 33), st.booleans())
def test_a_clip_that_is_spaced_unevenly(frames: int, reference: bool) -> None:
    """Its frames are at rising times whose mean step is one, and rates are by that step."""
    when = np.cumsum([0.0, *(STEPS[i % 5] for i in range(frames - 1))]) / 4
    rotations = turned([*((t, 2, 3) for t in when), *([(-6.0, 2, 3)] * reference)], (2, 0))
    parted = stretch_of(rotations, DIM, 1e-4)
    assert not isinstance(parted, MatchFailure)
    placed = dated(rotations, *parted, 1e-4)
    assert not isinstance(placed, MatchFailure), placed
    layout, grid = placed
    scale = (frames - 1) / when[-1]
    assert (grid.frames, grid.text_first, len(grid.after)) == (frames, 2, int(reference))
    assert np.abs(grid.times[:frames] - when * scale).max() <= 1 / 128
    assert np.abs(np.asarray(layout.omega[0]) - TIME / scale).max() <= 1e-6


@pytest.mark.parametrize("first", [False, True])
def test_words_and_sound_that_are_turned_in_time_alone(first: bool) -> None:
    words = [(t + 0.5, 1, 1) for t in range(5)]
    frames = [*words, *clip(8, 2, 3)] if first else [*clip(8, 2, 3), (2.5, 2, 3), *words]
    grid = found(turned(frames))
    assert isinstance(grid, TokenGrid), grid
    assert (grid.text_first, grid.text_last, grid.turned) == ((5, 0, 5) if first else (0, 5, 5))
    assert len(grid.after) == (not first) and grid.frames == 8


REFUSED: dict[str, tuple[list[Frame], Any]] = {
    "part of a frame": ([*clip(8, 2, 3), (8.0, 1, 3)], r"tokens 48 to 50 are turned, but are no whole frames beside"),
    "part of a frame after words": ([*clip(8, 2, 3), (8.5, 1, 1), (9.5, 1, 1), (8.0, 1, 3)],
        r"tokens 48 to 52 are turned"),
    "time beyond": ([*clip(8, 2, 3), (60.3, 2, 3)], r"tokens 48 to 53 are 2x3 beside the clip's 8 .* at any time from"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_its_tokens(name: str) -> None:
    frames, message = REFUSED[name]
    failure = found(turned(frames))
    assert isinstance(failure, MatchFailure)
    import re

    assert re.search(message, str(failure)), failure


@pytest.mark.parametrize("frames", [2, 3, 6])
@pytest.mark.parametrize("known", [True, False])
def test_rope_over_rows_and_columns_alone_is_no_clip(frames: int, known: bool) -> None:
    still = turned([(0.0, 3, 4)] * frames)
    assert found(still, (frames, 12) if known else None) is NO_CLIP
