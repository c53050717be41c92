"""NoRepeat and the loop score, on videos whose answer is known and against a literal version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.evaluation.metrics.clip import Clip, MetricError
from freeloc_fx.evaluation.metrics.repetition import distances, loop, no_repeat, recurrences
from freeloc_fx.generation.tiny_wan.scenes import Scene

FPS = 8.0
RNG = np.random.default_rng(0)
WORLD = np.kron(RNG.integers(0, 256, (6, 60, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def pan(steps: np.ndarray) -> np.ndarray:
    """Views of 48x48 px into a wide picture, each at its step."""
    return np.stack([WORLD[:, int(s) : int(s) + 48] for s in steps])


def literal(gap: np.ndarray, near: float, far: float, shortest: int, run: int) -> list[int]:
    """The definition, word by word."""
    frames = len(gap)

    def again(t: int, lag: int) -> bool:
        s = t - lag
        return s >= 0 and gap[s, t] < near and any(gap[s, u] > far for u in range(s, t + 1))

    found = []
    for t in range(frames):
        lags = [
            lag
            for lag in range(shortest, t + 1)
            if any(
                start >= 0 and start + run <= frames and all(again(u, lag) for u in range(start, start + run))
                for start in range(t - run + 1, t + 1)
            )
        ]
        found.append(min(lags, key=lambda lag: (gap[t - lag, t], lag)) if lags else 0)
    return found


@given(st.integers(4, 24), st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_recurrences_are_the_definition(frames: int, shortest: int, run: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 4, frames) + rng.choice([0, 0.1, 0.3], frames)
    gap = np.abs(places[:, None] - places[None])
    assert recurrences(gap, 0.5, 1.5, shortest, run).tolist() == literal(gap, 0.5, 1.5, shortest, run)


def test_distances_are_root_mean_squares() -> None:
    frames = RNG.integers(0, 200, (4, 16, 16, 3), dtype=np.uint8)
    found = distances(frames)
    flat = frames / 255.0 - frames.mean((1, 2), keepdims=True) / 255
    expected = np.sqrt(((flat[1] - flat[3]) ** 2).mean())
    np.testing.assert_allclose(
        distances(frames + np.arange(0, 40, 10, np.uint8)[:, None, None, None]), found, atol=1e-5
    )
    assert found[1, 3] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-6)


def test_a_video_that_plays_twice_scores_a_half() -> None:
    once = pan(np.linspace(0, 400, 32))
    found = loop(Clip(np.concatenate([once, once]), FPS))
    assert found.share.value == pytest.approx(0.5, abs=0.02)
    assert found.period == 32
    assert found.share.slope > 0.5  # all of it in the second half


def test_a_periodic_video_loops_after_its_first_period_whatever_its_noise() -> None:
    steps = 200 + 180 * np.sin(2 * np.pi * np.arange(96) / 24)
    noisy = np.clip(pan(steps) + RNG.normal(0, 10, (96, 48, 48, 3)), 0, 255).astype(np.uint8)
    found = loop(Clip(noisy, FPS))
    assert found.share.value == pytest.approx(0.75, abs=0.03) and found.period == 24


@pytest.mark.parametrize(
    "video",
    [
        pan(np.linspace(0, 400, 64)),
        np.repeat(pan(np.zeros(1)), 64, 0),
        RNG.integers(0, 256, (64, 48, 48, 3), dtype=np.uint8),
        pan(np.r_[np.linspace(0, 400, 32), np.full(32, 400)]),
        pan(np.abs(np.linspace(-400, 400, 64))),
        pan(np.zeros(8)),
    ],
    ids=["goes on", "still", "noise", "freezes", "turns back once", "short"],
)
def test_what_does_not_loop(video: np.ndarray) -> None:
    found = loop(Clip(video, FPS))
    assert found.share.value == 0 and found.period is None


def test_faint_noise_on_a_still_image_is_no_loop() -> None:
    still = np.clip(np.repeat(pan(np.zeros(1)), 64, 0) + RNG.normal(0, 6, (64, 48, 48, 3)), 0, 255).astype(np.uint8)
    assert loop(Clip(still, FPS)).share.value == 0


def test_the_loop_score_does_not_mind_size_or_brightness() -> None:
    once = pan(np.linspace(0, 400, 20))
    video = np.concatenate([once, once, pan(np.linspace(0, 400, 20)[::-1])])
    value = loop(Clip(video, FPS)).share.value
    assert value == loop(Clip(video.repeat(2, 1).repeat(2, 2), FPS)).share.value
    assert value == pytest.approx(loop(Clip((video // 2 + 40).astype(np.uint8), FPS)).share.value, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_real_scenes_do_not_loop(seed: int) -> None:
    video = Scene.random(np.random.default_rng(seed)).render(161)
    assert loop(Clip.of(video, 16)).share.value < 0.15


def test_a_loop_is_found_though_it_comes_back_a_little_moved_and_brighter() -> None:
    once = Scene.random(np.random.default_rng(0)).render(81)
    again = np.clip(np.roll(once, (1, 1), (1, 2)) + 0.05, 0, 1)
    found = loop(Clip.of(np.concatenate([once, again]), 16))
    assert found.share.value == pytest.approx(0.5, abs=0.05)
    assert found.period == pytest.approx(81, abs=4)


def test_no_repeat_finds_the_lag_near_the_predicted_period() -> None:
    once = pan(np.linspace(0, 400, 30))
    video = Clip(np.concatenate([once, once]), FPS)
    found = no_repeat(video, 28)
    assert found.repeats and found.lag == 30 and found.distance == 0
    assert not no_repeat(video, 20).repeats


def test_no_repeat_of_what_goes_on_and_of_what_stands_still() -> None:
    assert not no_repeat(Clip(pan(np.linspace(0, 400, 40)), FPS), 20).repeats
    still = no_repeat(Clip(np.repeat(pan(np.zeros(1)), 40, 0), FPS), 20)
    assert still.repeats and still.lag == 20


def test_no_repeat_is_the_mean_over_aligned_frames() -> None:
    video = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    found = no_repeat(Clip(video, FPS), 5, search=0)
    scaled = video / 255.0
    expected = np.mean([np.sqrt(((scaled[t] - scaled[t + 5]) ** 2).mean()) for t in range(7)])
    assert found.lag == 5 and found.distance == pytest.approx(expected, rel=1e-5)
    assert no_repeat(Clip(video, FPS), 5, search=0, threshold=expected + 1e-3).repeats


@pytest.mark.parametrize(
    ("period", "options"), [(1, {}), (12, {}), (50, {}), (5, {"search": -1}), (5, {"threshold": -1.0})]
)
def test_no_repeat_refuses(period: int, options: dict) -> None:
    with pytest.raises(MetricError, match="NoRepeat"):
        no_repeat(Clip(pan(np.arange(12)), FPS), period, **options)
