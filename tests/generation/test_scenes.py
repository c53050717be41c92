from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from freeloc_fx.generation.tiny_wan.scenes import (
    AREA,
    COLOURS,
    RADIUS,
    SHAPES,
    SIZE,
    SPEEDS,
    Scene,
    Shape,
    parse_prompt,
    signed_distance,
)

GOOD = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"


def one_shape(kind: str, x: float = 32.3, y: float = 31.6, direction: float = 0.0, speed: str = "quickly") -> Scene:
    return Scene((Shape(kind, "white", x, y, direction),), "gray", "grid", "is still", speed)


@pytest.mark.parametrize("seed", range(50))
def test_prompt_round_trip(seed: int) -> None:
    scene = Scene.random(np.random.default_rng(seed))
    read = parse_prompt(scene.prompt)
    assert [(s.kind, s.colour) for s in read.shapes] == [(s.kind, s.colour) for s in scene.shapes]
    assert (read.background, read.texture, read.camera, read.speed) == (
        scene.background,
        scene.texture,
        scene.camera,
        scene.speed,
    )
    assert read.prompt == scene.prompt
    assert len({s.colour for s in scene.shapes}) == len(scene.shapes) in (2, 3)


def test_prompt_reading_forgives_case_and_full_stop() -> None:
    assert parse_prompt(f"  {GOOD.capitalize()}. ") == parse_prompt(GOOD)


@pytest.mark.parametrize("seed", range(20))
def test_centres_stay_inside_and_move_at_the_speed(seed: int) -> None:
    scene = Scene.random(np.random.default_rng(seed))
    centres = scene.centres(400)
    assert centres.shape == (400, len(scene.shapes), 2)
    assert centres.min() >= RADIUS + 2 - 1e-9
    assert centres.max() <= SIZE - RADIUS - 2 + 1e-9
    steps = np.hypot(*np.moveaxis(np.diff(centres, axis=0), -1, 0))
    assert np.median(steps) == pytest.approx(SPEEDS[scene.speed])
    assert steps.max() <= SPEEDS[scene.speed] + 1e-9  # a wall shortens a step, never lengthens it


def test_reflection_turns_one_axis_around() -> None:
    x = one_shape("circle", x=52.0, y=30.0).centres(4)[:, 0]
    # The wall is at 53: 52, 53.2 -> 52.8, 54.4 -> 51.6, 55.6 -> 50.4.
    assert x[:, 0] == pytest.approx([52.0, 52.8, 51.6, 50.4])
    assert x[:, 1] == pytest.approx([30.0] * 4)


@pytest.mark.parametrize("kind", SHAPES)
def test_rendered_area_and_centroid(kind: str) -> None:
    scene = one_shape(kind)
    shown = scene.render(3) - replace(scene, shapes=()).render(3)
    cover = shown[..., 0] / (COLOURS["white"][0] - replace(scene, shapes=()).render(3)[..., 0])
    assert cover.sum((1, 2)) == pytest.approx([AREA] * 3, rel=0.01)
    yy, xx = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    found = np.stack([(cover * xx).sum((1, 2)), (cover * yy).sum((1, 2))], -1) / cover.sum((1, 2))[:, None]
    assert found == pytest.approx(scene.centres(3)[:, 0], abs=0.06)


def test_render_format_and_painters_order() -> None:
    scene = Scene((Shape("circle", "red", 30, 30, 0.0), Shape("square", "green", 30, 30, 0.0)), *BACK)
    video = scene.render(2)
    assert video.shape == (2, SIZE, SIZE, 3) and video.dtype == np.float32
    assert video.min() >= 0 and video.max() <= 1
    assert video[0, 30, 30] == pytest.approx(COLOURS["green"])


BACK = ("gray", "stripes", "pans up", "slowly")


def test_camera_scrolls_the_background_the_other_way() -> None:
    scene = replace(one_shape("circle"), shapes=(), camera="pans right")
    video = scene.render(9)
    assert video[8, :, :-4] == pytest.approx(video[0, :, 4:], abs=1e-6)
    assert not np.allclose(video[8], video[0])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a cat", "grammar; an example"),
        ("", "grammar"),
        (GOOD.replace("red", "orange"), "a orange circle.*COLOUR one of red"),
        (GOOD.replace("square", "cube"), "SHAPE one of circle"),
        (GOOD.replace("slowly", "gently"), "'gently'.*slowly, quickly"),
        (GOOD.replace("navy", "pink"), "'pink'.*gray"),
        (GOOD.replace("grid", "dots"), "'dots'.*grid"),
        (GOOD.replace("pans left", "zooms"), "'zooms'.*is still"),
    ],
)
def test_bad_prompts(prompt: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_prompt(prompt)


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match="unknown shape 'star'"):
        signed_distance("star", np.zeros(1), np.zeros(1))
