"""Cut the visible pairs of latent frames into few calls, so that work is visible pairs and calls are large.

A boolean table over (query frame, key frame) becomes rectangles. A rectangle is some consecutive query frames
that see the same consecutive key frames: one attention call on views. Equal rectangles whose corners advance evenly
form a family, which is one call on overlapping views, with the rectangles as its batch. A sliding window is one family,
the triangle of a far tier a few::

    keys  0 1 2 3 4 5
    row 0 a a . . . .
        1 . a a . . .      one family: 4 rectangles of 1 x 2, each one row and one key further than the one before
        2 . . a a . .
        3 . . . a a .

Where the pairs of a ragged corner cost less than another call would, the corner is one rectangle with a mask over its
frames::

    row 0 b . . .
        1 b b . .          one rectangle of 3 x 3 whose mask hides three pairs, in place of three calls
        2 b b b .
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Family", "decompose"]


@dataclass(frozen=True, eq=False)
class Family:
    """Equal rectangles whose corners advance evenly.

    Rectangle t, for 0 <= t < count, holds rows [row + t * row_step, row + t * row_step + rows) and keys
    [key + t * key_step, key + t * key_step + keys) of the table.

    Args:
        row: first row of the first rectangle.
        rows: rows of a rectangle.
        row_step: rows from one rectangle to the next.
        key: first key of the first rectangle.
        keys: keys of a rectangle.
        key_step: keys from one rectangle to the next.
        count: how many rectangles there are.
        mask: bool (rows, keys), which pairs of each rectangle count; None where all do.
    """

    row: int
    rows: int
    row_step: int
    key: int
    keys: int
    key_step: int
    count: int
    mask: np.ndarray | None = None

    def cells(self) -> Iterator[tuple[slice, slice]]:
        """The rectangles as slices of the table."""
        for t in range(self.count):
            r, k = self.row + t * self.row_step, self.key + t * self.key_step
            yield slice(r, r + self.rows), slice(k, k + self.keys)


@dataclass(frozen=True)
class _Run:
    """Visible keys [lo, hi) of one row."""

    row: int
    lo: int
    hi: int


@dataclass(frozen=True)
class _Rect:
    """Rows [row, row + rows) against keys [key, key + keys); `runs` where it is ragged and needs a mask."""

    row: int
    rows: int
    key: int
    keys: int
    runs: tuple[_Run, ...] = ()


def decompose(table: np.ndarray, overhead: float = 0.0, warm: float = 0.0) -> list[Family]:
    """Cover every True cell of a table exactly once.

    Args:
        table: bool (query frames, key frames).
        overhead: what a call costs beside its cells, in cells. Masked corners are used only where they pay.
        warm: rows that a thin rectangle costs on top of its own: it takes (rows + warm) * keys cells of time. A sliding
            window is cut into the number of rows at a time that is cheapest, masked at the ragged ends.

    Returns:
        The families; none for a table without a True cell.
    """
    runs = []
    for row, cells in enumerate(table):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], cells.astype(np.int8), [0]])))
        runs += [_Run(row, int(lo), int(hi)) for lo, hi in zip(edges[::2], edges[1::2], strict=True)]
    sliding, rest = _sliding(runs)
    rects = [rect for chain in sliding for rect in _in_groups(chain, warm)]
    for chain in _chains(rest):
        rects += _cover(tuple(chain), overhead)[1]
    return _families(rects)


def _in_groups(chain: list[_Run], warm: float) -> list[_Rect]:
    """A sliding window as groups of rows that share the union of their keys."""
    width, step = chain[0].hi - chain[0].lo, chain[1].lo - chain[0].lo

    def cost(rows: int) -> float:
        return (rows + warm) * (width + (rows - 1) * step) / rows * (1.0 if rows == 1 else 1.15)  # masks are not free

    rows = min((size for size in (1, 2, 4, 8, 16) if size <= len(chain)), key=cost)
    if rows == 1:
        return [_Rect(run.row, 1, run.lo, width) for run in chain]
    groups = [tuple(chain[i : i + rows]) for i in range(0, len(chain), rows)]
    return [_Rect(p[0].row, len(p), p[0].lo, p[-1].hi - p[0].lo, p if len(p) > 1 else ()) for p in groups]


def _sliding(runs: list[_Run]) -> tuple[list[list[_Run]], list[_Run]]:
    """Chains of runs of one width that advance evenly over three or more consecutive rows, and the other runs."""
    chains: list[list[_Run]] = []
    open_chains: dict[int, list[list[_Run]]] = defaultdict(list)
    for run in runs:
        candidates = open_chains[run.hi - run.lo]
        for chain in candidates:
            last = chain[-1]
            step = run.lo - last.lo
            if last.row == run.row - 1 and step > 0 and (len(chain) == 1 or step == last.lo - chain[-2].lo):
                chain.append(run)
                break
        else:
            chains.append([run])
            candidates.append(chains[-1])
    sliding = [chain for chain in chains if len(chain) > 2]
    taken = {run for chain in sliding for run in chain}
    return sliding, [run for run in runs if run not in taken]


def _chains(runs: list[_Run]) -> list[list[_Run]]:
    """Split into chains of consecutive rows whose runs overlap, one run a row."""
    chains: list[list[_Run]] = []
    for run in runs:
        for chain in reversed(chains):
            last = chain[-1]
            if last.row == run.row - 1 and last.lo < run.hi and run.lo < last.hi:
                chain.append(run)
                break
        else:
            chains.append([run])
    return chains


def _cover(chain: tuple[_Run, ...], overhead: float) -> tuple[float, list[_Rect]]:
    """(cost in cells, rectangles) of consecutive rows: one masked rectangle, or the shared keys and what sticks out."""
    first, rows = chain[0].row, len(chain)
    low, high = min(r.lo for r in chain), max(r.hi for r in chain)
    cells = sum(r.hi - r.lo for r in chain)
    box = rows * (high - low)
    if box == cells:
        return overhead + cells, [_Rect(first, rows, low, high - low)]
    whole = overhead + box, [_Rect(first, rows, low, high - low, chain)]
    if box <= cells + overhead:  # even one more call would cost more than the masked cells
        return whole
    lo, hi = max(r.lo for r in chain), min(r.hi for r in chain)
    cost, rects = 0.0, []
    parts: list[tuple[_Run, ...]] = []
    if lo < hi:
        cost, rects = overhead + rows * (hi - lo), [_Rect(first, rows, lo, hi - lo)]
        for side in (
            [_Run(r.row, r.lo, lo) for r in chain if r.lo < lo],
            [_Run(r.row, hi, r.hi) for r in chain if r.hi > hi],
        ):
            for part in _consecutive(side):
                parts += _halves(part)
    else:
        parts = _halves(chain)
    for part in parts:
        part_cost, part_rects = _cover(part, overhead)
        cost += part_cost
        rects += part_rects
    return (cost, rects) if cost < whole[0] or overhead == 0 else whole


def _halves(chain: tuple[_Run, ...]) -> list[tuple[_Run, ...]]:
    """Halve at a power of two, counted from the row that sees least, so that the halves of all sizes are alike."""
    if len(chain) == 1:
        return [chain]
    growing = chain[-1].hi - chain[-1].lo >= chain[0].hi - chain[0].lo
    half = 1 << ((len(chain) - 1).bit_length() - 1)
    cut = half if growing else len(chain) - half
    return [chain[:cut], chain[cut:]]


def _consecutive(runs: list[_Run]) -> list[tuple[_Run, ...]]:
    parts: list[list[_Run]] = []
    for run in runs:
        if parts and parts[-1][-1].row == run.row - 1:
            parts[-1].append(run)
        else:
            parts.append([run])
    return [tuple(part) for part in parts]


def _families(rects: list[_Rect]) -> list[Family]:
    """Join rectangles of one size and mask whose corners advance evenly."""
    families = []
    groups: dict[tuple[int, int, bytes], list[tuple[int, int]]] = defaultdict(list)
    masks: dict[bytes, np.ndarray] = {}
    for rect in rects:
        content = b""
        if rect.runs:
            mask = np.zeros((rect.rows, rect.keys), bool)
            for run in rect.runs:
                mask[run.row - rect.row, run.lo - rect.key : run.hi - rect.key] = True
            content = mask.tobytes()
            masks[content] = mask
        groups[rect.rows, rect.keys, content].append((rect.row, rect.key))
    for (rows, keys, content), corners in groups.items():
        corners.sort(key=lambda c: (c[0] > c[1], c))  # past and future windows of one width are two progressions
        start = 0
        while start < len(corners):
            end, step = start + 1, (0, 0)
            if end < len(corners):
                step = _advance(corners, end)
                # Views may overlap and repeat but not run backwards, and a call must not write a row twice.
                if step[0] >= rows and step[1] >= 0:
                    while end < len(corners) and _advance(corners, end) == step:
                        end += 1
                else:
                    step = (0, 0)
            (row, key), count = corners[start], end - start
            shared = masks[content].reshape(rows, keys) if content else None
            families.append(Family(row, rows, step[0], key, keys, step[1], count, shared))
            start = end
    return families


def _advance(corners: list[tuple[int, int]], index: int) -> tuple[int, int]:
    return corners[index][0] - corners[index - 1][0], corners[index][1] - corners[index - 1][1]
