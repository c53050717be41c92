"""VBench's definitions and the offline models, on videos whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.evaluation.metrics import vbench
from freeloc_fx.evaluation.metrics.clip import Clip, MetricError
from freeloc_fx.evaluation.metrics.proxies import (
    ColourLayout,
    DisFlow,
    FlowMidpoint,
    ShapeHistogram,
    Sharpness,
    area_means,
)

SIDE = 64


def ground(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """A smooth texture: uint8 (side, side, 3)."""
    coarse = np.random.default_rng(seed).uniform(40, 160, (9, 9, 3))
    at = np.linspace(0, 7.999, side)
    low = at.astype(int)
    part = (at - low)[:, None, None]
    rows = coarse[low] * (1 - part) + coarse[low + 1] * part
    part = part.reshape(1, side, 1)
    return (rows[:, low] * (1 - part) + rows[:, low + 1] * part).round().astype(np.uint8)


def square(frames: int, step: float, size: int = 20, side: int = SIDE) -> np.ndarray:
    """A textured square that goes to the right by `step` px a frame and comes in again at the left."""
    video = np.repeat(ground(side=side)[None], frames, 0)
    patch = 255 - ground(5, size) // 2
    for t in range(frames):
        columns = (10 + round(t * step) + np.arange(size)) % side
        video[t, 20 : 20 + size, columns] = patch.swapaxes(0, 1)
    return video


def still(frames: int = 17) -> np.ndarray:
    return np.repeat(ground()[None], frames, 0)


def noise(frames: int = 17) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)


class Vectors:
    """A feature model that answers with what it was given."""

    name = "vectors"

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def features(self, frames: np.ndarray) -> np.ndarray:
        return self.rows


class Constant:
    """Flow of one speed everywhere, listed by pair."""

    name, bias = "constant", 1.0

    def __init__(self, speeds: list[float]) -> None:
        self.speeds = iter(speeds)

    def flow(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.full((*first.shape[:2], 2), next(self.speeds) / np.sqrt(2))


def clip(frames: np.ndarray, fps: float = 8.0) -> Clip:
    return Clip(frames, fps)


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_consistency_is_vbenchs_formula(frames: int, channels: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(frames, channels))

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return max(0.0, float(a @ b) / float(np.sqrt(a @ a) * np.sqrt(b @ b)))

    expected = [(cos(rows[t], rows[t - 1]) + cos(rows[t], rows[0])) / 2 for t in range(1, frames)]
    video = clip(still(frames))
    found = vbench.consistency(video, Vectors(rows))
    np.testing.assert_allclose(found.terms, expected, atol=1e-12)
    assert found.value == pytest.approx(np.mean(expected))
    scaled = vbench.consistency(video, Vectors(rows * np.arange(1, frames + 1)[:, None]))
    assert scaled.value == pytest.approx(found.value)


@pytest.mark.parametrize("rows", [np.zeros((4, 2)), np.full((4, 2), np.nan), np.ones((3, 2)), np.ones(4)])
def test_features_that_have_no_direction_or_shape_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(MetricError, match="vectors"):
        vbench.consistency(clip(still(4)), Vectors(rows))


@pytest.mark.parametrize("model", [ShapeHistogram(), ColourLayout()])
def test_proxies_of_consistency(model: ShapeHistogram | ColourLayout) -> None:
    assert model.name.startswith("proxy:")
    same = vbench.consistency(clip(still()), model)
    assert same.value == pytest.approx(1)
    assert same.slope == pytest.approx(0, abs=1e-9)
    cut = np.concatenate([still(8), np.repeat(255 - ground(9)[None] // 3, 8, 0)])
    changed = vbench.consistency(clip(cut), model)
    assert changed.value < 0.95 and changed.slope < 0
    moving = vbench.consistency(clip(square(17, 2)), model)
    assert changed.value < moving.value


def test_the_subject_proxy_does_not_mind_where_and_the_background_proxy_hardly_minds_what() -> None:
    moving = clip(square(17, 2, size=10))
    assert vbench.consistency(moving, ShapeHistogram()).value > 0.98
    assert vbench.consistency(moving, ColourLayout()).value > 0.95
    flat = np.full((3, SIDE, SIDE, 3), 128, np.uint8)
    assert vbench.consistency(clip(flat), ColourLayout()).value == pytest.approx(1)
    assert vbench.consistency(clip(flat), ShapeHistogram()).value == pytest.approx(1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_area_means(height: int, width: int, rows: int, columns: int) -> None:
    frames = np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)
    found = area_means(frames, rows, columns)
    rows, columns = min(rows, height), min(columns, width)
    assert found.shape == (2, rows, columns, 3)
    for r in range(rows):
        for c in range(columns):
            top, bottom = r * height // rows, (r + 1) * height // rows
            left, right = c * width // columns, (c + 1) * width // columns
            cell = frames[:, top:bottom, left:right].mean((1, 2))
            np.testing.assert_allclose(found[:, r, c], cell, atol=1e-5)


class Average:
    name = "average"

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return ((first.astype(int) + second) // 2).astype(np.uint8)


def test_motion_smoothness_is_vbenchs_formula() -> None:
    frames = noise(6)
    expected = []
    for odd in (1, 3):  # frame 5 has no neighbour on one side
        guess = (frames[odd - 1].astype(int) + frames[odd + 1]) // 2
        expected.append((255 - np.abs(frames[odd] - guess).mean()) / 255)
    found = vbench.motion_smoothness(clip(frames), Average())
    np.testing.assert_allclose(found.terms, expected)
    np.testing.assert_allclose(found.at, [0.2, 0.6])


def test_the_interpolation_proxy_follows_motion() -> None:
    pytest.importorskip("cv2")
    assert vbench.motion_smoothness(clip(still()), FlowMidpoint()).value == pytest.approx(1, abs=1e-3)
    smooth = vbench.motion_smoothness(clip(square(13, 2)), FlowMidpoint()).value
    blended = vbench.motion_smoothness(clip(square(13, 2)), Average()).value
    jerky = vbench.motion_smoothness(clip(square(13, 2)[[0, 3, 2, 1, 4, 7, 6, 5, 8, 11, 10, 9, 12]]), FlowMidpoint())
    assert smooth > blended and smooth > jerky.value
    assert vbench.motion_smoothness(clip(noise(7)), FlowMidpoint()).value < 0.85


@pytest.mark.parametrize(
    ("fps", "frames", "expected"),
    [(8, 5, [0, 1, 2, 3, 4]), (16, 9, [0, 2, 4, 6, 8]), (24, 9, [0, 3, 6]), (4, 3, [0, 1, 2]), (30, 9, [0, 4, 8])],
)
def test_sampling_at_about_8_fps(fps: float, frames: int, expected: list[int]) -> None:
    assert vbench.sampling(clip(still(frames), fps)).tolist() == expected


@pytest.mark.parametrize(("fast", "dynamic"), [(3, 0), (4, 1), (15, 1)])
def test_dynamic_degree_counts_pairs(fast: int, dynamic: int) -> None:
    # 16 frames: round(4 * 16 / 16) = 4 of the 15 pairs must exceed 6 * 64 / 256 = 1.5 px.
    found = vbench.motion(clip(still(16)), Constant([1.51] * fast + [1.49] * (15 - fast)))
    degree = vbench.dynamic_degree(found)
    assert degree.value == dynamic and degree.terms.sum() == fast
    assert degree.model == "constant"
    np.testing.assert_allclose(found.magnitudes[0], 1.51 / 1.5)


def test_freeze_is_the_share_of_pairs_without_motion() -> None:
    found = vbench.motion(clip(still(9)), Constant([0.1, 0.2, 0.1, 0.1, 2, 2, 2, 2]))
    assert vbench.freeze(found).value == pytest.approx(3 / 8)
    assert vbench.freeze(found).slope < 0 and vbench.dynamic_degree(found).slope > 0


def test_one_fast_twentieth_is_enough_for_the_top_five_percent() -> None:
    class Corner(Constant):
        def flow(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
            flow = np.zeros((*first.shape[:2], 2))
            flow.reshape(-1, 2)[: flow[..., 0].size // 20] = (3, 4)
            return flow

    found = vbench.motion(clip(still(3)), Corner([]))
    np.testing.assert_allclose(found.magnitudes, 5 / 1.5)


def test_the_flow_proxy_sees_a_moving_square_and_a_still_image() -> None:
    pytest.importorskip("cv2")
    moving = vbench.motion(clip(square(9, 3)), DisFlow())
    assert vbench.dynamic_degree(moving).value == 1 and vbench.freeze(moving).value == 0
    assert moving.measure().value == pytest.approx(2, rel=0.35)  # 3 px of 1.5
    frozen = vbench.motion(clip(still(9)), DisFlow())
    assert vbench.dynamic_degree(frozen).value == 0 and vbench.freeze(frozen).value == 1
    slow = vbench.motion(clip(square(9, 0.5)), DisFlow())
    assert vbench.dynamic_degree(slow).value == 0


def test_flow_of_a_tiny_frame() -> None:
    pytest.importorskip("cv2")
    assert DisFlow().flow(still(1)[0, :7, :9], still(1)[0, :7, :9]).shape == (7, 9, 2)


def test_imaging_quality_falls_with_blur_and_with_noise() -> None:
    sharp = square(1, 0)[0].repeat(2, 0).repeat(2, 1)
    quality = Sharpness().quality
    at = np.arange(128)
    soft = np.mean(
        [sharp[np.clip(at + a, 0, 127)][:, np.clip(at + b, 0, 127)] for a in range(-4, 5) for b in range(-4, 5)], 0
    )
    rng = np.random.default_rng(0)
    grainy = [np.clip(sharp + rng.normal(0, s, sharp.shape), 0, 255) for s in (5, 20)]
    values = quality(np.stack([sharp, soft, *grainy]).round().astype(np.uint8))
    assert np.all((values >= 0) & (values <= 1))
    assert values[1] < values[0]
    assert values[3] < values[2]
    assert values[3] < values[0]
    flat = np.full((1, 16, 16, 3), 90, np.uint8)
    assert quality(flat)[0] == 0


def test_segments_and_slope() -> None:
    terms = np.array([0.0, 1.0, 2.0, 3.0])
    measure = vbench.Measure(1.5, terms, np.array([0, 1 / 3, 2 / 3, 1]))
    assert measure.segments(2) == [0.5, 2.5]
    assert measure.slope == pytest.approx(3)
    assert np.isnan(measure.segments(8)[1])
    assert np.isnan(vbench.Measure(1.0, np.ones(1), np.zeros(1)).slope)


@pytest.mark.parametrize(
    ("call", "frames"),
    [
        (lambda c: vbench.consistency(c, ShapeHistogram()), 1),
        (lambda c: vbench.motion_smoothness(c, Average()), 2),
        (lambda c: vbench.motion(c, Constant([1])), 1),
    ],
)
def test_too_few_frames(call, frames: int) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MetricError, match=f"at least {frames + 1} frames.*found {frames}"):
        call(clip(still(frames)))
