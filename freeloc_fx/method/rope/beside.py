"""Find a clip among further frames: keyframes, references, a first image that stand beside it at times of their own.

    token 0      24     28          52                  148      172
          text   |key-  |key-frame  |clip                |text
                 |frame |           |F frames, steady    |

The clip is the longest stretch in which every token is turned beyond the one a frame before it by the same angles. What
touches it is read from there outwards. A frame of the clip's size has the clip's turns but for one common turn in time,
one of another size is a run of tokens that are all turned alike in time, tokens that are not turned at all are text.
When a frame is follows from its turn in time, see `dating`. Anything else is refused by where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freeloc_fx.errors import MatchFailure
from freeloc_fx.method.grid import RopeLayout, TokenGrid

from .measure import STILL, Rotations
from .pictures import Rasters
from .temporal import grid_of, layout_of

__all__ = ["NO_CLIP", "Piece", "Stretch", "holds_frames", "is_known", "longest", "stretch_of"]


NO_CLIP = MatchFailure(
    "no channel pair turns steadily with the frame: the model has no temporal RoPE on this site, or its tokens are no "
    "clip of evenly spaced frames with fewer others beside it, as where tokens are shared out over processes"
)


@dataclass(frozen=True)
class Piece:
    """Tokens beside a clip that are one frame.

    Args:
        first: its first token.
        tokens: how many it has.
        height: rows of them.
        width: columns of them.
    """

    first: int
    tokens: int
    height: int
    width: int


@dataclass(frozen=True)
class Stretch:
    """A clip and what stands beside it.

    Args:
        grid: the evenly spaced frames of the clip alone; what stands before and after them counts as text.
        before: frames before those, in the order of the sequence; the last may be the clip's first.
        after: frames after those.
        text_first: tokens before them all that are no frames.
        text_last: tokens after them all that are no frames.
        turned: those of the text that are turned all the same: words or sound, in time alone.
    """

    grid: TokenGrid
    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    text_first: int
    text_last: int
    turned: int = 0


def stretch_of(
    rotations: Rotations,
    head_dim: int,
    tolerance: float,
    known: tuple[int, int] | None = None,
    within: tuple[int, int] | None = None,
) -> tuple[RopeLayout, Stretch] | MatchFailure:
    """Find the clip in a sequence that holds more than one, and the frames beside it.

    Args:
        rotations: what RoPE does at each token.
        head_dim: channels of a head.
        tolerance: largest accepted deviation from a rotation, as in `measure`.
        known: frames of the clip and tokens of each, where the call says, which decides which of equal stretches is the
            clip.
        within: the first and the one after the last of the tokens that may be the clip's; None for all.

    Returns:
        How the clip's frames turn, with rates up to whole turns, and where everything stands; or a reason.
    """
    whole = rotations.phase[0]
    start, stop = within or (0, len(whole))
    for limit in (max(2 * tolerance, 4e-5), max(4 * tolerance, 2e-2)):
        found = longest(whole[start:stop], limit, known)
        if found is None:
            continue
        first, per_frame, count = found
        first += start
        last = len(whole) - first - per_frame * count
        grid = grid_of(whole[first : len(whole) - last], per_frame, limit, first, last)
        read = layout_of(rotations, head_dim, grid, max(4 * tolerance, 2e-2), False)
        if isinstance(read, MatchFailure):
            return read
        outwards = _outwards(rotations, read[0], grid, limit)
        return outwards if isinstance(outwards, MatchFailure) else (read[0], outwards)
    return NO_CLIP


def _kinds(rows: np.ndarray, limit: float, most: int) -> list[np.ndarray]:
    """Indices of rows that are alike, kind by kind in the order in which they come up, at most so many kinds."""
    found: list[np.ndarray] = []
    left = np.arange(len(rows))
    while len(left) and len(found) < most:
        alike = np.abs(rows[left] - rows[left[0]]).max(1) <= limit
        found.append(left[alike])
        left = left[~alike]
    return found


_PAIRS = 16
"""Channel pairs that the search for a frame's length looks at."""


def is_known(n: int, count: int, known: tuple[int, int] | None) -> bool:
    """Tell whether so many frames of n tokens are the call's; a causal encoder's first is not among steady ones.

    Args:
        n: tokens of a frame.
        count: evenly spaced frames.
        known: the call's frames and tokens of each; None where it does not say.
    """
    return known is not None and n == known[1] and known[0] in (count, count + 1)


def longest(whole: np.ndarray, limit: float, known: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """Find the longest steady stretch; of equal ones the call's, or the first.

    Args:
        whole: what RoPE does at each token, complex (tokens, pairs).
        limit: up to which two rotations are alike.
        known: as of `stretch_of`.

    Returns:
        Its first token, tokens of a frame, frames; None where nothing is steady.
    """
    spread = np.abs(whole - whole.mean(0)).mean(0)
    some = whole[:, np.sort(np.argsort(-spread)[:_PAIRS])]
    # Ends of frames are jumps of one kind, and a frame apart.
    gaps: set[int] = set()
    for kind in _kinds(some[1:] * some[:-1].conj(), 2 * limit, 24):
        sizes, counts = np.unique(np.diff(kind), return_counts=True)
        gaps.update(sizes[np.argsort(-counts)[:3]].tolist())
    best: tuple[int, int, int, int, int] | None = None
    for n in sorted(gap for gap in gaps if 2 * gap <= len(whole)):
        for first, length in _steady_runs(whole, n, limit):
            if holds_frames(whole[first : first + 2 * n], n, limit):
                continue
            count = length // n + 1
            # Sound is as steady as a clip, and longer than a small one, but no picture.
            key = (int(not _is_line(whole[first : first + n], limit)), (count - 1) * n, int(is_known(n, count, known)))
            if best is None or key > best[:3]:
                best = (*key, first, n)
    if best is None:
        return None
    _, steady, _, first, n = best
    return first, n, steady // n + 1


def _is_line(tokens: np.ndarray, limit: float) -> bool:
    """Whether each token is turned beyond the one before it by the same angles: words, or sound."""
    steps = tokens[1:] * tokens[:-1].conj()
    return len(steps) < 2 or bool(np.abs(steps - steps[0]).max() <= 2 * limit)


def _steady_runs(whole: np.ndarray, n: int, limit: float) -> list[tuple[int, int]]:
    """Stretches of at least a frame in which the turn from frame to frame is one and moves: (first token, length)."""
    turn = whole[n:] * whole[:-n].conj()
    cuts = np.flatnonzero(np.abs(turn[1:] - turn[:-1]).max(1) > limit) + 1
    found = []
    for first, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(turn)], strict=True):
        moves = (np.abs(turn[first] - 1) > STILL).any()
        if end - first >= n and moves and np.abs(turn[first:end] - turn[first]).max() <= limit:
            found.append((first, end - first))
    return found


def holds_frames(two: np.ndarray, n: int, limit: float) -> bool:
    """Tell whether what looks like a frame is several, as where a clip and a reference of its length follow each other.

    Args:
        two: two of them, complex (2 n, pairs).
        n: tokens of each.
        limit: up to which two rotations are alike.
    """
    moving = np.abs(two[n] - two[0]) > max(limit, STILL)
    varies = np.abs(two - two[0]).max(0) > max(limit, STILL)
    if not (varies & ~moving).any():
        return False  # every pair turns with every axis: nothing tells them apart
    steps = (np.abs(np.diff(two[:n, moving], axis=0)) > limit).any(1).sum()
    return bool(1 <= steps <= n // 2)


def _outwards(rotations: Rotations, layout: RopeLayout, grid: TokenGrid, limit: float) -> Stretch | MatchFailure:
    """Read what touches a clip, from there to either end of the sequence."""
    whole, n = rotations.phase[0], grid.tokens
    reader = _Reader(rotations, layout, grid, limit)
    before: list[Piece] = []
    at = grid.text_first
    while at and (piece := reader.ending(at)) is not None:
        before.insert(0, piece)
        at = piece.first
    after: list[Piece] = []
    end = grid.text_first + grid.frames * n
    while end < len(whole) and (piece := reader.starting(end)) is not None:
        after.append(piece)
        end = piece.first + piece.tokens
    turned = 0
    for first, last in ((0, at), (end, len(whole))):
        moved = np.flatnonzero((np.abs(whole[first:last] - 1) > STILL).any(1))
        if len(moved) and not reader.words(first, last):
            return MatchFailure(
                f"tokens {first + moved[0]} to {first + moved[-1]} are turned, but are no whole frames beside the "
                f"clip's {grid.frames} frames of {grid.height}x{grid.width} (tokens {grid.text_first} to "
                f"{grid.text_first + grid.frames * n - 1}), nor words or sound before or after all frames: expected "
                "keyframes or references, each turned in time as a whole, or tokens that are turned in time alone; "
                "fewer rows of the clip's width count as a part of a frame, and so do a single row beside a clip of "
                "more, and tokens of one time that can be read as pictures and words in more than one way"
            )
        turned += len(moved)
    return Stretch(grid, tuple(before), tuple(after), at, len(whole) - end, turned)


class _Reader:
    """Reads frames that touch a place of the sequence."""

    def __init__(self, rotations: Rotations, layout: RopeLayout, grid: TokenGrid, limit: float) -> None:
        whole, chosen = rotations.phase[0], np.isin(rotations.first, layout.first)
        own = [rotations.first.tolist().index(c) for c in layout.first]
        rates = np.zeros(whole.shape[1])
        rates[own] = np.abs(np.asarray(layout.omega)[0])
        self.whole, self.grid, self.limit = whole, grid, max(limit, 2e-3)
        # Pairs of this head that turn with the frame, and whether they turn with nothing else.
        self.temporal = chosen & (rates > 0)
        self.frame = whole[grid.text_first : grid.text_first + grid.tokens]
        spread = np.abs(self.frame[:, self.temporal] - self.frame[:1, self.temporal])
        self.alone = bool(self.temporal.any() and spread.max(initial=0.0) <= self.limit)

    def ending(self, end: int) -> Piece | None:
        """The frame whose last token is the one before `end`."""
        if not self.alone:
            return self._own(end - self.grid.tokens)
        time = self.whole[:end, self.temporal]
        other = np.flatnonzero(np.abs(time - time[-1]).max(1) > self.limit)
        first = int(other[-1]) + 1 if len(other) else 0
        return self._read(first, end, -1)

    def starting(self, first: int) -> Piece | None:
        """The frame whose first token is at `first`."""
        if not self.alone:
            return self._own(first)
        time = self.whole[first:, self.temporal]
        other = np.flatnonzero(np.abs(time - time[0]).max(1) > self.limit)
        end = first + (int(other[0]) if len(other) else len(time))
        return self._read(first, end, 0)

    def words(self, first: int, last: int) -> bool:
        """Whether tokens [first, last) are turned in time alone, but for two further places, as of stereo sound.

        Each place is one run of tokens, where parts of frames come back to theirs. Where frames are single tokens, or
        time turns what space turns, nothing tells.
        """
        if not self.alone or self.grid.tokens == 1:
            return False
        space = self.whole[first:last][:, ~self.temporal]
        places = _kinds(space, self.limit, 4) if space.shape[1] else []
        runs = all(len(place) > 1 and np.ptp(place) == len(place) - 1 for place in places) or len(places) == 1
        return len(places) in (1, 2, 3) and runs and not any(self._alike(at) for at in range(first, last))

    def _alike(self, first: int) -> bool:
        """Whether a frame of the clip's size begins at a token: turned as the clip's first but for one turn in time."""
        n = self.grid.tokens
        if first < 0 or first + n > len(self.whole):
            return False
        turn = self.whole[first : first + n] * self.frame.conj()
        still = ~self.temporal
        alike = np.abs(turn - turn[0]).max() <= self.limit and np.abs(turn[:, still] - 1).max(initial=0.0) <= self.limit
        # A frame of one token is told from text by where it stands.
        return bool(alike) and (n > 1 or bool((np.abs(self.whole[first] - 1) > STILL).any()))

    def _own(self, first: int) -> Piece | None:
        """A frame of the clip's size that begins at a token."""
        grid = self.grid
        return Piece(first, grid.tokens, grid.height, grid.width) if self._alike(first) else None

    def _read(self, first: int, end: int, which: int) -> Piece | None:
        """The first (0) or last (-1) frame of tokens [first, end), all turned alike in time; None where that is text, a
        part of a frame, or nothing tells."""
        grid, still = self.grid, ~self.temporal
        space, frame = self.whole[first:end][:, still], self.frame[:, still]
        if grid.tokens == 1:  # a frame of one token is told from text by where it stands
            return self._own(first if which == 0 else end - 1) if end - first == 1 else None
        rasters = Rasters(frame, (grid.height, grid.width), self.limit)
        parts = rasters.parts(space)
        part = None if parts is None else parts[which]
        if part is None or not part.height or rasters.may_be_words(part, space):
            return None
        n = part.stop - part.first
        own = space[part.first : part.stop]
        if n < grid.tokens and any(np.abs(own - some).max() <= self.limit for some in (frame[:n], frame[-n:])):
            return None
        return Piece(first + part.first, n, part.height, part.width)
