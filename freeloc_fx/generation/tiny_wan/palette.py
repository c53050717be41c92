"""What scenes are made of: the words of the prompt grammar, with the colours, speeds and sizes that they stand for."""

from __future__ import annotations

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "CAMERAS",
    "COLOURS",
    "COUNTS",
    "FLOORS",
    "SHAPES",
    "SIZE",
    "SIZES",
    "SPEEDS",
    "SURFACES",
    "TEXTURES",
    "VERBS",
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


ATTRIBUTES = ("colour", "kind", "size", "surface")
"""What a prompt may tell of a shape, or leave open."""


SIZES: dict[str, float] = {"small": 0.75, "large": 1.3}
"""Words for a shape's size, as factors on its height and width; the usual size, 1, has no word."""


SURFACES = ("plain", "striped", "dotted")


FLOORS: dict[str, str] = {"gridded": "grid", "striped": "stripes", "checkered": "checkers"}
"""What a background is called whose texture is told and whose tones are not: "a striped floor"."""


VERBS: dict[str, bool] = {"bounce": False, "wander": True}
"""How shapes move, and whether the walls that throw them back lie outside the frame, so that they leave it."""


COUNTS: dict[str, int] = {"two": 2, "three": 3}
"""Words for the number of shapes of which the prompt tells nothing else: "two shapes"."""
