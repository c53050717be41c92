"""The table of (frame, text) as channels of queries and keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule, pair_channels, span_weights


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    frames = draw(st.integers(2, 9))
    marks = sorted({0, *draw(st.lists(st.integers(1, frames - 1), max_size=3))})
    sizes = [draw(st.integers(1, 5)) for _ in marks]
    return span_weights(marks, frames, 1, draw(st.integers(0, 4))), [0, *np.cumsum(sizes).tolist()]


@given(tables(), st.integers(1, 4), st.booleans(), st.sampled_from([0.05, 0.088, 0.25, 1.3]), st.integers(0, 3))
def test_the_product_of_the_channels_is_the_table(
    case: tuple[np.ndarray, list[int]], tokens: int, first: bool, scale: float, spare: int
) -> None:
    weights, starts = case
    frames, texts = weights.shape
    q, k = pair_channels(weights, starts, tokens, first, scale, 2 * texts + spare)
    assert q.dtype == k.dtype == np.float32 and q.shape == (frames * tokens + starts[-1], 2 * texts + spare)
    found = q.astype(np.float64) @ k.T * scale
    video = [("frame", f) for f in range(frames) for _ in range(tokens)]
    text = [("text", s) for s in range(texts) for _ in range(starts[s + 1] - starts[s])]
    sequence = text + video if first else video + text
    for row, (what, i) in enumerate(sequence):
        for column, (other, j) in enumerate(sequence):
            if what == other == "frame" or (what == other and i == j):
                assert found[row, column] == 0  # exactly, so that nothing else is seen differently
            elif what == other:
                assert found[row, column] < -9000
            else:
                share = weights[i, j] if what == "frame" else weights[j, i]
                if share:
                    np.testing.assert_allclose(found[row, column], np.log(share), rtol=1e-5, atol=1e-6)
                else:
                    assert found[row, column] < -9000


@pytest.mark.parametrize("scale", [1 / 16, 0.125])
def test_channels_fit_half_precision(scale: float) -> None:
    q, k = pair_channels(span_weights([0, 5], 10, 1, 4), [0, 3, 7], 2, False, scale, 4)
    for x in (q, k):
        assert np.abs(x).max() < 60000 and np.isfinite(x.astype(np.float16)).all()


def test_a_text_may_be_empty() -> None:
    q, _ = pair_channels(span_weights([0, 2], 4, 1, 0), [0, 0, 3], 1, False, 1.0, 4)
    assert (q[4:, 3] == 64).all(), "the padding behind counts as the last text's"


def rows(**changes: object) -> TextSchedule:
    given: dict = {"shown": 6, "negative": (0, 2, 4), **changes}
    return TextSchedule(span_weights([0, 2], 4, 1, 0), (0, 3, 10), 5, **given)


def test_rows_of_a_batch_are_told_by_their_tokens() -> None:
    made = rows()
    assert made.for_rows([6, 6]) is made
    negative = made.for_rows([4])
    assert (negative.starts, negative.rows, negative.form) == ((0, 2, 10), (), made.form)
    both = made.for_rows([4, 6])
    assert both.rows == ((0, 2, 10), (0, 3, 10)) and both.form.rows == 2
    assert rows(shown=None, negative=None).for_rows([1]).rows == ()


def test_a_row_of_other_tokens_is_refused() -> None:
    with pytest.raises(TimelineError, match=r"expected 6 tokens that are no padding, or 4 of .*, 5\]"):
        rows().for_rows([6, 5])
    with pytest.raises(TimelineError, match="or none, found"):
        rows(negative=None).for_rows([4])
    with pytest.raises(TimelineError, match="a word more or less"):
        rows(shown=4)
