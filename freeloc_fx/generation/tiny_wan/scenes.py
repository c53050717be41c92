"""Procedural clips with known ground truth: what tiny-wan was trained on and is scored against.

A scene is two or three shapes that bounce inside the frame, or wander out of it and back, over a scrolling textured
background, the later ones in front of the earlier ones. Everything a metric needs (centre of each shape in each frame,
its colour, its area, its speed, the background's offset) is a closed formula of the frame index, so that identity,
motion and sharpness of a *generated* clip can be scored exactly against the prompt that asked for it. What a prompt
leaves open (see `grammar`) is drawn once a clip and kept through it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .grammar import describe, read
from .palette import BACKGROUNDS, CAMERAS, COLOURS, SHAPES, SIZE, SPEEDS, TEXTURES, VERBS

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
    "margin_of",
    "parse_prompt",
    "signed_distance",
]


RADIUS = 9.0
"""Radius of a circle in pixels; squares and triangles have the same area, pi * RADIUS**2."""


AREA = math.pi * RADIUS**2


_SQUARE = math.sqrt(AREA) / 2


_TRIANGLE = math.sqrt(AREA * 4 / math.sqrt(3))  # side of an equilateral triangle of that area


_PERIOD = 16.0


_FIGURE = 6.0  # period of a surface's stripes and dots in pixels, at the usual size


_SHADE = 0.72  # brightness of a surface's darker parts: still nearer to the shape's colour than to any background's


_OUTSIDE = 4.0  # px between a wandering shape that is turned back and the frame: it is gone for 50 slow frames at most


Colour = tuple[float, float, float]


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


def _reflect(position: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where something is that moves evenly and is thrown back at both ends."""
    span = high - low
    folded = np.mod(position - low, 2 * span)
    return low + np.where(folded > span, 2 * span - folded, folded)


@dataclass(frozen=True)
class Shape:
    """One moving shape.

    Args:
        kind: one of `SHAPES`; "" only in a prompt that leaves it open.
        colour: one of `COLOURS`; "" where `tint` says it, or a prompt leaves it open.
        x: of the centre in the first frame, in pixels from the left.
        y: of the centre in the first frame, in pixels from the top.
        direction: in which it starts to move, in radians; 0 is to the right, a quarter turn is down.
        scale: its height and width as a factor on the usual ones.
        surface: "plain", "striped" or "dotted"; "" only in a prompt that leaves it open.
        tint: RGB in [0, 1] of a colour that has no name; None for `colour`.
        open: the attributes that the prompt leaves open, of "colour", "kind", "size" and "surface".
    """

    kind: str
    colour: str
    x: float
    y: float
    direction: float
    scale: float = 1.0
    surface: str = "plain"
    tint: Colour | None = None
    open: frozenset[str] = frozenset()

    @property
    def rgb(self) -> Colour:
        """The colour it is drawn in, RGB in [0, 1]; `KeyError` where a prompt leaves it open."""
        return COLOURS[self.colour] if self.tint is None else self.tint

    def cover(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compute how much of each pixel it covers.

        Args:
            x: pixels to the right of the centroid, any shape.
            y: pixels below the centroid, broadcastable with `x`.

        Returns:
            0..1, anti-aliased.
        """
        return _smoothstep(self.scale * signed_distance(self.kind, x / self.scale, y / self.scale))

    def shade(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compute the brightness of its surface, which moves with it.

        Args:
            x: pixels to the right of the centroid, any shape.
            y: pixels below the centroid, broadcastable with `x`.

        Returns:
            Factors on its colour, 1 everywhere where it is plain.
        """
        turn = 2 * math.pi / (_FIGURE * self.scale)
        if self.surface == "striped":
            dark = _smoothstep(np.cos(x * turn) * _FIGURE / 4)
        elif self.surface == "dotted":
            dark = _smoothstep((0.4 - np.cos(x * turn) * np.cos(y * turn)) * _FIGURE / 2)
        else:
            return np.ones(np.broadcast(x, y).shape)
        return 1 - (1 - _SHADE) * dark


@dataclass(frozen=True)
class Scene:
    """A clip's complete description. `render` draws it, `prompt` says it in English, `centres` is the ground truth.

    Args:
        shapes: two or three.
        background: one of `BACKGROUNDS`; "" where `tones` says them, or a prompt leaves them open.
        texture: one of `TEXTURES`; "" only in a prompt that leaves it open.
        camera: one of `CAMERAS`; "" only in a prompt that leaves it open.
        speed: one of `SPEEDS`.
        phase: (x, y) of the texture in the first frame, in pixels.
        verb: "bounce", or "wander" where the walls lie outside the frame.
        tones: (dark, light), RGB in [0, 1], of a background that has no name; None for `background`.
        open: what the prompt leaves open of the background: "tones", "texture", "camera".
    """

    shapes: tuple[Shape, ...]
    background: str
    texture: str
    camera: str
    speed: str
    phase: tuple[float, float] = (0.0, 0.0)
    verb: str = "bounce"
    tones: tuple[Colour, Colour] | None = None
    open: frozenset[str] = frozenset()

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
        """The scene in the grammar that `parse_prompt` reads, without what it leaves open."""
        return describe(self)

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
        margin = np.array([margin_of(s.scale, self.verb) for s in self.shapes])
        return np.stack([_reflect(x, margin, SIZE - margin), _reflect(y, margin, SIZE - margin)], -1)

    def covers(self, frames: int) -> np.ndarray:
        """Compute what each shape covers, as if no other were in front of it.

        Args:
            frames: frames of the clip.

        Returns:
            0..1, float64 (frames, shapes, SIZE, SIZE).
        """
        yy, xx = np.mgrid[0:SIZE, 0:SIZE] + 0.5
        centres = self.centres(frames)[..., None, None]
        pairs = [s.cover(xx - centres[:, i, 0], yy - centres[:, i, 1]) for i, s in enumerate(self.shapes)]
        return np.stack(pairs, 1) if pairs else np.zeros((frames, 0, SIZE, SIZE))

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
        dark, bright = (np.array(c) for c in self.tones or BACKGROUNDS[self.background])
        video = dark + light[..., None] * (bright - dark)
        centres, covers = self.centres(frames), self.covers(frames)
        for index, shape in enumerate(self.shapes):
            cover = covers[:, index, :, :, None]
            colour = np.array(shape.rgb)
            if shape.surface != "plain":
                cx, cy = (centres[:, index, axis][:, None, None] for axis in (0, 1))
                colour = shape.shade(xx[None] - cx, yy[None] - cy)[..., None] * colour
            video = video * (1 - cover) + cover * colour
        return video.astype(np.float32)


def margin_of(scale: float, verb: str) -> float:
    """Compute how far from the frame's edges the walls are that throw a shape's centre back.

    Args:
        scale: of the shape.
        verb: one of `VERBS`.

    Returns:
        Pixels inside the frame, negative outside.
    """
    return -(scale * RADIUS + _OUTSIDE) if VERBS[verb] else scale * RADIUS + 2


def parse_prompt(prompt: str) -> Scene:
    """Read a prompt back into a scene.

    Args:
        prompt: in the grammar of `Scene.prompt`.

    Returns:
        The scene, with zeros for positions, directions and the texture's phase, and "" for attributes that the prompt
        leaves open (a size that it leaves open is the usual one).

    Raises:
        ValueError: the prompt is not in tiny-wan's grammar; the message shows an example.
    """
    words = read(prompt)
    shapes = tuple(Shape(w.kind, w.colour, 0.0, 0.0, 0.0, w.scale, w.surface, None, w.open) for w in words.shapes)
    told = {"tones": words.background, "texture": words.texture, "camera": words.camera}
    left = frozenset(name for name, value in told.items() if not value)
    return Scene(shapes, words.background, words.texture, words.camera, words.speed, verb=words.verb, open=left)
