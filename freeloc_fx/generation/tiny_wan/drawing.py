"""Draw what a prompt leaves open, once a clip: whole scenes to train on, or real clips of a prompt to compare with.

Where there is a continuum things are drawn from it: colours, sizes, the background's tones. Things of one clip differ
in colour.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .palette import ATTRIBUTES, CAMERAS, SHAPES, SIZE, SIZES, SURFACES, TEXTURES, VERBS
from .scenes import Colour, Scene, Shape, margin_of, parse_prompt

__all__ = ["APART", "real", "varied"]


APART = 0.45
"""RGB distance of the colours of two things of a clip at least."""


_STEEPEST = 0.4  # smallest share of a wandering shape's speed on each axis, lest it stays away for long


_PERIOD = 16.0  # px of the background's textures


def varied(rng: np.random.Generator) -> Scene:
    """Draw a scene whose prompt leaves things open: in equal parts nearly all, about half, or hardly any.

    In 4 of 10 scenes the shapes wander out of the frame and back.

    Args:
        rng: what to draw from.

    Returns:
        The scene.
    """
    known = Scene.random(rng)
    share = float(rng.choice([0.9, 0.5, 0.15]))
    verb = "wander" if rng.random() < 0.4 else "bounce"
    shapes: list[Shape] = []
    for shape in known.shapes:
        shapes.append(_placed(rng, _opened(rng, shape, share, shapes), verb))
    left = frozenset(name for name in ("tones", "texture", "camera") if rng.random() < share)
    return replace(
        known,
        shapes=tuple(shapes),
        verb=verb,
        open=left,
        background="" if "tones" in left else known.background,
        tones=_tones(rng) if "tones" in left else None,
    )


def real(prompt: str, rng: np.random.Generator) -> Scene:
    """Draw a scene of a prompt: places, directions and whatever the prompt leaves open.

    Args:
        prompt: in the grammar of `grammar`.
        rng: what to draw from.

    Returns:
        The scene, whose prompt is the given one.

    Raises:
        ValueError: the prompt is not in the grammar.
    """
    told = parse_prompt(prompt)
    # Told colours first, so that those that are drawn keep away from all of them.
    known = [shape.rgb for shape in told.shapes if "colour" not in shape.open]
    shapes = []
    for shape in told.shapes:
        filled = _filled(rng, shape, known)
        if "colour" in shape.open:
            known.append(filled.rgb)
        shapes.append(_placed(rng, filled, told.verb))
    return replace(
        told,
        shapes=tuple(shapes),
        texture=told.texture or str(rng.choice(TEXTURES)),
        camera=told.camera or str(rng.choice(list(CAMERAS))),
        tones=_tones(rng) if "tones" in told.open else None,
        phase=(float(rng.uniform(0, _PERIOD)), float(rng.uniform(0, _PERIOD))),
    )


def _opened(rng: np.random.Generator, shape: Shape, share: float, before: Sequence[Shape]) -> Shape:
    """The shape with this share of its attributes left open, and those drawn."""
    left = {name for name in ATTRIBUTES if rng.random() < share}
    scale = float(rng.choice([*SIZES.values(), 1.0]))
    if "surface" in left and scale == 1:  # the grammar has no word for the usual size beside an open surface
        left.add("size")
    known = [s.rgb for s in before]
    if any(math.dist(shape.rgb, other) < APART for other in known):
        left.add("colour")
    surface = str(rng.choice(SURFACES))
    return _filled(rng, replace(shape, scale=scale, surface=surface, open=frozenset(left)), known)


def _filled(rng: np.random.Generator, shape: Shape, known: Sequence[Colour]) -> Shape:
    """The shape with what it leaves open drawn; `known` are colours to keep away from."""
    left = shape.open
    return replace(
        shape,
        kind=str(rng.choice(SHAPES)) if "kind" in left else shape.kind,
        scale=float(rng.uniform(0.7, 1.35)) if "size" in left else shape.scale,
        surface=str(rng.choice(SURFACES)) if "surface" in left else shape.surface,
        colour="" if "colour" in left else shape.colour,
        tint=_tint(rng, known) if "colour" in left else None,
    )


def _placed(rng: np.random.Generator, shape: Shape, verb: str) -> Shape:
    """The shape somewhere inside the frame, on its way in some direction."""
    margin, direction = margin_of(shape.scale, "bounce"), float(rng.uniform(0, 2 * math.pi))
    if VERBS[verb]:
        quarter, limit = math.pi / 2, math.acos(_STEEPEST)
        inside = direction % quarter / quarter  # 0..1 between two axes
        direction += (quarter - limit) + inside * (2 * limit - quarter) - direction % quarter
    x, y = (float(v) for v in rng.uniform(margin, SIZE - margin, 2))
    return replace(shape, x=x, y=y, direction=direction)


def _tones(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Two tones of one hue, as muted as those that have a name."""
    hue, saturation = rng.random(), rng.uniform(0, 0.6)
    dark, light = (colorsys.hsv_to_rgb(hue, saturation, rng.uniform(*span)) for span in ((0.14, 0.27), (0.37, 0.45)))
    return dark, light


def _tint(rng: np.random.Generator, others: Sequence[Colour]) -> Colour:
    """A bright colour that is apart from all others."""
    while True:
        tint = colorsys.hsv_to_rgb(rng.random(), 1 - rng.random() ** 2, rng.uniform(0.85, 1.0))
        if all(math.dist(tint, other) >= APART for other in others):
            return tint
