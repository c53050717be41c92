"""Procedural clips with known ground truth: what tiny-wan was trained on and is scored against.

A scene is two or three coloured shapes that bounce inside the frame over a scrolling textured background. Everything a
metric needs (centre of each shape in each frame, its colour, its area, its speed, the background's offset) is a closed
formula of the frame index, so that identity, motion and sharpness of a *generated* clip can be scored exactly against
the prompt that asked for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = [
    "BACKGROUNDS",
    "CAMERAS",
    "COLOURS",
    "SHAPES",
    "SIZE",
    "SPEEDS",
    "TEXTURES",
    "Scene",
    "Shape",
    "parse_prompt",
]


SIZE = 64
"""Height and width of a clip in pixels."""


COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.93, 0.16, 0.16),
    "green": (0.15, 0.85, 0.25),
    "blue": (0.20, 0.35, 0.98),
    "yellow": (0.97, 0.90, 0.15),
    "purple": (0.80, 0.20, 0.90),
    "white": (0.97, 0.97, 0.97),
}
"""Shape colours: saturated (or white), so that they stay separable from every background tone."""


BACKGROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "gray": ((0.22, 0.22, 0.22), (0.40, 0.40, 0.40)),
    "brown": ((0.25, 0.17, 0.12), (0.43, 0.32, 0.23)),
    "teal": ((0.08, 0.24, 0.26), (0.18, 0.42, 0.44)),
    "navy": ((0.10, 0.12, 0.26), (0.22, 0.26, 0.44)),
}
"""Background tones (dark, light): muted, at most 0.44 in any channel."""


SHAPES = ("circle", "square", "triangle")


TEXTURES = ("grid", "stripes", "checkers")


SPEEDS: dict[str, float] = {"slowly": 0.4, "quickly": 1.2}
"""Speed of every shape in pixels per frame."""


CAMERAS: dict[str, tuple[float, float]] = {
    "is still": (0.0, 0.0),
    "pans left": (-0.5, 0.0),
    "pans right": (0.5, 0.0),
    "pans up": (0.0, -0.5),
    "pans down": (0.0, 0.5),
}
"""Velocity of the camera in pixels per frame (x, y); the background moves the other way."""


RADIUS = 9.0
"""Radius of a circle in pixels; squares and triangles have the same area, pi * RADIUS**2."""


AREA = math.pi * RADIUS**2


_SQUARE = math.sqrt(AREA) / 2


_TRIANGLE = math.sqrt(AREA * 4 / math.sqrt(3))  # side of an equilateral triangle of that area


_PERIOD = 16.0


def _smoothstep(distance: np.ndarray) -> np.ndarray:
    """Coverage of a pixel whose centre is `distance` pixels outside an edge (negative: inside)."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def signed_distance(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance from the outline of a shape whose centroid is the origin.

    Args:
        kind: one of `SHAPES`.
        x: pixels to the right of the centroid, any shape.
        y: pixels below the centroid, broadcastable with `x`.

    Returns:
        Distances in pixels, negative inside the shape.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "circle":
        return np.hypot(x, y) - RADIUS
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - _SQUARE
    if kind == "triangle":
        inradius = _TRIANGLE / (2 * math.sqrt(3))
        slant = np.abs(x) * (math.sqrt(3) / 2) - y * 0.5 - inradius
        return np.maximum(slant, y - inradius)
    raise ValueError(f"unknown shape {kind!r}; expected one of {', '.join(SHAPES)}")


def _reflect(position: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where something is that moves evenly and is thrown back at both ends."""
    span = high - low
    folded = np.mod(position - low, 2 * span)
    return low + np.where(folded > span, 2 * span - folded, folded)


@dataclass(frozen=True)
class Shape:
    """One moving shape.

    Args:
        kind: one of `SHAPES`.
        colour: one of `COLOURS`.
        x: of the centre in the first frame, in pixels from the left.
        y: of the centre in the first frame, in pixels from the top.
        direction: in which it starts to move, in radians; 0 is to the right, a quarter turn is down.
    """

    kind: str
    colour: str
    x: float
    y: float
    direction: float


@dataclass(frozen=True)
class Scene:
    """A clip's complete description. `render` draws it, `prompt` says it in English, `centres` is the ground truth.

    Args:
        shapes: two or three.
        background: one of `BACKGROUNDS`.
        texture: one of `TEXTURES`.
        camera: one of `CAMERAS`.
        speed: one of `SPEEDS`.
        phase: (x, y) of the texture in the first frame, in pixels.
    """

    shapes: tuple[Shape, ...]
    background: str
    texture: str
    camera: str
    speed: str
    phase: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def random(cls, rng: np.random.Generator) -> Scene:
        """Draw a scene: two shapes, or three in 3 of 10 cases, all of different colours.

        Args:
            rng: what to draw from.

        Returns:
            The scene.
        """
        count = 2 if rng.random() < 0.7 else 3
        colours = rng.permutation(list(COLOURS))[:count]
        low, high = RADIUS + 2, SIZE - RADIUS - 2
        return cls(
            shapes=tuple(
                Shape(
                    kind=str(rng.choice(SHAPES)),
                    colour=str(colour),
                    x=float(rng.uniform(low, high)),
                    y=float(rng.uniform(low, high)),
                    direction=float(rng.uniform(0, 2 * math.pi)),
                )
                for colour in colours
            ),
            background=str(rng.choice(list(BACKGROUNDS))),
            texture=str(rng.choice(TEXTURES)),
            camera=str(rng.choice(list(CAMERAS))),
            speed=str(rng.choice(list(SPEEDS))),
            phase=(float(rng.uniform(0, _PERIOD)), float(rng.uniform(0, _PERIOD))),
        )

    @property
    def prompt(self) -> str:
        """The scene in the grammar that `parse_prompt` reads."""
        names = [f"a {s.colour} {s.kind}" for s in self.shapes]
        subject = " and ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + " and " + names[-1]
        return f"{subject} bounce {self.speed} over a {self.background} {self.texture}, the camera {self.camera}"

    def centres(self, frames: int) -> np.ndarray:
        """Compute where the shapes are.

        Args:
            frames: frames of the clip.

        Returns:
            Centroids in pixels, float64 (frames, shapes, 2), the last axis being (x, y).
        """
        t = np.arange(frames)[:, None]
        v = SPEEDS[self.speed]
        angle = np.array([s.direction for s in self.shapes])
        x = np.array([s.x for s in self.shapes]) + t * v * np.cos(angle)
        y = np.array([s.y for s in self.shapes]) + t * v * np.sin(angle)
        low, high = RADIUS + 2, SIZE - RADIUS - 2
        return np.stack([_reflect(x, low, high), _reflect(y, low, high)], -1)

    def render(self, frames: int) -> np.ndarray:
        """Draw the clip, anti-aliased.

        Args:
            frames: frames of the clip.

        Returns:
            float32 RGB in [0, 1], (frames, SIZE, SIZE, 3).
        """
        yy, xx = np.mgrid[0:SIZE, 0:SIZE] + 0.5
        t = np.arange(frames)[:, None, None]
        vx, vy = CAMERAS[self.camera]
        bx = xx[None] + self.phase[0] + vx * t
        by = yy[None] + self.phase[1] + vy * t

        def bars(u: np.ndarray, width: float) -> np.ndarray:
            return _smoothstep(np.abs(np.mod(u, _PERIOD) - _PERIOD / 2) - width / 2)

        if self.texture == "grid":
            light = np.maximum(bars(bx, 3.0), bars(by, 3.0))
        elif self.texture == "stripes":
            light = bars(bx * 0.75 + by * 0.75, 8.0)
        else:
            a, b = bars(bx, 8.0), bars(by, 8.0)
            light = a * (1 - b) + b * (1 - a)
        dark, bright = (np.array(c) for c in BACKGROUNDS[self.background])
        video = dark + light[..., None] * (bright - dark)
        centres = self.centres(frames)
        for index, shape in enumerate(self.shapes):
            cx = centres[:, index, 0][:, None, None]
            cy = centres[:, index, 1][:, None, None]
            cover = _smoothstep(signed_distance(shape.kind, xx[None] - cx, yy[None] - cy))[..., None]
            video = video * (1 - cover) + cover * np.array(COLOURS[shape.colour])
        return video.astype(np.float32)


def parse_prompt(prompt: str) -> Scene:
    """Read a prompt back into a scene.

    Args:
        prompt: in the grammar of `Scene.prompt`.

    Returns:
        The scene, with zeros for what the prompt does not tell: positions, directions and the texture's phase.

    Raises:
        ValueError: the prompt is not in tiny-wan's grammar; the message shows an example.
    """
    import re

    words = r"(?P<subject>.+?) bounce (?P<speed>\w+) over an? (?P<bg>\w+) (?P<texture>\w+), the camera (?P<camera>.+)"
    found = re.fullmatch(words, prompt.strip().rstrip(".").lower())
    example = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
    if found is None:
        raise ValueError(f"prompt {prompt!r} is not in tiny-wan's grammar; an example: {example!r}")
    shapes = []
    for part in re.split(r",\s*|\s+and\s+", found["subject"]):
        words_ = part.split()
        if len(words_) != 3 or words_[1] not in COLOURS or words_[2] not in SHAPES:
            raise ValueError(
                f"{part!r} in prompt {prompt!r}: expected 'a COLOUR SHAPE' with COLOUR one of {', '.join(COLOURS)} "
                f"and SHAPE one of {', '.join(SHAPES)}"
            )
        shapes.append(Shape(words_[2], words_[1], 0.0, 0.0, 0.0))
    for value, known in (
        (found["speed"], SPEEDS),
        (found["bg"], BACKGROUNDS),
        (found["texture"], TEXTURES),
        (found["camera"], CAMERAS),
    ):
        if value not in known:
            raise ValueError(f"{value!r} in prompt {prompt!r}: expected one of {', '.join(known)}")
    return Scene(tuple(shapes), found["bg"], found["texture"], found["camera"], found["speed"])
