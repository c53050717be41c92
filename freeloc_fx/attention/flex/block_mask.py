"""FlexAttention's BlockMasks from frame intervals, built without looking at pairs of tokens.

FlexAttention cuts the scores (query tokens x key tokens) into blocks of 128 x 128 and wants to know of each whether it
is visible as a whole, in part, or not at all. "Block" in this folder is such a block of scores, or one side of it:
nothing of a transformer, and not the tiles of the CPU kernel, which are 16 query rows of one latent frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from freeloc_fx.method.visibility import FULL, STRIPE

__all__ = ["BLOCK", "Block", "block_mask", "block_states"]


BLOCK = 128
"""Tokens of a side of a block, as FlexAttention has it by default."""


Block = int | tuple[int, int]
"""Tokens of a query and of a key block, or one number for both."""


def _fragments(frames: int, n: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut a sequence of frames at block and frame boundaries: (block, frame, first token, end token) of each."""
    length = frames * n
    cuts = np.unique(np.concatenate([np.arange(0, length, block), np.arange(0, length, n), [length]]))
    start, end = cuts[:-1], cuts[1:]
    frame = start // n
    return start // block, frame, start - frame * n, end - frame * n


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
    levels: np.ndarray, stripe: np.ndarray, n: int, block: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether any pair, and whether every pair, of each block is visible.

    Work is (blocks + latent frames)^2, never tokens^2: a fragment of one frame sees a fragment of another fully, or as
    the stripe mask says for the two places in a frame, or not.

    Args:
        levels: visibility, int8 (query frames, key frames).
        stripe: bool (n, n), what STRIPE lets a token of a frame see.
        n: tokens of a latent frame.
        block: tokens of a query block and of a key block.

    Returns:
        (any, all), bool (query blocks, key blocks) each; padding beyond the end of the sequence is not visible.
    """
    qb, qf, q0, q1 = _fragments(levels.shape[0], n, block[0])
    kb, kf, k0, k1 = _fragments(levels.shape[1], n, block[1])
    table = levels[qf][:, kf]
    some = table == FULL
    every = some
    near = table == STRIPE
    if near.any():
        q0, q1, rows = _intervals(q0, q1, n)
        k0, k1, keys = _intervals(k0, k1, n)
        touched, covered = _stripe_states(stripe, q0, q1, k0, k1)
        some, every = some | (near & touched[rows][:, keys]), some | (near & covered[rows][:, keys])
    some = _joined(_joined(some, qb, np.logical_or).T, kb, np.logical_or).T
    every = _joined(_joined(every, qb, np.logical_and).T, kb, np.logical_and).T
    if levels.shape[0] * n % block[0]:
        every[-1] = False
    if levels.shape[1] * n % block[1]:
        every[:, -1] = False
    return some, every


def _ordered(blocks: np.ndarray, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """FlexAttention's form of a bool table: (count per row, column indices with the True ones first), int32."""
    columns = np.broadcast_to(np.arange(blocks.shape[1], dtype=np.int32), blocks.shape)
    count = blocks.sum(1, dtype=np.int32)
    index = np.empty(blocks.shape, np.int32)
    first = columns < count[:, None]
    index[first] = columns[blocks]  # row by row on both sides
    index[~first] = columns[~blocks]
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(index)[None, None].to(device)


def block_mask(
    levels: np.ndarray,
    stripe: np.ndarray,
    n: int,
    device: torch.device | str = "cpu",
    block: Block = BLOCK,
    stripe_table: torch.Tensor | None = None,
) -> BlockMask:
    """BlockMask of frame-level visibility, built without looking at pairs of tokens.

    Args:
        levels: visibility, int8 (query frames, key frames).
        stripe: bool (n, n), what STRIPE lets a token of a frame see.
        n: tokens of a latent frame.
        device: where the mask's tables lie.
        block: tokens of a query and of a key block, or one number for both.
        stripe_table: `stripe` on the device, where several masks share one; None to make it.

    Returns:
        The same blocks as `create_block_mask` finds on the token-level mask function.
    """
    size = (block, block) if isinstance(block, int) else block
    some, every = block_states(levels, stripe, n, size)
    partial = some & ~every
    kv_count, kv_index = _ordered(partial, device)
    full_kv_count, full_kv_index = _ordered(every, device)
    q_count, q_index = _ordered(partial.T, device)
    full_q_count, full_q_index = _ordered(every.T, device)
    level_table = torch.from_numpy(levels.astype(np.int8)).to(device)
    striped = bool((levels == STRIPE).any())
    near = stripe_table
    if near is None:
        near = torch.from_numpy(np.ascontiguousarray(stripe)).to(device) if striped else level_table

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return level_table[q // n, k // n] == FULL

    def visible_striped(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        level = level_table[q // n, k // n]
        return (level == FULL) | ((level == STRIPE) & near[q % n, k % n])

    return BlockMask(
        seq_lengths=(levels.shape[0] * n, levels.shape[1] * n),
        kv_num_blocks=kv_count,
        kv_indices=kv_index,
        full_kv_num_blocks=full_kv_count,
        full_kv_indices=full_kv_index,
        q_num_blocks=q_count,
        q_indices=q_index,
        full_q_num_blocks=full_q_count,
        full_q_indices=full_q_index,
        BLOCK_SIZE=size,
        mask_mod=visible_striped if striped else visible,
    )
