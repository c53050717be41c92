"""Pictures are told from words by where their tokens stand, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.method.rope.pictures import Part, Rasters

RATES = 10.0 ** (-np.arange(4) / 4)
"""Radians a step of four pairs an axis."""

Places = list[tuple[float, float]]


def turned(places: Places) -> np.ndarray:
    at = np.asarray(places, dtype=float).reshape(-1, 2)
    return np.exp(1j * np.concatenate([at[:, :1] * RATES, at[:, 1:] * RATES], 1))


def raster(height: int, width: int, row: float = 0, column: float = 0, step: float = 1) -> Places:
    return [(row + step * y, column + step * x) for y in range(height) for x in range(width)]


def read(places: Places, clip: tuple[int, int]) -> tuple[Part, ...] | None:
    return Rasters(turned(raster(*clip)), clip, 2e-3).parts(turned(places))


def goes_on(before: Part, new: Part, places: Places, step: float) -> bool:
    """Whether a picture begins where the one before it ends, a step below its last row."""
    if before.width != new.width:
        return False
    both = raster(before.height + new.height, new.width, *places[before.first], step)
    return places[before.first : new.stop] == both


SIZE = st.tuples(st.integers(2, 5), st.integers(2, 5))


@settings(max_examples=300)
@given(SIZE, SIZE, st.integers(0, 3), st.integers(0, 3), st.tuples(st.integers(0, 4), st.integers(0, 4)),
       st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 2))  # fmt: skip
def test_a_picture_with_words_around_it(
    clip: tuple[int, int],
    size: tuple[int, int],
    before: int,
    after: int,
    shift: tuple[int, int],
    step: float,
    count: int,
) -> None:
    """Whatever its size, where it begins and how far apart its tokens are; of two, that are equal, each is one."""
    n = size[0] * size[1]
    found = read([(0, 0)] * before + raster(*size, *shift, step) * count + [(0, 0)] * after, clip)
    expected = [Part(before + i * n, before + i * n + n, *size) for i in range(count)]
    expected = [Part(0, before)] * bool(before) + expected
    expected += [Part(before + count * n, before + count * n + after)] * bool(after)
    assert found == tuple(expected)


@settings(max_examples=300)
@given(st.data())
def test_no_word_is_taken_for_a_part_of_a_picture(data: st.DataObject) -> None:
    """Any pictures and words by turns: what is read is what is there, or nothing is; words may stand in a row."""
    clip = data.draw(SIZE)
    places: Places = []
    expected: list[Part] = []
    for _ in range(data.draw(st.integers(1, 4))):
        first = len(places)
        if data.draw(st.booleans()):
            where = data.draw(st.sampled_from([(0.0, 0.0), (0.0, -3.5), (7.25, 12.5)]))
            places += [where] * data.draw(st.integers(1, 3))
            if expected and not expected[-1].height and places[first - 1] == where:
                first = expected.pop().first
            expected.append(Part(first, len(places)))
        else:
            size, shift = data.draw(SIZE), data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
            step = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
            places += raster(*size, *shift, step)
            expected.append(Part(first, len(places), *size))
            if len(expected) > 1 and goes_on(*expected[-2:], places, step):  # as one picture to the number
                before, new = expected[-2:]
                expected[-2:] = [Part(before.first, new.stop, before.height + new.height, new.width)]
    found = read(places, clip)
    rows = found is not None and any(part.height == 1 for part in found)
    assert found is None or rows or found == tuple(expected), (found, expected)


def test_what_has_no_reading_or_two_has_none() -> None:
    assert read([(0, 0), (0, 2), (0, 3), (0, 4)], (3, 2)) == (Part(0, 1), Part(1, 4, 1, 3))
    assert read([(0, 0), (0, 0), (1, 0), (2, 0), (0, 0)], (1, 4)) is None, "one word and three tokens, or two and two"
    assert read([(0, 0), (0, 1), (0, 2)], (3, 2)) == (Part(0, 3, 1, 3),), "a row that begins where words stand"
    assert read([(0, 0)] * 4, (3, 2)) == (Part(0, 4),)


@pytest.mark.parametrize("places", [raster(2, 3)[::-1], [(0, 0), (1, 1), (2, 2)], [(0, 1), (0, 0), (1, 1), (1, 0)]])
def test_rasters_askew_are_pictures_only_where_nothing_else_is_as_cheap(places: Places) -> None:
    found = read(places, (3, 2))
    assert found is None or (len(found) == 1 and found[0].height * found[0].width == len(places))
