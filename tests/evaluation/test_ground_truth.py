from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from freeloc_fx.evaluation.metrics import GroundTruthScore, per_time, score
from freeloc_fx.generation.tiny_wan import scenes
from freeloc_fx.generation.tiny_wan.scenes import SHAPES, Scene, Shape

FRAMES = 97
SCENE = Scene(
    (Shape("circle", "yellow", 18, 40, 0.5), Shape("square", "red", 44, 20, 2.4)),
    "brown",
    "stripes",
    "pans up",
    "quickly",
)
PROMPT = SCENE.prompt


def blur(video: np.ndarray, sigma: float) -> np.ndarray:
    reach = int(3 * sigma) + 1
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (1, 2):
        padded = np.pad(video, [(reach, reach) if a == axis else (0, 0) for a in range(4)], mode="edge")
        video = sum(k * np.take(padded, np.arange(64) + i, axis) for i, k in enumerate(kernel))
    return video


@pytest.fixture(scope="module")
def real() -> GroundTruthScore:
    return score(SCENE.render(FRAMES), PROMPT)


def assert_right(found: GroundTruthScore) -> None:
    assert found.composite > 0.96
    assert found.presence == 1 and found.shape_accuracy > 0.99
    assert found.area == pytest.approx(1, abs=0.04)
    assert found.speed == pytest.approx(1, abs=0.04)
    assert found.sharpness == pytest.approx(1, abs=0.08)
    assert found.psnr > 33
    assert found.foreign == 0 and found.scroll_error < 0.02 and found.loop < 0.1


@pytest.mark.parametrize("seed", range(16))
def test_real_clips(seed: int) -> None:
    scene = Scene.random(np.random.default_rng(seed))
    assert_right(score(scene.render(81), scene.prompt))


@pytest.mark.parametrize("speed", scenes.SPEEDS)
def test_long_real_clips(speed: str) -> None:
    scene = Scene(
        tuple(Shape(k, c, 20 + 9 * i, 45 - 8 * i, 0.7 + 1.9 * i) for i, (k, c) in enumerate(KINDS)),
        "teal",
        "checkers",
        "pans left",
        speed,
    )
    assert_right(score(scene.render(321), scene.prompt))


KINDS = tuple(zip(SHAPES, ("white", "purple", "green"), strict=True))


def test_frozen(real: GroundTruthScore) -> None:
    found = score(np.repeat(SCENE.render(1), FRAMES, 0), PROMPT)
    assert found.speed < 0.02 and found.composite < 0.1 and found.quality > 0.9
    assert found.loop == 0
    assert found.scroll_error == pytest.approx(0.5 * 0.5**0.5, abs=0.02)  # across the diagonal stripes
    assert found.presence == 1


def test_slowed() -> None:
    found = score(SCENE.render(FRAMES)[np.arange(FRAMES) // 4], PROMPT)
    assert found.speed == pytest.approx(0.25, abs=0.03)
    assert found.composite < 0.75
    assert found.presence == 1 and found.shape_accuracy == 1


def test_fast_and_frozen_halves_do_not_cancel() -> None:
    t = np.concatenate([np.arange(0, 96, 2), np.full(48, 30)])
    found = score(SCENE.render(FRAMES)[t], PROMPT)
    assert found.speed == pytest.approx(1, abs=0.25)
    assert found.motion < 0.5


def test_blurred(real: GroundTruthScore) -> None:
    scores = [real, *(score(blur(SCENE.render(FRAMES), s), PROMPT) for s in (0.8, 1.5))]
    sharpness = [s.sharpness for s in scores]
    assert sharpness[0] > 0.9 > 0.65 > sharpness[1] > 0.4 > sharpness[2]
    assert scores[0].psnr > scores[1].psnr + 3 > scores[2].psnr + 6
    assert scores[2].presence == 1 and scores[2].speed == pytest.approx(1, abs=0.05)
    assert scores[0].composite > scores[1].composite + 0.1 > scores[2].composite + 0.15


def test_too_large(monkeypatch: pytest.MonkeyPatch, real: GroundTruthScore) -> None:
    with monkeypatch.context() as patch:
        for name in ("RADIUS", "_SQUARE", "_TRIANGLE"):
            patch.setattr(scenes, name, getattr(scenes, name) * 1.35**0.5)
        video = SCENE.render(FRAMES)
    found = score(video, PROMPT)
    assert found.area == pytest.approx(1.35, abs=0.04)
    assert found.shape_accuracy > 0.95 and found.psnr < real.psnr - 10


def test_wrong_colour() -> None:
    found = score(replace(SCENE, shapes=(replace(SCENE.shapes[0], colour="blue"), SCENE.shapes[1])).render(30), PROMPT)
    assert [s.presence for s in found.shapes] == [0, 1]
    assert found.foreign > 0.03 and found.composite < 0.8


@pytest.mark.parametrize("gone", [0, 1])
def test_missing_shape(gone: int) -> None:
    found = score(replace(SCENE, shapes=(SCENE.shapes[1 - gone],)).render(30), PROMPT)
    assert found.shapes[gone].presence == 0 and found.shapes[1 - gone].presence == 1
    assert found.presence == 0.5 and found.foreign == 0 and found.composite < 0.87


@pytest.mark.parametrize("turn", [1, 2])
def test_wrong_kinds(turn: int) -> None:
    shapes = tuple(replace(s, kind=SHAPES[(SHAPES.index(s.kind) + turn) % 3]) for s in SCENE.shapes)
    found = score(replace(SCENE, shapes=shapes).render(30), PROMPT)
    assert found.shape_accuracy < 0.05 and found.composite < 0.3
    assert found.presence == 1


@pytest.mark.parametrize("colour", ["green", "yellow"])
def test_extra_shape(colour: str, real: GroundTruthScore) -> None:
    extra = Shape("circle", colour, 15, 14, 0.2)
    found = score(replace(SCENE, shapes=(extra, *SCENE.shapes)).render(16), PROMPT)
    assert found.foreign > 0.04
    assert found.composite < real.composite - 0.05


def test_hidden_shape_does_not_count_against() -> None:
    shapes = (Shape("circle", "yellow", 20, 32, 0.0), Shape("circle", "red", 44, 32, np.pi))
    scene = replace(SCENE, shapes=shapes, speed="slowly")
    video = scene.render(81)
    yellow = (np.abs(video - np.array(scenes.COLOURS["yellow"])).max(-1) < 0.05).sum((1, 2))
    assert yellow.min() == 0  # the scene really hides the circle
    assert_right(score(video, scene.prompt))
    behind = score(replace(scene, shapes=shapes[::-1]).render(81), scene.prompt)
    assert behind.presence == 1 and behind.composite > 0.97


def test_vanishing_is_not_hiding() -> None:
    video = SCENE.render(FRAMES)
    video[48:] = replace(SCENE, shapes=SCENE.shapes[1:]).render(FRAMES)[48:]
    drift = per_time(video, PROMPT, segments=2)
    assert drift[0].presence == 1
    assert drift[1].presence <= 0.55


def test_loop() -> None:
    assert score(np.tile(SCENE.render(50), (3, 1, 1, 1)), PROMPT).loop > 0.95
    once = score(SCENE.render(150), PROMPT)
    assert once.loop < 0.1 and once.repeated < 0.05


@pytest.mark.parametrize("rounds", [2, 4])
def test_all_rounds_of_a_loop_but_the_first_are_repeated_time(rounds: int) -> None:
    found = score(np.tile(SCENE.render(48), (rounds, 1, 1, 1)), PROMPT)
    assert found.loop > 0.8
    assert found.repeated == pytest.approx(1 - 1 / rounds, abs=0.12)
    assert found.composite < (1.3 / rounds) ** 0.25


def test_drift_over_time(real: GroundTruthScore) -> None:
    video = SCENE.render(FRAMES)
    video[49:] = blur(video[49:], 1.5)
    drift = per_time(video, PROMPT, segments=4)
    assert len(drift) == 4
    assert [s.sharpness > 0.6 for s in drift] == [True, True, False, False]
    assert score(video, PROMPT, window=(0, 49)).sharpness > 0.9
    assert real == score(SCENE.render(FRAMES), PROMPT, window=(0, FRAMES))


def test_empty_clip() -> None:
    found = score(np.full((20, 64, 64, 3), 0.3), PROMPT)
    assert found.presence == 0 and found.composite == 0 and np.isnan(found.area)


@pytest.mark.parametrize("kind", ["frames", "still", "gray", "blurred"])
@pytest.mark.parametrize(
    "prompt",
    [
        "a purple square and a yellow circle bounce quickly over a teal checkers, the camera pans right",
        "a green triangle, a white circle and a red square wander slowly over a navy grid, the camera is still",
    ],
)
def test_noise_shows_nothing(kind: str, prompt: str) -> None:
    shape = {"still": (1, 64, 64, 3), "gray": (40, 64, 64, 1)}.get(kind, (40, 64, 64, 3))
    video = np.broadcast_to(np.random.default_rng(7).random(shape), (40, 64, 64, 3))
    found = score(np.clip(blur(video, 1.5) * 4 - 1.5, 0, 1) if kind == "blurred" else video, prompt)
    assert found.composite == found.composite_before == found.quality == 0


def test_noise_after_a_real_start_is_nothing() -> None:
    video = SCENE.render(96)
    video[48:] = np.random.default_rng(5).random((48, 64, 64, 3))
    first, second = per_time(video, PROMPT, segments=2)
    assert first.composite > 0.9
    assert second.composite == second.composite_before == second.quality == 0


def test_a_stretch_with_all_shapes_out_of_the_frame_is_no_fault() -> None:
    shapes = (Shape("circle", "yellow", 52, 40, 0.0), Shape("square", "red", 12, 20, 3.1))
    scene = replace(SCENE, shapes=shapes, speed="slowly", verb="wander")
    video = scene.render(120)
    for window in ((37, 90), (37, 38)):
        away = score(video, scene.prompt, window)
        assert np.isnan(away.presence) and away.composite == 1
    assert score(video, scene.prompt).composite > 0.96


@pytest.mark.parametrize("window", [(96, 97), (94, 97), (0, 1)])
def test_a_stretch_too_short_for_a_speed_is_scored(window: tuple[int, int]) -> None:
    assert score(SCENE.render(FRAMES), PROMPT, window).composite > 0.95


def test_as_dict(real: GroundTruthScore) -> None:
    found = json.loads(json.dumps(real.as_dict()))
    assert found["composite"] == real.composite
    assert [s["name"] for s in found["shapes"]] == ["yellow circle", "red square"]


@pytest.mark.parametrize(
    ("video", "options", "words"),
    [
        (np.zeros((4, 32, 32, 3)), {}, r"shape \(4, 32, 32, 3\); expected"),
        (np.zeros((1, 64, 64, 3)), {}, "frames >= 2"),
        (np.zeros((4, 64, 64, 3), np.uint8), {}, "dtype uint8; expected floats"),
        (np.full((4, 64, 64, 3), 255.0), {}, "values from 255"),
        (np.full((4, 64, 64, 3), np.nan), {}, "finite"),
        (np.zeros((4, 64, 64, 3)), {"window": (3, 3)}, r"window \(3, 3\)"),
        (np.zeros((4, 64, 64, 3)), {"window": (0, 5)}, "inside the clip's 4 frames"),
    ],
)
def test_bad_input(video: np.ndarray, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(video, PROMPT, **options)
    with pytest.raises(ValueError, match="grammar"):
        score(np.zeros((4, 64, 64, 3)), "a cat")
    with pytest.raises(ValueError, match="segments=9"):
        per_time(np.zeros((4, 64, 64, 3)), PROMPT, segments=9)
