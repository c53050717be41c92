"""Tell pictures from words in a stretch of tokens that are at one time, by where each token stands in space.

    places   (0,0) | (0,0) (0,1) (1,0) (1,1) (2,0) (2,1)       a word, then a picture of 3x2

A picture is a raster: rows of equal steps, each beyond the one before it by the same, along the axes of the clip's own
frames. Words stand at one place. Of all ways to read a stretch the cheapest holds, where only one is as cheap: a part
costs one, a single row two, and so do words that are turned in space, as a token of sound may be; a raster that lies
askew costs as much as several parts. A row that begins where words stand is one row: that it may be a word and a row
which is moved by one step, no position tells. Nor does any tell two pictures from one where the second goes on a step
below the last row of the first: they are one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

__all__ = ["Part", "Rasters"]

_MOST = 12
"""Cost up to which readings are tried: no stretch of a few pictures with words beside them costs more."""

_ASKEW = 4


@dataclass(frozen=True)
class Part:
    """Tokens [first, stop) of a stretch: a picture of rows and columns, or words, which have none.

    Args:
        first: its first token.
        stop: the one after its last.
        height: rows of a picture; 0 for words.
        width: columns of a picture; 0 for words.
    """

    first: int
    stop: int
    height: int = 0
    width: int = 0


class Rasters:
    """Reads stretches of tokens beside one clip.

    Args:
        frame: what turns with rows and columns of the clip's first frame, complex (tokens, pairs). It is a picture
            whatever its tokens' places are.
        size: rows and columns of that.
        limit: up to which two rotations are alike.
    """

    def __init__(self, frame: np.ndarray, size: tuple[int, int], limit: float) -> None:
        self.frame, self.size, self.limit = frame, size, limit
        height, width = size
        # One step along each axis that the frame has.
        self.axes = [frame[n] * frame[0].conj() for n, there in ((1, width > 1), (width, height > 1)) if there]

    def parts(self, space: np.ndarray) -> tuple[Part, ...] | None:
        """Read tokens of one time as pictures and words.

        Args:
            space: what turns with rows and columns, complex (tokens, pairs).

        Returns:
            The parts, from first to last; None where there is no reading, or two are as good.
        """
        if not space.shape[1]:
            return None
        best, waiting = {0: 0}, [(0, 0)]
        ending: dict[int, list[tuple[int, Part]]] = {}  # what may end at a token, with the cost up to there
        done: set[int] = set()
        while waiting:
            cost, at = heapq.heappop(waiting)
            if at == len(space):
                break
            if at in done:
                continue
            done.add(at)
            for more, part in self._beginning(space, at):
                total = cost + more
                ending.setdefault(part.stop, []).append((total, part))
                if total < best.get(part.stop, _MOST):
                    best[part.stop] = total
                    heapq.heappush(waiting, (total, part.stop))
        found: list[Part] = []
        at = len(space)
        while at:
            cheapest = [part for cost, part in ending.get(at, []) if cost == best.get(at)]
            if len(cheapest) != 1:
                return None
            found.insert(0, cheapest[0])
            at = cheapest[0].first
        return tuple(found)

    def may_be_words(self, part: Part, space: np.ndarray) -> bool:
        """Whether a picture is a single row beside a clip of more, as words lie that are numbered along an axis of
        space; not one whose tokens are as far apart as the clip is high, as of a reference that is as much coarser.

        Args:
            part: of a reading.
            space: that was read.
        """
        rows = self.size[0]
        if part.height != 1 or rows == 1:
            return False
        if part.width == 1 or self.size[1] == 1:
            return True
        step = space[part.first + 1] * space[part.first].conj()
        coarse = (self.frame[1] * self.frame[0].conj()) ** rows
        return bool(np.abs(step - coarse).max() > 2 * rows * self.limit)

    def _beginning(self, space: np.ndarray, at: int) -> list[tuple[int, Part]]:
        """What may begin at a token, each with what it costs."""
        tokens = space[at:]
        other = np.flatnonzero(np.abs(tokens - tokens[0]).max(1) > self.limit)
        alike = int(other[0]) if len(other) else len(tokens)  # how many stand at one place
        word = 1 if np.abs(tokens[0] - 1).max() <= self.limit else 2
        if alike > 1:  # the last of them may be a picture's first
            return [(word, Part(at, at + alike)), (word, Part(at, at + alike - 1))]
        found = [(word, Part(at, at + 1))]
        n = len(self.frame)
        own = n > 1 and len(tokens) >= n and np.abs(tokens[:n] - self.frame).max() <= self.limit
        if own:
            found.append((1, Part(at, at + n, *self.size)))
        if len(tokens) > 1:
            most, width, straight = self._raster(tokens)
            # Any number of its rows: what goes on below may be another picture's first row.
            for height in range(1, most + 1):
                if not own or height * width != n:
                    cost = _ASKEW if not straight[height > 1] else 2 if height == 1 else 1
                    found.append((cost, Part(at, at + height * width, height, width)))
        return found

    def _raster(self, tokens: np.ndarray) -> tuple[int, int, tuple[bool, bool]]:
        """Rows and columns of the largest raster that begins with the first token; whether its first row lies as the
        clip's, and whether all of it does."""
        steps = tokens[1:] * tokens[:-1].conj()
        other = np.flatnonzero(np.abs(steps - steps[0]).max(1) > 2 * self.limit)
        width = 1 + (int(other[0]) if len(other) else len(steps))
        along = self._along(steps[0])
        row = along is not None
        if width == len(tokens):
            return 1, width, (row, row)
        down = tokens[width:] * tokens[:-width].conj()
        if np.abs(down[0] - 1).max() <= self.limit:  # comes back to where it began: the next picture
            return 1, width, (row, row)
        other = np.flatnonzero(np.abs(down - down[0]).max(1) > 2 * self.limit)
        height = 1 + (int(other[0]) if len(other) else len(down)) // width
        across = self._along(down[0])
        return height, width, (row, row and across not in (None, along))

    def _along(self, step: np.ndarray) -> int | None:
        """Along which of the clip's axes a step goes, forwards; one more than it has for what is along none of them,
        None for what is along two or backwards."""
        found = []
        for index, axis in enumerate(self.axes):
            moves = np.flatnonzero(np.abs(axis - 1) > self.limit)
            if np.abs(step[moves] - 1).max(initial=0.0) <= self.limit:
                continue
            slow = moves[np.argmin(np.abs(np.angle(axis[moves])))]  # the others may have turned around in a longer step
            forwards = np.angle(step[slow]) * np.angle(axis[slow]) > 0
            found.append(index if forwards else None)
        return len(self.axes) if not found else found[0] if len(found) == 1 else None
