"""Keyframes and references that stand among words or sound: read next to the clip, and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from answers import distance
from literal import attention, literal
from packed_dit import Packed
from slow import slow
from spelled import in_order

from freeloc_fx import Profile, plans, transform
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.grid import Further

PROFILE = Profile(trained_frames=4, layers="vrpr+tsa")

Piece = tuple[str, int, float]
"""What it is, how many of it, when it begins; a frame is 3x2 tokens, a small one 2x3, a row 1x4, a tall one 4x2."""

SIZES = {"word": (1, 1), "small": (2, 3), "row": (1, 4), "tall": (4, 2), "frame": (3, 2), "clip": (3, 2)}

LAYOUTS: dict[str, list[Piece]] = {
    "before": [("word", 4, 0), ("frame", 1, 4.0), ("word", 5, 4.0), ("clip", 9, 4)],
    "after": [("clip", 9, 0), ("word", 3, 0.5), ("frame", 2, 2.5), ("word", 4, 7.25)],
    "on both sides": [
        ("word", 4, 0), ("small", 1, 9.5), ("word", 3, 4), ("clip", 9, 7),
        ("word", 2, 20), ("frame", 1, 3), ("word", 2, 1),
    ],
    "of the clip's width and another height": [
        ("word", 4, 0), ("tall", 1, 9.5), ("word", 3, 4), ("clip", 9, 7), ("word", 2, 12.25), ("tall", 1, 12.25),
    ],
    "words at its time, next to the clip": [("word", 3, 0), ("word", 1, 9.5), ("tall", 1, 9.5), ("clip", 9, 7)],
    "a short clip of its own just before": [("word", 4, 0), ("frame", 3, 4), ("word", 5, 7), ("clip", 9, 7)],
}  # fmt: skip


def call(pieces: list[Piece], clip: int | None = None) -> tuple[dict[str, Any], tuple[tuple[int, int], ...]]:
    """A call of `Packed`, and its tokens in order: words, frames, clip, frames, words."""
    rows: list[tuple[float, float, float]] = []
    spans: list[tuple[str, int, int]] = []
    for what, count, start in pieces:
        count = clip or count if what == "clip" else count
        first = len(rows)
        for index in range(count):
            height, width = SIZES[what]
            rows += [(start + index, float(y), float(x)) for y in range(height) for x in range(width)]
        spans.append((what, first, len(rows)))
    place = [what for what, _, _ in spans].index("clip")
    early, late = spans[:place], spans[place + 1 :]
    order = [s for s in early if s[0] == "word"] + [s for s in early if s[0] != "word"] + [spans[place]]
    order += [s for s in late if s[0] != "word"] + [s for s in late if s[0] == "word"]
    tokens = torch.randn(1, len(rows), 4, generator=torch.Generator().manual_seed(4))
    given = {"hidden_states": tokens, "position_ids": torch.tensor(rows, dtype=torch.float64)}
    return given, tuple((first, stop) for _, first, stop in order)


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)
    return result


@pytest.mark.parametrize(("name", "lowering"), [
    ("before", "tiles"), ("on both sides", "reference"), ("after", "flex"), slow("on both sides", "tiles"),
    ("of the clip's width and another height", "tiles"), ("words at its time, next to the clip", "reference"),
    slow("of the clip's width and another height", "flex"), slow("before", "calls"), slow("before", "flex"),
    slow("a short clip of its own just before", "tiles"),
])  # fmt: skip
def test_frames_among_words(name: str, lowering: str) -> None:
    """They count as frames at their own times, no pair is lost, and within the trained length nothing changes."""
    model, (given, order) = Packed((4, 4, 4)), call(LAYOUTS[name])
    changed = transform(model, PROFILE, backend="eager", attention=lowering, verify=True)
    found = run(changed, given)
    (made,) = plans(changed)
    clip = next(i for i, piece in enumerate(LAYOUTS[name]) if piece[0] == "clip")
    start = LAYOUTS[name][clip][2]
    sides = []
    for some in (LAYOUTS[name][:clip], LAYOUTS[name][clip + 1 :]):
        sides.append([
            Further(when - start + index, *SIZES[what])
            for what, count, when in some if what != "word" for index in range(count)
        ])  # fmt: skip
    assert (list(made.grid.before), list(made.grid.after)) == tuple(sides)
    assert (made.grid.frames, made.grid.height, made.grid.width, made.rewritten) == (9, 3, 2, 2)
    with attention(in_order(literal(made, F.scaled_dot_product_attention), order)):
        expected = run(model, given)
    assert distance(found, expected) <= 1e-4
    assert distance(run(model, given), expected) > 1e-3

    short, _ = call(LAYOUTS[name], clip=4)
    assert torch.equal(run(changed, short), run(model, short))
    assert plans(changed)[-1].rewritten == 0


@pytest.mark.parametrize(("how", "off"), [("grouped", ()), ("plain", ("arrange_frames",))])
def test_what_cannot_be_put_in_order_is_refused_as_that(how: str, off: tuple[str, ...]) -> None:
    given, _ = call(LAYOUTS["before"])
    changed = transform(Packed((4, 4, 4), how=how), PROFILE, backend="eager", disable_passes=off)
    with pytest.raises(CaptureError, match="its frames stand among words or sound: expected them next to the clip"):
        run(changed, given)


@pytest.mark.parametrize("way", [1, -1])
def test_words_that_stand_elsewhere_in_the_next_call(way: int) -> None:
    """Shapes, frames and their times are the same; which tokens are the frames' is not."""
    other: list[Piece] = [("word", 2, 0), ("frame", 1, 4.0), ("word", 7, 2.0), ("clip", 9, 4)]
    model, changed_words = Packed((4, 4, 4)), [LAYOUTS["before"], other][::way]
    changed = transform(model, PROFILE, backend="eager", attention="tiles")
    for pieces in changed_words:
        given, order = call(pieces)
        found = run(changed, given)
        with attention(in_order(literal(plans(changed)[-1], F.scaled_dot_product_attention), order)):
            expected = run(model, given)
        assert distance(found, expected) <= 1e-5


@pytest.mark.parametrize("place", ["before", "after", "among"])
def test_a_single_row_beside_a_clip_of_more_may_be_words(place: str) -> None:
    """Text that is numbered along an axis of space lies as a picture of one row does."""
    row: Piece = ("row", 1, 9.5)
    layouts: dict[str, list[Piece]] = {
        "before": [("word", 4, 0), row, ("clip", 9, 7)],
        "after": [("clip", 9, 7), row, ("word", 4, 0)],
        "among": [("word", 4, 0), row, ("word", 3, 4), ("clip", 9, 7)],
    }
    given, _ = call(layouts[place])
    changed = transform(Packed((4, 4, 4)), PROFILE, backend="eager", attention="reference")
    with pytest.raises(CaptureError, match="a single row beside a clip of more"):
        run(changed, given)
