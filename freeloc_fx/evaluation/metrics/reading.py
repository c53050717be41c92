"""What a clip is expected to show: told by its prompt, or read off the clip itself where the prompt leaves it open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from freeloc_fx.generation.tiny_wan.scenes import BACKGROUNDS, COLOURS, Colour, Scene

__all__ = ["TRAINED", "Expected", "expectation"]


TRAINED = 81
"""Frames of the first trained length, off which open attributes are read."""


_STRIDE = 4  # every such frame is read


_BRIGHT = 0.5  # largest channel of any background tone is 0.45, the smallest of a shape 0.6


_BINS = 12  # bins of a channel in which colours are counted


_NEAR = 0.22  # RGB distance within which pixels belong to one colour when it is looked for


_TOO_NEAR = 0.4  # RGB distance from a thing's colour within which no palette colour is foreign


@dataclass(frozen=True)
class Expected:
    """What is looked for in a clip.

    Args:
        colours: RGB of each of the scene's shapes; NaN where the clip shows fewer colours than shapes are asked for.
        tones: (dark, light) of the background, RGB.
        foreign: RGB of palette colours that no shape has: what shows them was not asked for.
    """

    colours: tuple[Colour, ...]
    tones: tuple[Colour, Colour]
    foreign: tuple[Colour, ...]


def expectation(video: np.ndarray, scene: Scene) -> Expected:
    """Take from the prompt what it tells and from the clip's first trained length what it leaves open.

    Args:
        video: float32 RGB in [0, 1], (frames, height, width, 3).
        scene: what the prompt tells (`scenes.parse_prompt`).

    Returns:
        What is expected of every frame.
    """
    head = video[:TRAINED:_STRIDE].reshape(-1, 3)
    tones = _read_tones(head) if "tones" in scene.open else BACKGROUNDS[scene.background]
    colours: list[Colour | None] = [None if "colour" in s.open else COLOURS[s.colour] for s in scene.shapes]
    if None in colours:
        found = _read_colours(head, tones, [c for c in colours if c is not None], colours.count(None))
        colours = [found.pop(0) if c is None else c for c in colours]
    things = tuple(c for c in colours if c is not None)
    foreign = tuple(c for c in COLOURS.values() if all(math.dist(c, thing) > _TOO_NEAR for thing in things))
    return Expected(things, tones, foreign)


def _read_tones(pixels: np.ndarray) -> tuple[Colour, Colour]:
    """The two means into which the darker pixels fall by brightness."""
    muted = pixels[pixels.max(1) < _BRIGHT]
    if len(muted) < 2:
        return BACKGROUNDS["gray"]
    level = muted.mean(1)
    split = float(level.mean())
    for _ in range(8):
        low, high = level[level <= split], level[level > split]
        if not (len(low) and len(high)):
            break
        split = float((low.mean() + high.mean()) / 2)
    dark, light = (np.median(part if len(part) else muted, 0) for part in (muted[level <= split], muted[level > split]))
    return _colour(dark), _colour(light)


def _read_colours(
    pixels: np.ndarray, tones: tuple[Colour, Colour], known: list[Colour], count: int
) -> list[Colour | None]:
    """The most common colours of the bright pixels, each apart from those before it and from the known ones."""
    middle = np.mean(tones, 0)
    bright = pixels[pixels.max(1) > _BRIGHT + 0.08]
    taken = list(known)
    found: list[Colour | None] = []
    for _ in range(count):
        free = bright
        for colour in taken:
            # Edges mix a colour with the background, and surfaces have darker parts: all lie near this line.
            free = free[_from_line(free, middle, np.array(colour)) > _NEAR]
        if len(free) < len(pixels) * 0.002:
            found.append((math.nan,) * 3)
            continue
        cells = np.clip((free * _BINS).astype(int), 0, _BINS - 1)
        # Of a colour and its mixtures with the background the purest is the brightest.
        weight = np.bincount(np.ravel_multi_index(cells.T, (_BINS,) * 3), free.max(1) ** 4, _BINS**3)
        peak = np.array(np.unravel_index(int(weight.argmax()), (_BINS,) * 3))
        centre = (peak + 0.5) / _BINS
        for _ in range(3):
            near = free[np.linalg.norm(free - centre, axis=1) < _NEAR / 2]
            centre = near.mean(0) if len(near) else centre
        colour = _colour(centre)
        taken.append(colour)
        found.append(colour)
    return found


def _from_line(pixels: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance of each pixel from the line between two colours."""
    line = end - start
    along = np.clip((pixels - start) @ line / max(float(line @ line), 1e-9), 0, 1.1)
    return np.asarray(np.linalg.norm(pixels - start - along[:, None] * line, axis=1))


def _colour(values: np.ndarray) -> Colour:
    r, g, b = (float(v) for v in values)
    return r, g, b
