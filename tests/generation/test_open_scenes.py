"""Scenes whose prompts leave things open: what is told is drawn, what is not is drawn once and kept."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from freeloc_fx.generation.tiny_wan.drawing import APART, real, varied
from freeloc_fx.generation.tiny_wan.palette import ATTRIBUTES, BACKGROUNDS, SIZES
from freeloc_fx.generation.tiny_wan.scenes import RADIUS, SIZE, Scene, Shape, parse_prompt

OPEN = "two shapes bounce slowly over a striped floor"


def drawn(seed: int) -> Scene:
    return varied(np.random.default_rng((seed, 4)))


@pytest.mark.parametrize("seed", range(60))
def test_a_prompt_tells_what_its_scene_says_and_no_more(seed: int) -> None:
    scene = drawn(seed)
    read = parse_prompt(scene.prompt)
    assert read.prompt == scene.prompt
    assert read.open == scene.open
    assert read.verb == scene.verb
    for told, shape in zip(read.shapes, scene.shapes, strict=True):
        assert told.open == shape.open
        for name, field in zip(ATTRIBUTES, ("colour", "kind", "scale", "surface"), strict=True):
            left = {"scale": 1.0}.get(field, "")
            assert getattr(told, field) == (left if name in shape.open else getattr(shape, field)), name
    assert read.background == ("" if "tones" in scene.open else scene.background)
    assert read.texture == ("" if "texture" in scene.open else scene.texture)
    assert read.camera == ("" if "camera" in scene.open else scene.camera)


def test_prompts_name_all_some_or_none() -> None:
    counts = [sum(len(s.open) for s in scene.shapes) / (4 * len(scene.shapes)) for scene in map(drawn, range(300))]
    assert sum(c < 0.2 for c in counts) > 40
    assert sum(0.2 <= c <= 0.8 for c in counts) > 40
    assert sum(c > 0.8 for c in counts) > 40
    assert 0.3 < sum(drawn(seed).verb == "wander" for seed in range(300)) / 300 < 0.5


def test_all_is_open_of_two_shapes_over_a_floor() -> None:
    scene = parse_prompt(OPEN)
    assert [s.open for s in scene.shapes] == [frozenset(ATTRIBUTES)] * 2
    assert (scene.texture, scene.background, scene.open) == ("stripes", "", frozenset({"tones", "camera"}))
    assert parse_prompt("two shapes wander quickly over a floor").open == frozenset({"tones", "texture", "camera"})


@pytest.mark.parametrize(
    ("words", "scale", "surface", "left"),
    [
        ("a red circle", 1.0, "plain", set()),
        ("a red shape", 1.0, "plain", {"kind"}),
        ("a circle", 1.0, "plain", {"colour"}),
        ("a large striped red circle", SIZES["large"], "striped", set()),
        ("some red circle", 1.0, "", {"size", "surface"}),
        ("some small red circle", SIZES["small"], "", {"surface"}),
        ("some plain shape", 1.0, "plain", {"size", "colour", "kind"}),
    ],
)
def test_articles_say_whether_size_and_surface_are_open(words: str, scale: float, surface: str, left: set) -> None:
    shape = parse_prompt(f"{words} and a white square bounce slowly over a navy grid, the camera pans left").shapes[0]
    assert (shape.scale, shape.surface, set(shape.open)) == (scale, surface, left)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a huge red circle and a white square bounce slowly over a floor", "'a huge red circle'.*COLOUR SHAPE"),
        ("a red striped circle and a white square bounce slowly over a floor", "'a red striped circle'"),
        ("two shapes bounce slowly over a pink floor", "'pink'.*gray"),
        ("two shapes bounce slowly over a striped gray floor", "'gray'.*before 'floor'"),
        ("two shapes bounce slowly over a grid", "'grid'.*BACKGROUND TEXTURE"),
        ("two shapes fly slowly over a floor", "grammar"),
        ("seven shapes bounce slowly over a floor", "'seven shapes'"),
    ],
)
def test_bad_prompts(prompt: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_prompt(prompt)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_drawn_is_kept_through_the_clip(seed: int) -> None:
    """Where one plain shape alone covers a pixel, the pixel has the shape's colour, in the first frame and the last."""
    scene = drawn(seed)
    scene = replace(scene, shapes=tuple(replace(s, surface="plain") for s in scene.shapes))
    video, covers = scene.render(200), scene.covers(200)
    assert video.shape == (200, SIZE, SIZE, 3) and video.min() >= 0 and video.max() <= 1
    for index, shape in enumerate(scene.shapes):
        alone = (covers[:, index] == 1) & (np.delete(covers, index, 1) == 0).all(1)
        assert alone[:60].any()
        assert np.abs(video[alone] - shape.rgb).max() < 1e-5
        whole = covers[:, index].sum((1, 2)).max()
        assert whole == pytest.approx(math.pi * (RADIUS * shape.scale) ** 2, rel=0.02)


def test_surfaces_move_with_their_shape() -> None:
    for surface in ("striped", "dotted"):
        shape = Shape("square", "white", 20.0, 32.0, 0.0, surface=surface)
        scene = Scene((shape,), "gray", "grid", "is still", "slowly")
        video = scene.render(31)  # 12 px further on
        assert np.abs(video[30, 26:38, 27:37] - video[0, 26:38, 15:25]).max() < 1e-5
        assert np.ptp(video[0, 26:38, 15:25]) > 0.2


@pytest.mark.parametrize("seed", range(30))
def test_things_of_a_clip_differ_in_colour(seed: int) -> None:
    colours = [s.rgb for s in drawn(seed).shapes]
    assert all(math.dist(a, b) >= APART for a, b in itertools.combinations(colours, 2))


def test_who_wanders_leaves_the_frame_and_comes_back() -> None:
    gone, away = 0, []
    for seed in range(40):
        scene = replace(drawn(seed), verb="wander")
        seen = scene.covers(400).max((2, 3)) > 0.5
        for shape in seen.T:
            edges = np.flatnonzero(np.diff(np.concatenate([[True], shape, [True]]).astype(int)))
            runs = np.diff(edges.reshape(-1, 2), axis=1)
            gone += len(runs) > 0
            away += [int(n) for n in runs.ravel()]
        assert seen[0].all()
    assert gone > 20
    assert max(away) < 160  # of 400 frames: with a slanted way at the slow speed


def test_who_bounces_never_leaves() -> None:
    for seed in range(20):
        scene = replace(drawn(seed), verb="bounce")
        assert (scene.covers(300).max((2, 3)) == 1).all()
        assert (scene.centres(300) > RADIUS * 0.7).all() and (scene.centres(300) < SIZE - RADIUS * 0.7).all()


def test_a_real_clip_of_a_prompt_keeps_to_it() -> None:
    for seed in range(60):
        prompt = drawn(seed).prompt
        scene = real(prompt, np.random.default_rng(seed))
        assert scene.prompt == prompt
        assert scene.render(2).shape == (2, SIZE, SIZE, 3)
        if "tones" not in scene.open:
            assert scene.background in BACKGROUNDS
    again = [real(OPEN, np.random.default_rng(s)) for s in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
