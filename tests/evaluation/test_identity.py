"""Constancy, permanence, pops, loop and freeze: videos in which one thing goes wrong, beside the same unharmed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from freeloc_fx.evaluation.metrics import GroundTruthScore, per_time, score
from freeloc_fx.generation.tiny_wan.drawing import varied
from freeloc_fx.generation.tiny_wan.scenes import Scene, Shape

FRAMES = 161
SCENE = Scene(
    (Shape("circle", "yellow", 18, 40, 0.5), Shape("square", "red", 44, 20, 2.4)),
    "brown",
    "stripes",
    "pans up",
    "quickly",
)
ALL = frozenset({"colour", "kind", "size", "surface"})
OPEN = Scene(
    (
        Shape("circle", "", 18, 40, 0.5, 1.2, "plain", (0.95, 0.6, 0.1), ALL),
        Shape("square", "", 44, 20, 2.4, 0.8, "plain", (0.1, 0.8, 0.9), ALL),
    ),
    "",
    "stripes",
    "pans up",
    "quickly",
    tones=((0.15, 0.2, 0.14), (0.3, 0.42, 0.3)),
    open=frozenset({"tones", "camera"}),
)
SCENES = {"told": SCENE, "open": OPEN}


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest) -> Scene:
    return SCENES[request.param]


def with_first(scene: Scene, **changes: object) -> Scene:
    return replace(scene, shapes=(replace(scene.shapes[0], **changes), *scene.shapes[1:]))


def spliced(scene: Scene, other: Scene, start: int, stop: int = FRAMES) -> np.ndarray:
    """The scene's video, with frames start..stop-1 of the other's."""
    video = scene.render(FRAMES)
    video[start:stop] = other.render(FRAMES)[start:stop]
    return video


def alone(scene: Scene) -> list[int]:
    """First frames of stretches of eight, well into the clip, in which its two things are far from each other."""
    far = np.linalg.norm(np.diff(scene.centres(FRAMES), axis=1)[:, 0], axis=-1) > 30
    return [t for t in range(88, FRAMES - 8, 8) if far[t : t + 8].all()]


def apart(scene: Scene) -> Scene:
    """The scene with its second thing on a way that keeps it far from the first for long."""
    ways = (replace(scene.shapes[1], direction=float(d)) for d in np.linspace(0, 6, 40))
    return max((replace(scene, shapes=(scene.shapes[0], way)) for way in ways), key=lambda s: len(alone(s)))


def unharmed(scene: Scene) -> GroundTruthScore:
    return score(scene.render(FRAMES), scene.prompt)


def test_a_real_clip_keeps_all(scene: Scene) -> None:
    found = unharmed(scene)
    assert found.constancy > 0.97
    assert found.permanence == 1
    assert (found.pops, found.freeze) == (0, 0)
    assert found.loop < 0.05
    assert found.composite > 0.97


@pytest.mark.parametrize("seed", range(8))
def test_real_clips_of_prompts_that_leave_things_open(seed: int) -> None:
    """What is read off a clip is what was drawn: nothing changes, vanishes or comes up."""
    scene = varied(np.random.default_rng((seed, 8)))
    found = score(scene.render(FRAMES), scene.prompt)
    assert found.constancy > 0.94
    assert found.permanence > 0.97
    assert found.pops <= 1
    assert found.foreign < 0.01
    assert found.composite > 0.9


def test_a_thing_that_vanishes(scene: Scene) -> None:
    found = score(spliced(scene, replace(scene, shapes=scene.shapes[1:]), 100), scene.prompt)
    gone = 61 / FRAMES
    assert found.permanence == pytest.approx(1 - gone / 2, abs=0.03)
    assert found.pops == pytest.approx(100 / FRAMES, abs=0.01)
    assert found.constancy < 0.85
    assert found.composite < unharmed(scene).composite - 0.1


def test_a_thing_that_goes_and_comes_pops_twice_each_time(scene: Scene) -> None:
    scene = apart(scene)
    video = scene.render(FRAMES)
    without = replace(scene, shapes=scene.shapes[1:]).render(FRAMES)
    starts = alone(scene)[::2][:2]
    for start in starts:
        video[start + 1 : start + 6] = without[start + 1 : start + 6]
    found = score(video, scene.prompt)
    assert found.pops == pytest.approx(4 * 100 / FRAMES, abs=0.01)
    assert found.permanence > 0.9


def test_a_flicker_of_two_frames_is_no_pop(scene: Scene) -> None:
    found = score(spliced(scene, replace(scene, shapes=scene.shapes[1:]), 100, 102), scene.prompt)
    assert found.pops == 0


def test_a_thing_that_doubles(scene: Scene) -> None:
    twin = replace(scene.shapes[0], x=64 - scene.shapes[0].x, y=64 - scene.shapes[0].y)
    found = score(spliced(scene, replace(scene, shapes=(twin, *scene.shapes)), 100), scene.prompt)
    assert found.permanence < 0.9
    assert found.pops >= 100 / FRAMES - 0.01
    assert found.composite < unharmed(scene).composite - 0.03


def test_a_thing_that_changes_its_colour(scene: Scene) -> None:
    other = with_first(scene, colour="purple", tint=None)
    found = score(spliced(scene, other, 100), scene.prompt)
    assert found.constancy < 0.85
    assert found.permanence < 0.85
    assert found.pops > 0
    assert found.composite < unharmed(scene).composite - 0.1


def test_a_colour_that_drifts(scene: Scene) -> None:
    """A drift too small for the thing to be lost lowers constancy alone."""
    video = scene.render(FRAMES)
    start = np.array(scene.shapes[0].rgb)
    drifted = tuple(float(c) for c in start + np.array([0.0, -0.2, 0.0]))
    other = with_first(scene, tint=drifted).render(FRAMES)
    video[100:] = other[100:]
    found = score(video, scene.prompt)
    assert found.constancy < 0.95
    assert found.permanence > 0.95
    assert found.pops == 0


@pytest.mark.parametrize("changes", [{"kind": "square"}, {"scale": 0.8}])
def test_a_thing_that_changes_kind_or_size(scene: Scene, changes: dict) -> None:
    scene = apart(scene)
    changes = {k: v * scene.shapes[0].scale if k == "scale" else v for k, v in changes.items()}
    video = spliced(scene, with_first(scene, **changes), 100)
    found = score(video, scene.prompt)
    assert found.constancy < 0.95
    assert found.pops == 0
    drift = per_time(video, scene.prompt, segments=4)
    assert drift[0].constancy > 0.96 > 0.93 > drift[3].constancy  # by position in the video


def test_what_was_not_asked_for_pops_too() -> None:
    extra = Shape("circle", "green", 15, 14, 0.2)
    found = score(spliced(SCENE, replace(SCENE, shapes=(extra, *SCENE.shapes)), 100, 130), SCENE.prompt)
    assert found.pops >= 2 * 100 / FRAMES - 0.01
    assert found.permanence == 1


def test_hidden_is_neither_gone_nor_a_pop() -> None:
    shapes = (Shape("circle", "yellow", 20, 32, 0.0), Shape("circle", "red", 44, 32, np.pi))
    scene = replace(SCENE, shapes=shapes, speed="slowly")
    found = score(scene.render(FRAMES), scene.prompt)
    assert (found.permanence, found.pops) == (1, 0)
    assert found.constancy > 0.95


def test_who_wanders_out_and_back_is_not_gone() -> None:
    """The circle leaves to the right and comes back; the same clip without its return has lost it."""
    shapes = (Shape("circle", "yellow", 40, 32, 0.45), Shape("square", "red", 20, 40, 2.6))
    scene = Scene(shapes, "gray", "grid", "is still", "quickly", verb="wander")
    seen = scene.covers(321)[:, 0].max((1, 2)) > 0.5
    assert not seen.all() and seen[-1]
    found = score(scene.render(321), scene.prompt)
    assert (found.permanence, found.pops) == (1, 0)
    first = int(np.flatnonzero(~seen)[0])
    video = scene.render(321)
    video[first:] = replace(scene, shapes=shapes[1:]).render(321)[first:]
    assert score(video, scene.prompt).permanence < 0.8


def test_a_frozen_video_is_constant_and_worthless(scene: Scene) -> None:
    found = score(np.repeat(scene.render(1), FRAMES, 0), scene.prompt)
    assert found.constancy > 0.98 and found.permanence == 1 and found.pops == 0
    assert found.freeze == 1
    assert found.composite == 0
    assert found.composite_before < 0.3


def test_a_video_that_freezes_half_way(scene: Scene) -> None:
    video = scene.render(FRAMES)
    video[81:] = video[80]
    found = score(video, scene.prompt)
    assert found.freeze == pytest.approx(0.5, abs=0.15)
    assert found.composite < found.composite_before - 0.05


def test_a_loop_counts_against_the_composite(scene: Scene) -> None:
    once = scene.render(50)
    found = score(np.tile(once, (4, 1, 1, 1)), scene.prompt)
    assert found.loop > 0.9
    assert found.composite < 0.75
    assert found.composite_before > 0.9


def test_things_that_share_no_told_attribute_are_not_mixed_up() -> None:
    """Kinds tell which open colour is whose: of "a circle and a square" each keeps its kind."""
    first, second = (replace(s, open=s.open - {"kind"}) for s in OPEN.shapes)
    for shapes in ((first, second), (second, first)):
        found = score(replace(OPEN, shapes=shapes).render(97), replace(OPEN, shapes=shapes).prompt)
        assert found.shape_accuracy > 0.95
        assert [s.name for s in found.shapes] == [f"some {s.kind}" for s in shapes]
    wrong = replace(OPEN, shapes=(replace(first, kind="triangle"), second))
    assert score(wrong.render(97), replace(OPEN, shapes=(first, second)).prompt).shape_accuracy < 0.6


def test_a_thing_that_an_open_prompt_asks_for_and_is_never_there() -> None:
    found = score(replace(OPEN, shapes=OPEN.shapes[:1]).render(97), OPEN.prompt)
    assert found.presence == 0.5
    assert found.permanence == pytest.approx(0.5, abs=0.02)
    assert math.isfinite(found.composite) and found.composite < 0.8


def test_an_empty_clip_of_an_open_prompt() -> None:
    found = score(np.full((20, 64, 64, 3), 0.3), OPEN.prompt)
    assert found.presence == 0 and found.composite == 0 and found.permanence == 0
