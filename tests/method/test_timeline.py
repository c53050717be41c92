"""Laws of texts over time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule, centres, check_marks, span_weights, video_frames


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    """Marks, frames, temporal factor and blend; marks far enough apart for every text to be seen."""
    temporal = draw(st.sampled_from([1, 2, 4, 6, 8]))
    gaps = draw(st.lists(st.integers(temporal, 40), max_size=4))
    marks = [0, *np.cumsum(gaps).tolist()]
    latent = (marks[-1] + temporal) // temporal + draw(st.integers(1, 20))
    return marks, latent * temporal + 1, temporal, draw(st.integers(0, 40))


@given(timelines())
def test_weights_sum_to_one_and_none_is_negative(case: tuple[list[int], int, int, int]) -> None:
    weights = span_weights(*case)
    assert weights.shape == ((case[1] - 1) // case[2] + 1, len(case[0]))
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=0, atol=1e-12)
    assert (weights >= 0).all() and (weights <= 1).all()


@given(timelines())
def test_a_text_comes_and_goes_once(case: tuple[list[int], int, int, int]) -> None:
    for column in span_weights(*case).T:
        seen = np.flatnonzero(column)
        assert (np.diff(seen) == 1).all()
        peak = int(column.argmax())
        assert (np.diff(column[: peak + 1]) >= -1e-12).all() and (np.diff(column[peak:]) <= 1e-12).all()


@given(timelines())
def test_without_a_blend_each_frame_sees_the_text_in_which_most_of_it_lies(
    case: tuple[list[int], int, int, int],
) -> None:
    marks, frames, temporal, _ = case
    weights = span_weights(marks, frames, temporal, 0)
    assert set(np.unique(weights)) <= {0.0, 1.0}
    for latent, row in enumerate(weights):
        shown = [0] if latent == 0 else range((latent - 1) * temporal + 1, latent * temporal + 1)
        of = [max(s for s, mark in enumerate(marks) if mark <= frame) for frame in shown]
        assert of.count(int(row.argmax())) * 2 >= len(of) or len(set(of)) > 2


@given(timelines(), st.integers(1, 40))
def test_a_blend_is_linear_and_ends_when_it_says(case: tuple[list[int], int, int, int], blend: int) -> None:
    marks, frames, temporal, _ = case
    if len(marks) == 1:
        return
    place, last = centres(frames, temporal), span_weights(marks, frames, temporal, blend)[:, -1]
    since = place - marks[-1] + 0.5
    inside = (since > 0) & (since < blend)
    np.testing.assert_allclose(last[inside], since[inside] / blend)
    assert (last[since <= 0] == 0).all() and (last[since >= blend] == 1).all()


def test_the_picture_of_the_docstring() -> None:
    second = span_weights([0, 9], 21, 4, 8)[:, 1]
    np.testing.assert_allclose(second, [0, 0, 0, 0.25, 0.75, 1])
    assert span_weights([0, 9], 21, 4, 0)[:, 1].tolist() == [0, 0, 0, 1, 1, 1]


def test_one_text_is_seen_by_all() -> None:
    assert (span_weights([0], 81, 4, 16) == 1).all()


@pytest.mark.parametrize(
    ("time", "fps", "frames"), [(0, None, 0), (160, None, 160), ("160", None, 160), ("10s", 16, 160), ("2.5 s", 24, 60)]
)
def test_times(time: int | str, fps: float | None, frames: int) -> None:
    assert video_frames(time, fps) == frames


@pytest.mark.parametrize(
    ("time", "fps", "words"),
    [
        ("10s", None, "expected fps"),
        ("10s", 0, "above 0, found 0"),
        (-1, None, "found -1"),
        (1.5, None, "found 1.5"),
        (True, None, "found True"),
        ("soon", 16, "found 'soon'"),
        ("-3s", 16, "found '-3s'"),
    ],
)
def test_wrong_times(time: object, fps: float | None, words: str) -> None:
    with pytest.raises(TimelineError, match=words):
        video_frames(time, fps)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ([], "found no text"),
        ([4], "begins at 0, found \\[4\\]"),
        ([0, 8, 8], "found 8 after 8"),
        ([0, 9, 8], "found 8 after 9"),
        ([0, 21], "at most frame 20, found frame 21"),
    ],
)
def test_marks_rise_from_0_and_lie_inside(marks: list[int], words: str) -> None:
    with pytest.raises(TimelineError, match=words):
        check_marks(marks, 21)


def test_a_text_that_nobody_sees_is_an_error() -> None:
    with pytest.raises(TimelineError, match="begins at frame 20"):
        span_weights([0, 20], 21, 4, 0)
    with pytest.raises(TimelineError, match="begins at frame 5"):
        span_weights([0, 5, 6], 21, 4, 0)


@pytest.mark.parametrize("blend", [-1, 1.5, True, "8"])
def test_a_blend_is_a_whole_number(blend: object) -> None:
    with pytest.raises(TimelineError, match="blend"):
        span_weights([0], 21, 4, blend)  # type: ignore[arg-type]


def test_a_schedule_over_fewer_frames_of_tokens_is_the_mean() -> None:
    made = TextSchedule(np.array([[1, 0], [0.5, 0.5], [0.25, 0.75], [0, 1]]), (0, 4, 9), 5)
    np.testing.assert_allclose(made.over(2), [[0.75, 0.25], [0.125, 0.875]])
    np.testing.assert_array_equal(made.over(4), made.weights)
    assert (made.texts, made.frames, made.tokens, made.form) == (2, 4, 9, (9, 2, 5, 0))
    with pytest.raises(TimelineError, match="made for 4 latent frames, and the model runs on 3"):
        made.over(3)
    window = made.window([1, 2])
    np.testing.assert_array_equal(window.weights, made.weights[1:3])
    assert window.starts == made.starts


@pytest.mark.parametrize("starts", [(0, 4), (0, 4, 4), (0, 5, 3)])
def test_every_text_has_a_place(starts: tuple[int, ...]) -> None:
    with pytest.raises(TimelineError, match="a place for each of 2 texts"):
        TextSchedule(np.array([[1.0, 0.0], [0.0, 1.0]]), starts, 4)


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(TimelineError, match="sum to one"):
        TextSchedule(np.array([[1.0, 0.5]]), (0, 1, 2), 1)


def test_references_before_a_clip_see_each_text_by_its_share() -> None:
    made = TextSchedule(np.array([[1, 0], [0.5, 0.5], [0.25, 0.75], [0, 1]]), (0, 4, 9), 5, shown=8)
    assert made.with_references(0) is made
    longer = made.with_references(2)
    np.testing.assert_allclose(longer.weights[:2], [[0.4375, 0.5625]] * 2)
    np.testing.assert_array_equal(longer.weights[2:], made.weights)
    assert (longer.starts, longer.one, longer.shown) == (made.starts, made.one, made.shown)
