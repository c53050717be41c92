"""Frames among words are found, put next to the clip, and put back; what is apart from a clip is no part of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turned_frames import DIM, Frame, clip, turned

from freeloc_fx.errors import MatchFailure
from freeloc_fx.method.grid import Further, TokenGrid
from freeloc_fx.method.rope.among import back, in_order, order_of, places_of
from freeloc_fx.method.rope.beside import stretch_of
from freeloc_fx.method.rope.dating import dated
from freeloc_fx.method.rope.rates import count_by_words


def words(start: float, count: int) -> list[Frame]:
    return [(start + index, 1, 1) for index in range(count)]


def found(frames: list[Frame]) -> tuple[Any, Any]:
    """The order and the grid, as the pass goes about it."""
    rotations = turned(frames)
    ordered = order_of(rotations, 1e-4)
    if ordered is None:
        return None, None
    order, together = ordered
    moved = in_order(rotations, order)
    parted = stretch_of(moved, DIM, 1e-4, None, together)
    assert not isinstance(parted, MatchFailure), parted
    placed = dated(moved, *parted, 1e-4, None, together)
    assert not isinstance(placed, MatchFailure), placed
    return order, placed[1]


@settings(max_examples=25)
@given(st.data())
def test_any_words_and_frames_in_any_places(data: st.DataObject) -> None:
    """Each side of a clip holds words and keyframes by turns; words keep their order, and frames theirs."""
    when = st.integers(64, 8 * 64).map(lambda n: n / 64)
    sides: list[list[Frame]] = []
    times: list[list[float]] = []
    for side in range(2):
        some: list[Frame] = []
        keys = []
        for start in range(data.draw(st.integers(0, 2))):
            some += words(20.25 + 40 * side + 10 * start, data.draw(st.integers(1, 4)))
            keys.append(data.draw(when))
            some.append((keys[-1], 3, 2))
            some += words(25.75 + 40 * side + 10 * start, data.draw(st.integers(1, 4)))
        sides.append(some)
        times.append(keys)
    order, grid = found([*sides[0], *clip(9, 3, 2), *sides[1]])
    if not any(times):
        assert order is None
        return
    assert (grid.frames, grid.height, grid.width) == (9, 3, 2)
    assert [f.time for f in grid.before] == times[0] and [f.time for f in grid.after] == times[1]
    count = [sum(h * w for _, h, w in side if h == 1) for side in sides]
    assert (grid.text_first, grid.text_last) == tuple(count)
    places = places_of(order)
    assert sorted(places) == list(range(len(places)))
    assert np.array_equal(places[places_of(back(order))], np.arange(len(places)))


@pytest.mark.parametrize(
    "frames",
    [
        clip(8, 3, 2),
        [(2.5, 3, 2), *clip(8, 3, 2)],
        [*words(0.5, 4), (2.5, 3, 2), *clip(8, 3, 2)],
        [*words(0.5, 4), *clip(8, 3, 2), (2.5, 3, 2), *words(0.5, 4)],
    ],
)
def test_what_is_in_order_stays_so(frames: list[Frame]) -> None:
    assert found(frames) == (None, None)


def test_a_clip_that_goes_on_beyond_words_is_another_one() -> None:
    """Its frames are at times of the clip's own spacing, which would make one longer clip without the words."""
    _, grid = found([*((t - 3.0, 3, 2) for t in range(3)), *words(0.5, 4), *clip(8, 3, 2)])
    assert grid == TokenGrid(8, 3, 2, 4, 0, tuple(Further(t - 3.0, 3, 2) for t in range(3)), turned=4)


@pytest.mark.parametrize("first", [True, False])
def test_a_word_at_a_frames_time_is_a_word(first: bool) -> None:
    beside = [*words(0.5, 3), (2.5, 3, 2), *words(7.5, 2)] if first else [*words(0.5, 2), (2.5, 3, 2), *words(2.5, 3)]
    _, grid = found([*beside, *clip(8, 3, 2)])
    assert (grid.text_first, grid.before) == (5, (Further(2.5, 3, 2),))


@pytest.mark.parametrize("size", [(4, 2), (5, 2), (3, 2), (3, 3), (6, 4)])
@pytest.mark.parametrize("around", [(0, 0), (1, 0), (0, 1), (1, 1), (3, 2)])
def test_words_at_the_time_of_a_frame_are_no_part_of_it(size: tuple[int, int], around: tuple[int, int]) -> None:
    """Also of frames of the clip's width and another height, which begin as the clip's do."""
    beside = [*[(24.5, 1, 1)] * around[0], (24.5, *size), *[(24.5, 1, 1)] * around[1]]
    for late in (False, True):
        sides: list[list[Frame]] = [[*words(0.5, 3), *beside, *words(11.5, 3)], words(1.5, 2)]
        _, grid = found([*sides[late], *clip(9, 3, 2), *sides[not late]])
        frames = (grid.before, grid.after)
        assert frames[late] == (Further(24.5, *size),) and frames[not late] == ()
        assert (grid.text_first, grid.text_last)[late] == 6 + sum(around)


@pytest.mark.parametrize("around", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("size", [(2, 2), (1, 2)])
def test_the_first_rows_of_a_clips_frame_may_be_a_part_of_one(size: tuple[int, int], around: tuple[int, int]) -> None:
    beside = [*[(24.5, 1, 1)] * around[0], (24.5, *size), *[(24.5, 1, 1)] * around[1]]
    for frames in ([*words(0.5, 3), *beside, *words(11.5, 3), *clip(9, 3, 2)], [*beside, *clip(9, 3, 2)]):
        rotations = turned(frames)
        ordered = order_of(rotations, 1e-4)
        moved, together = (rotations, None) if ordered is None else (in_order(rotations, ordered[0]), ordered[1])
        refused = stretch_of(moved, DIM, 1e-4, None, together)
        assert isinstance(refused, MatchFailure)
        assert "fewer rows of the clip's width count as a part of a frame" in refused.reason


def test_a_frame_at_the_time_of_an_uneven_clips_first_frame() -> None:
    """Uneven steps of a clip whose first one is shorter: the keyframe's time is that frame's."""
    steps = np.cumsum([0.0, *((1.0, 4.0, 4.0, 4.0, 4.0)[i % 5] for i in range(11))]) / 4
    _, grid = found([*words(20.5, 3), (0.0, 3, 2), *words(30.5, 4), *((t, 3, 2) for t in steps)])
    assert (grid.frames, grid.before) == (12, (Further(0.0, 3, 2),)) and grid.uneven


# How many words long a frame is


SLOW = 500.0 ** (-np.arange(4) / 4)
"""Radians a word, down to less than a turn over any frame's length."""


def counted(words_like: list[Frame], step: float, rates: Any = SLOW) -> Any:
    """The rates of a clip whose frames are so many words apart; `rates` are those of the words."""
    frames = [*words_like, *((30 + step * i, 3, 2) for i in range(8))]
    times = np.concatenate([[time] * height * width for time, height, width in frames])
    rotations = turned(frames)
    phase = rotations.phase.copy()
    phase[0, :, :4] = np.exp(1j * times[:, None] * SLOW)
    phase[0, : len(words_like), :4] = np.exp(1j * times[: len(words_like), None] * rates)
    rotations = replace(rotations, phase=phase)
    parted = stretch_of(rotations, DIM, 1e-4)
    assert not isinstance(parted, MatchFailure)
    return count_by_words(replace(parted[0], whole_turns=False), (len(words_like), 0), rotations, 1e-4)


@pytest.mark.parametrize("step", [5 / 3, 20 / 3, 13.3, 40.0])
def test_words_tell_rates_beyond_whole_turns(step: float) -> None:
    layout = counted(words(0.5, 5), step)
    assert layout.whole_turns and np.abs(np.asarray(layout.omega[0]) - step * SLOW).max() <= 1e-5


def test_words_that_do_not_tell() -> None:
    assert counted(words(0.5, 2), 20 / 3) is None, "two words are no line"
    assert counted(words(0.5, 5), 20 / 3, SLOW * [1.0, 0.5, 1.5, 0.8]) is None, "on another clock"
    assert counted([(0.0, 1, 1)] * 5, 20 / 3) is None, "not turned"
