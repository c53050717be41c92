"""FlexAttention's BlockMasks from frame intervals, built without looking at pairs of tokens.

FlexAttention cuts the scores (query tokens x key tokens) into blocks, of 128 x 128 unless told otherwise, and wants to
know of each whether it is visible as a whole, in part, or not at all. "Block" in this folder is such a block of scores,
or one side of it: nothing of a transformer, and not the tiles of the CPU kernel, which are 16 query rows of one latent
frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from freeloc_fx.method.visibility import FULL, STRIPE

__all__ = ["Block", "Segments", "block_states", "ordered"]


Block = int | tuple[int, int]
"""Tokens of a query and of a key block, or one number for both."""


@dataclass(frozen=True)
class Segments:
    """A sequence as segments: each frame is one, and the text tokens around the video are one together.

    Args:
        of_run: which segment each run of neighbouring tokens belongs to, int (runs,).
        length: tokens of each run, int (runs,).
    """

    of_run: np.ndarray
    length: np.ndarray

    @classmethod
    def of_frames(cls, frames: int, tokens: int, text_first: int = 0, text_last: int = 0) -> Segments:
        """Latent frames, as segments 0, 1, ..., with text before and after them as segment number `frames`.

        Args:
            frames: latent frames.
            tokens: tokens of a latent frame.
            text_first: text tokens before the video.
            text_last: text tokens after the video.
        """
        return cls.of_sizes((tokens,) * frames, text_first, text_last)

    @classmethod
    def of_sizes(cls, sizes: Sequence[int], text_first: int = 0, text_last: int = 0) -> Segments:
        """Frames of any sizes, as segments 0, 1, ..., with text before and after them as the segment after the last.

        Args:
            sizes: tokens of each frame.
            text_first: text tokens before the video.
            text_last: text tokens after the video.
        """
        frames = len(sizes)
        of_run, length = np.arange(frames), np.array(sizes, dtype=np.int64)
        if text_first:
            of_run, length = np.append(frames, of_run), np.append(text_first, length)
        if text_last:
            of_run, length = np.append(of_run, frames), np.append(length, text_last)
        return cls(of_run, length)

    @property
    def tokens(self) -> int:
        """Tokens of the sequence."""
        return int(self.length.sum())

    def of_token(self) -> tuple[np.ndarray, np.ndarray]:
        """The segment of each token and its place in its run, int32 (tokens,) each."""
        start = np.repeat(np.cumsum(self.length) - self.length, self.length)
        place = np.arange(self.tokens) - start
        return np.repeat(self.of_run, self.length).astype(np.int32), place.astype(np.int32)

    def fragments(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cut at the boundaries of blocks and runs: (block, segment, first place, end place) of each fragment."""
        end = np.cumsum(self.length)
        cuts = np.unique(np.concatenate([np.arange(0, self.tokens, block), [0], end]))
        first, last = cuts[:-1], cuts[1:]
        run = np.searchsorted(end, first, side="right")
        start = (end - self.length)[run]
        return first // block, self.of_run[run], first - start, last - start


def _intervals(first: np.ndarray, end: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct intervals among fragments of frames: their first and end tokens, and which one each fragment is."""
    code, which = np.unique(first * (n + 1) + end, return_inverse=True)
    return code // (n + 1), code % (n + 1), which.reshape(-1)


def _stripe_states(
    stripe: np.ndarray, q0: np.ndarray, q1: np.ndarray, k0: np.ndarray, k1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(any, all) of `stripe` over [q0, q1) x [k0, k1), bool (query intervals, key intervals)."""
    rows, keys = (np.unique(np.concatenate([a, b])) for a, b in ((q0, q1), (k0, k1)))
    # A summed-area table over the cuts alone: fragments begin and end at few places of a frame.
    inner = stripe[rows[0] : rows[-1], keys[0] : keys[-1]].view(np.uint8)
    cells = np.add.reduceat(inner, rows[:-1] - rows[0], 0, dtype=np.int32)
    cells = np.add.reduceat(cells, keys[:-1] - keys[0], 1)
    table = np.zeros((len(rows), len(keys)), np.int64)
    table[1:, 1:] = cells.cumsum(0).cumsum(1)
    part = table[np.searchsorted(rows, q1)] - table[np.searchsorted(rows, q0)]
    count = part[:, np.searchsorted(keys, k1)] - part[:, np.searchsorted(keys, k0)]
    return count > 0, count == (q1 - q0)[:, None] * (k1 - k0)[None]


def _joined(fragments: np.ndarray, blocks: np.ndarray, how: np.ufunc) -> np.ndarray:
    """`how` over the rows of `fragments` that lie in one block; `blocks` (rows,) ascending without gaps."""
    edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=blocks[-1] + 1))
    first, last = edges[:-1], edges[1:] - 1
    result: np.ndarray = fragments[first]
    for offset in range(1, int((last - first).max()) + 1):  # once, where blocks are no longer than frames
        how(result, fragments[np.minimum(first + offset, last)], out=result)
    return result


def block_states(
    levels: np.ndarray,
    stripe: np.ndarray,
    queries: Segments | int,
    keys: Segments | int,
    block: tuple[int, int],
    whole: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether any pair, and whether every pair, of each block is visible.

    Work is (blocks + latent frames)^2, never tokens^2: a fragment of one frame sees a fragment of another fully, or as
    the stripe mask says for the two places in a frame, or not.

    Args:
        levels: visibility, int8 (query segments, key segments).
        stripe: bool (n, n), what STRIPE lets a token of a frame see.
        queries: the segments of the query tokens; a number for latent frames of so many tokens.
        keys: the same of the key tokens.
        block: tokens of a query block and of a key block.
        whole: bool (key segments,), False where single keys may be hidden, so that no block with one of them counts as
            visible as a whole; None where none may be.

    Returns:
        (any, all), bool (query blocks, key blocks) each; padding beyond the end of the sequence is not visible.
    """
    queries = Segments.of_frames(levels.shape[0], queries) if isinstance(queries, int) else queries
    keys = Segments.of_frames(levels.shape[1], keys) if isinstance(keys, int) else keys
    qb, qf, q0, q1 = queries.fragments(block[0])
    kb, kf, k0, k1 = keys.fragments(block[1])
    table = levels[qf][:, kf]
    some = table == FULL
    every = some
    near = table == STRIPE
    if near.any():
        n = len(stripe)
        # Text is never under a stripe, and may be longer than a frame.
        (q0, q1), (k0, k1) = ((np.minimum(a, n - 1), np.minimum(b, n)) for a, b in ((q0, q1), (k0, k1)))
        q0, q1, rows = _intervals(q0, q1, n)
        k0, k1, columns = _intervals(k0, k1, n)
        touched, covered = _stripe_states(stripe, q0, q1, k0, k1)
        some, every = some | (near & touched[rows][:, columns]), some | (near & covered[rows][:, columns])
    if whole is not None:
        every = every & whole[kf]
    some = _joined(_joined(some, qb, np.logical_or).T, kb, np.logical_or).T
    every = _joined(_joined(every, qb, np.logical_and).T, kb, np.logical_and).T
    if queries.tokens % block[0]:
        every[-1] = False
    if keys.tokens % block[1]:
        every[:, -1] = False
    return some, every


def ordered(blocks: np.ndarray, fixed: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """FlexAttention's form of bool tables: counts per row, and column indices with the True ones first.

    Args:
        blocks: bool (heads, query blocks, key blocks).
        fixed: whether all indices are given, in a shape that says nothing of the values; else large ones end where no
            row has more to see, which the kernel goes by: at 700,000 tokens all of them are a gigabyte and more.

    Returns:
        int32 (1, heads, query blocks) and int32 (1, heads, query blocks, key blocks or fewer).
    """
    columns = np.arange(blocks.shape[-1], dtype=np.int32)
    count = blocks.sum(-1, dtype=np.int32)
    all_of_them = fixed or 4 * blocks.size <= _LARGE
    index = np.zeros((*blocks.shape[:-1], len(columns) if all_of_them else max(int(count.max()), 1)), np.int32)
    first = columns[: index.shape[-1]] < count[..., None]
    every = np.broadcast_to(columns, blocks.shape)
    index[first] = every[blocks]  # row by row on both sides
    if all_of_them:
        index[~first] = every[~blocks]
    return torch.from_numpy(count)[None], torch.from_numpy(index)[None]


_LARGE = 2**25
"""Bytes of indices above which those that nobody looks at are left out."""
