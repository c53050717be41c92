"""Masks of colours, against sums written out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx.evaluation.metrics.blobs import box


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_the_square_around_each_pixel(seed: int, frames: int, height: int, width: int, reach: int) -> None:
    mask = np.random.default_rng(seed).random((frames, height, width)) < 0.5
    found = box(mask, reach)
    assert found.dtype == np.int32
    for y in range(height):
        for x in range(width):
            rows, columns = slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1)
            np.testing.assert_array_equal(found[:, y, x], mask[:, rows, columns].sum((1, 2)))
