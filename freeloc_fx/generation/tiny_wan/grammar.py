"""The grammar of prompts: a scene in English, and back.

"a red circle and a white square bounce slowly over a navy grid, the camera pans left" tells everything. A prompt may
leave open what a sampler then has to make up and keep:

- "shape" in place of a kind, and no colour, leave those two open: "a shape", "a red shape", "a circle";
- "some" in place of "a" leaves size and surface open where no word tells them: "some large circle" has any surface.
  After "a" they are the usual size and plain, as in prompts that know no other;
- "two shapes" and "three shapes" are that many of "some shape";
- "a floor", "a striped floor" and "a navy floor" leave both, the tones and the texture of the background open;
- a prompt that ends there, without a camera, leaves the camera open.

Shapes "bounce" inside the frame, or "wander" out of it and back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .palette import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    COUNTS,
    FLOORS,
    SHAPES,
    SIZES,
    SPEEDS,
    SURFACES,
    TEXTURES,
    VERBS,
)

if TYPE_CHECKING:
    from .scenes import Scene, Shape

__all__ = ["ShapeWords", "Words", "describe", "read"]


_EXAMPLE = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"


@dataclass(frozen=True)
class ShapeWords:
    """What a prompt tells of one shape.

    Args:
        kind: one of `SHAPES`, "" where it is left open.
        colour: one of `COLOURS`, "" where it is left open.
        scale: factor on the usual size; 1 where it is left open.
        surface: one of `SURFACES`, "" where it is left open.
        open: the attributes that are left open, of `ATTRIBUTES`.
    """

    kind: str
    colour: str
    scale: float
    surface: str
    open: frozenset[str]


@dataclass(frozen=True)
class Words:
    """What a prompt tells of a scene.

    Args:
        shapes: what it tells of each.
        verb: one of `VERBS`.
        speed: one of `SPEEDS`.
        background: one of `BACKGROUNDS`, "" where the tones are left open.
        texture: one of `TEXTURES`, "" where it is left open.
        camera: one of `CAMERAS`, "" where it is left open.
    """

    shapes: tuple[ShapeWords, ...]
    verb: str
    speed: str
    background: str
    texture: str
    camera: str


def describe(scene: Scene) -> str:
    """Say a scene in the grammar that `read` reads.

    Args:
        scene: what to say; what it leaves open is not told.

    Returns:
        The prompt.
    """
    told = [_shape(shape) for shape in scene.shapes]
    counts = {number: word for word, number in COUNTS.items()}
    if len(told) in counts and set(told) == {"some shape"}:
        subject = f"{counts[len(told)]} shapes"
    else:
        subject = " and ".join(told) if len(told) < 3 else ", ".join(told[:-1]) + " and " + told[-1]
    tones = "" if "tones" in scene.open else scene.background
    texture = "" if "texture" in scene.open else scene.texture
    if not texture:
        floor = f"{tones} floor".strip()
    elif tones:
        floor = f"{tones} {texture}"
    else:
        floor = next(word for word, known in FLOORS.items() if known == texture) + " floor"
    camera = "" if "camera" in scene.open else f", the camera {scene.camera}"
    return f"{subject} {scene.verb} {scene.speed} over a {floor}{camera}"


def _shape(shape: Shape) -> str:
    words = ["some" if {"size", "surface"} & shape.open else "a"]
    if "size" not in shape.open and shape.scale != 1:
        words.append(min(SIZES, key=lambda word: abs(SIZES[word] - shape.scale)))
    # After "some" a surface that is told needs its word even where it is plain; so does no size but the usual, which
    # has none: what draws scenes leaves the size open where it leaves the surface open.
    if "surface" not in shape.open and (shape.surface != "plain" or words[0] == "some"):
        words.append(shape.surface)
    if "colour" not in shape.open:
        words.append(shape.colour)
    words.append("shape" if "kind" in shape.open else shape.kind)
    return " ".join(words)


def read(prompt: str) -> Words:
    """Read what a prompt tells.

    Args:
        prompt: in the grammar of the module's docstring; case and a full stop at the end do not matter.

    Returns:
        What it tells.

    Raises:
        ValueError: the prompt is not in the grammar; the message shows an example.
    """
    verbs = "|".join(VERBS)
    pattern = (
        rf"(?P<subject>.+?) (?P<verb>{verbs}) (?P<speed>\w+) over an? (?P<floor>[\w ]+)(, the camera (?P<camera>.+))?"
    )
    found = re.fullmatch(pattern, prompt.strip().rstrip(".").lower())
    if found is None:
        raise ValueError(f"prompt {prompt!r} is not in tiny-wan's grammar; an example: {_EXAMPLE!r}")
    shapes = _read_shapes(found["subject"], prompt)
    background, texture = _read_floor(found["floor"], prompt)
    speed, camera = found["speed"], found["camera"] or ""
    for value, known in ((speed, SPEEDS), (camera or "is still", CAMERAS)):
        if value not in known:
            raise ValueError(f"{value!r} in prompt {prompt!r}: expected one of {', '.join(known)}")
    return Words(shapes, found["verb"], speed, background, texture, camera)


def _read_shapes(subject: str, prompt: str) -> tuple[ShapeWords, ...]:
    counted = re.fullmatch(rf"({'|'.join(COUNTS)}) shapes", subject)
    if counted:
        return (_read_shape("some shape", prompt),) * COUNTS[counted[1]]
    return tuple(_read_shape(part, prompt) for part in re.split(r",\s*|\s+and\s+", subject))


def _read_shape(part: str, prompt: str) -> ShapeWords:
    size, surface, colour = ("|".join(words) for words in (SIZES, SURFACES, COLOURS))
    pattern = (
        rf"(?P<article>an?|some)( (?P<size>{size}))?( (?P<surface>{surface}))?( (?P<colour>{colour}))? "
        rf"(?P<kind>{'|'.join(SHAPES)}|shape)"
    )
    found = re.fullmatch(pattern, part)
    if found is None:
        raise ValueError(
            f"{part!r} in prompt {prompt!r}: expected 'a COLOUR SHAPE' with COLOUR one of {', '.join(COLOURS)} "
            f"and SHAPE one of {', '.join(SHAPES)}, or 'shape'; before the colour may stand one of {', '.join(SIZES)} "
            f"and one of {', '.join(SURFACES)}"
        )
    kind = "" if found["kind"] == "shape" else found["kind"]
    some = found["article"] == "some"
    left = {
        "colour": found["colour"] is None,
        "kind": not kind,
        "size": some and found["size"] is None,
        "surface": some and found["surface"] is None,
    }
    return ShapeWords(
        kind,
        found["colour"] or "",
        SIZES.get(found["size"] or "", 1.0),
        "" if left["surface"] else found["surface"] or "plain",
        frozenset(name for name, is_open in left.items() if is_open),
    )


def _read_floor(floor: str, prompt: str) -> tuple[str, str]:
    """Background and texture, "" for what is left open."""
    words = floor.split()
    if words[-1] == "floor":
        tones, texture = "", ""
        for word in words[:-1]:
            if word in FLOORS and not texture:
                texture = FLOORS[word]
            elif word in BACKGROUNDS and not tones and not texture:
                tones = word
            else:
                known = ", ".join([*BACKGROUNDS, *FLOORS])
                raise ValueError(f"{word!r} in prompt {prompt!r}: expected one of {known} before 'floor', each once")
        return tones, texture
    if len(words) != 2:
        raise ValueError(
            f"{floor!r} in prompt {prompt!r}: expected 'BACKGROUND TEXTURE' with BACKGROUND one of "
            f"{', '.join(BACKGROUNDS)} and TEXTURE one of {', '.join(TEXTURES)}, or a 'floor'"
        )
    for value, known_words in ((words[0], tuple(BACKGROUNDS)), (words[1], TEXTURES)):
        if value not in known_words:
            raise ValueError(f"{value!r} in prompt {prompt!r}: expected one of {', '.join(known_words)}")
    return words[0], words[1]
