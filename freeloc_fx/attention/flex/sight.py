"""What a mask function reads, so that it looks no pair of tokens up in a table.

A table of pairs costs a kernel an address for each pair of its tile: for an H100 FlexAttention's kernel then keeps 816
bytes a thread in memory, and without one nothing (bench/cuda_offline.py). So what a segment sees of segments is bits,
32 of them a word, and what a token sees of a frame along the stripe is bounds. Both are read for rows and for keys
alone; what is left for pairs is arithmetic (but for a stripe of somebody's own that no bounds describe):

    seen[0][i] & bit[0][j] | seen[1][i] & bit[1][j] | ...  != 0        low[i] <= at[j] < high[i]
"""

from __future__ import annotations

import numpy as np

__all__ = ["WORD", "bounds", "packed"]


WORD = 32
"""Segments of a word."""


def packed(visible: np.ndarray) -> np.ndarray:
    """Pack a table of pairs into words.

    Args:
        visible: bool (..., key segments).

    Returns:
        int32 (words, ...): bit s of word w says whether key segment 32 w + s is visible.
    """
    keys = visible.shape[-1]
    padded = np.zeros((*visible.shape[:-1], -(-keys // WORD) * WORD), bool)
    padded[..., :keys] = visible
    words = np.packbits(padded, axis=-1, bitorder="little").view("<i4")
    return np.ascontiguousarray(np.moveaxis(words, -1, 0), dtype=np.int32)


def bounds(stripe: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """What each token of a frame sees along the stripe, as bounds on the keys' places, where that is all it is.

    Args:
        stripe: bool (tokens, tokens) of one frame, row = query token, in raster order.
        height: rows of tokens.
        width: columns of tokens.

    Returns:
        int32 (axes, 3, tokens): the lowest place that a query sees, the one after the highest, and the place of each
        token as a key; along the raster for one axis, down and across for two, which both must hold. None where no
        such bounds say what the table says.
    """
    places = np.arange(len(stripe))
    if (line := _interval(stripe)) is not None:
        return np.stack([*line, places]).astype(np.int32)[None]
    table = stripe.reshape(-1, height, width)
    down, across = np.any(table, axis=(2,)), np.any(table, axis=(1,))
    ends = _interval(down), _interval(across)
    if ends[0] is None or ends[1] is None or not (table == (down[:, :, None] & across[:, None])).all():
        return None
    at = np.divmod(places, width)
    return np.stack([np.stack([*end, own]) for end, own in zip(ends, at, strict=True)]).astype(np.int32)  # type: ignore[misc]


def _interval(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """First and end of each row's True values, where they are neighbours in every row."""
    count, first = visible.sum(1), visible.argmax(1)
    last = visible.shape[1] - 1 - visible[:, ::-1].argmax(1)
    if ((count > 0) & (last - first + 1 != count)).any():
        return None
    return first, first + count
