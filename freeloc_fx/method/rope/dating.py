"""When the frames beside a clip are, and whether the clip itself is evenly spaced.

A time is counted in frames of the evenly spaced stretch, or, where a clip goes on unevenly beyond it (MiniMax-H3 has
steps of 1, 4, 4, 4, 4), in frames of the clip on average.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from freeloc_fx.errors import MatchFailure
from freeloc_fx.method.grid import Further, RopeLayout, TokenGrid

from .beside import NO_CLIP, Piece, Stretch, holds_frames, is_known
from .measure import Rotations
from .times import time_of

__all__ = ["dated", "more_than_a_clip"]


def dated(
    rotations: Rotations,
    layout: RopeLayout,
    found: Stretch,
    tolerance: float,
    known: tuple[int, int] | None = None,
    together: tuple[int, int] | None = None,
) -> tuple[RopeLayout, TokenGrid] | MatchFailure:
    """Find when the frames beside a clip are.

    Args:
        rotations: what RoPE does at each token.
        layout: how the clip's frames turn, with their true rates where these are known.
        found: where everything stands.
        tolerance: largest accepted deviation from a rotation, as in `measure`.
        known: frames of the clip and tokens of each, where the call says. Where it says something else or nothing, the
            clip has to hold more tokens than all other frames.
        together: the first and the one after the last of the tokens that may be the clip's; None for all. What has
            words between itself and the clip is no part of it, wherever it is read.

    Returns:
        The layout by latent frame and the grid of the whole sequence. A frame right before the evenly spaced ones and
        less than a frame earlier is the clip's first, as a causal encoder makes it; two and more frames that go on
        where the evenly spaced ones begin or end are the clip's, whose spacing is then uneven. Or a reason.
    """
    grid, pieces = found.grid, (*found.before, *found.after)
    span = grid.frames + len(pieces)
    places = [grid.text_first, *(piece.first for piece in pieces)]
    turn = _turned(rotations, layout, np.array(places))
    when = []
    for piece, one in zip(pieces, turn[1:], strict=True):
        time = time_of(one, layout, span, max(4 * tolerance, 2e-2))
        if time is None:
            rates = "RoPE's rates are known" + ("" if layout.whole_turns else " up to whole turns only")
            return MatchFailure(
                f"tokens {piece.first} to {piece.first + piece.tokens - 1} are {piece.height}x{piece.width} beside the "
                f"clip's {grid.frames} frames of {grid.height}x{grid.width}, but are turned as no frame at any time "
                f"from {-2 * span} to {3 * span} is: {rates}"
            )
        when.append(time)
    early, late = when[: len(found.before)], when[len(found.before) :]
    before = list(found.before)
    own = early[-1] if before and before[-1].tokens == grid.tokens else 0.0
    start, stop = together or (0, rotations.phase.shape[1])
    first = -1.0 < own < 0.0 and before[-1].first >= start  # of a causal encoder: a part of a frame before the others
    if first:
        before.pop()
        early.pop()

    def further(piece: Piece, time: float) -> Further:
        return Further(time + first, piece.height, piece.width)

    whole = TokenGrid(
        grid.frames + first,
        grid.height,
        grid.width,
        found.text_first,
        found.text_last,
        tuple(map(further, before, early)),
        tuple(map(further, found.after, late)),
        found.turned,
    )
    near = sum(piece.first >= start for piece in before), sum(piece.first < stop for piece in found.after)
    goes_on = _goes_on(whole.before[::-1][: near[0]], whole, -1), _goes_on(whole.after[: near[1]], whole, 1)
    if any(goes_on):
        if not layout.whole_turns:
            return MatchFailure(
                f"a clip of {grid.height}x{grid.width} tokens a frame is spaced unevenly, {grid.frames} frames of it "
                "evenly: expected positions that tell RoPE's rates, found rates known up to whole turns only"
            )
        layout, whole = _uneven(layout, whole, own + 1 if first else 0.0, *goes_on)
    elif first:  # what is at the time of the clip's first frame stands at 0 as that does
        early_frames, late_frames = (
            tuple(replace(frame, time=0.0) if frame.time == own + 1 else frame for frame in some)
            for some in (whole.before, whole.after)
        )
        whole = replace(whole, before=early_frames, after=late_frames)
    # Rows of tokens would look like frames where RoPE knows no time.
    sure = is_known(grid.tokens, grid.frames, known) or whole.video < 2 * whole.clip
    return (layout, whole) if sure else NO_CLIP


def _goes_on(beside: tuple[Further, ...], grid: TokenGrid, sign: int) -> int:
    """How many frames right before (sign -1) or after (1) a clip go on where it ends; `beside` from there outwards.

    0 where there is but one: it may be a keyframe at the last pixel frame, which lies within the last latent frame.
    """
    same, last, found = (grid.height, grid.width), float(grid.frames - 1 if sign > 0 else 0), 0
    for frame in beside:
        if (frame.height, frame.width) != same or not 0 < sign * (frame.time - last) < 2:
            break
        last, found = frame.time, found + 1
    return found if found > 1 else 0


def _uneven(layout: RopeLayout, grid: TokenGrid, start: float, early: int, late: int) -> tuple[RopeLayout, TokenGrid]:
    """Take the frames that go on, `early` before and `late` after, into a clip that begins at `start`. A latent
    frame is then the mean step.
    """
    split = len(grid.before) - early
    inside = [f.time for f in grid.before[split:]] + [start, *map(float, range(1, grid.frames))]
    inside += [f.time for f in grid.after[:late]]
    scale = (len(inside) - 1) / (inside[-1] - inside[0])

    def scaled(time: float) -> float:
        return round((time - inside[0]) * scale * 64) / 64

    def moved(frames: tuple[Further, ...]) -> tuple[Further, ...]:
        return tuple(replace(frame, time=scaled(frame.time)) for frame in frames)

    omega = tuple(tuple(w / scale for w in row) for row in layout.omega)
    whole = replace(
        grid,
        frames=len(inside),
        before=moved(grid.before[:split]),
        after=moved(grid.after[late:]),
        uneven=tuple(map(scaled, inside)),
    )
    return replace(layout, omega=omega), whole


def more_than_a_clip(
    rotations: Rotations, layout: RopeLayout, grid: TokenGrid, tolerance: float, known: tuple[int, int] | None = None
) -> bool:
    """Tell whether what looks like one clip is a clip with frames beside it.

    Args:
        rotations: what RoPE does at each token.
        layout: how the clip's frames turn.
        grid: the clip's.
        tolerance: largest accepted deviation from a rotation, as in `measure`.
        known: frames of the clip and tokens of each, where the call says.

    Returns:
        Whether it is: its frames hold frames, or the first is at a time of its own, as far as rates tell: after the
        second, or more than a frame before it; where they do not tell, the call says that it has other frames.
    """
    two = rotations.phase[0, grid.text_first : grid.text_first + 2 * grid.tokens]
    if holds_frames(two, grid.tokens, max(2 * tolerance, 4e-5)):
        return True
    if grid.frames < 3 or not layout.whole_turns:
        return False
    turn = _turned(rotations, layout, grid.text_first + np.array([1, 0]) * grid.tokens)
    time = time_of(turn[1], layout, grid.frames, max(4 * tolerance, 2e-2))
    if time is None:
        return known is not None and not is_known(grid.tokens, grid.frames, known)
    return not -1.0 <= time < 0.0


def _turned(rotations: Rotations, layout: RopeLayout, places: np.ndarray) -> np.ndarray:
    """By how much tokens are turned beyond the first of them, complex (tokens, heads, temporal pairs)."""
    order = np.argsort(places, kind="stable")
    at = places[order]
    phase = rotations.phase[:, at] if rotations.others is None else rotations.others(at)
    own = [rotations.first.tolist().index(c) for c in layout.first]
    phase = np.asarray(phase)[:, np.argsort(order)][:, :, own]
    turn: np.ndarray = (phase * phase[:, :1].conj()).swapaxes(0, 1)
    return turn
