"""The exchange of Ulysses: ranks that hold some tokens of all heads come to hold all tokens of some heads, and back.

Everything is plain operations on tensors around one collective, so that it can be traced into a graph. What is sent
lies heads first: the numbers for one rank are neighbours, and one copy is all the sorting.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from freeloc_fx.compat import all_to_all
from freeloc_fx.method.shards import Layout, Shards

__all__ = ["gather_along", "heads_to_tokens", "tokens_to_heads"]


def _split(x: torch.Tensor, sizes: Sequence[int], axis: int) -> list[torch.Tensor]:
    """Views of neighbours along an axis; tracing knows how many there are."""
    firsts = [0, *accumulate(sizes)]
    return [x.narrow(axis, first, size) for first, size in zip(firsts, sizes, strict=False)]


def tokens_to_heads(x: torch.Tensor, layout: Layout, shape: Sequence[int], group: str) -> torch.Tensor:
    """Give all tokens of this rank's heads.

    Args:
        x: (batch, heads, tokens of this rank, head_dim).
        layout: where the tokens of the sequence lie.
        shape: of `x`.
        group: name of the process group.

    Returns:
        (batch, heads of this rank, all tokens, head_dim).
    """
    shards, (batch, heads, _, dim) = layout.shards, shape
    own, shares = shards.part(heads), shards.sizes(heads)
    mine = shares[shards.rank]
    shared = [is_shared for _, is_shared in layout.stretches]
    here = _split(x.transpose(0, 1), layout.lengths(shards.rank), 2)
    lengths = [layout.lengths(rank, sent=True) for rank in range(shards.ranks)]
    sent = torch.cat([part for part, sends in zip(here, shared, strict=True) if sends], 2)
    of_head = batch * sum(lengths[shards.rank]) * dim
    received = [mine * batch * sum(n) * dim for n in lengths]
    flat = all_to_all(sent.reshape(-1), received, [count * of_head for count in shares], group)
    pieces = [
        _split(part.view(mine, batch, sum(n), dim), n, 2)
        for part, n in zip(_split(flat, received, 0), lengths, strict=True)
    ]
    found: list[torch.Tensor] = []
    for index, is_shared in enumerate(shared):
        found += [piece[index] for piece in pieces] if is_shared else [here[index].narrow(0, own.start, mine)]
    return torch.cat(found, 2).transpose(0, 1)


def heads_to_tokens(x: torch.Tensor, layout: Layout, shape: Sequence[int], heads: int, group: str) -> torch.Tensor:
    """Give all heads of this rank's tokens, the way back from `tokens_to_heads`.

    Args:
        x: (batch, heads of this rank, all tokens, head_dim).
        layout: where the tokens of the sequence lie.
        shape: of `x`.
        heads: on all ranks together.
        group: name of the process group.

    Returns:
        (batch, heads, tokens of this rank, head_dim).
    """
    shards, (batch, mine, _, dim) = layout.shards, shape
    by_head = x.transpose(0, 1)
    rows = [
        torch.cat([by_head.narrow(2, place.start, place.stop - place.start) for place in layout.places(rank)], 2)
        for rank in range(shards.ranks)
    ]
    sizes = [mine * batch * sum(layout.lengths(rank)) * dim for rank in range(shards.ranks)]
    own = sum(layout.lengths(shards.rank))
    received = [count * batch * own * dim for count in shards.sizes(heads)]
    flat = all_to_all(torch.cat([part.reshape(-1) for part in rows]), received, sizes, group)
    return flat.view(heads, batch, own, dim).transpose(0, 1)


def gather_along(
    x: torch.Tensor, shards: Shards, tokens: int, shape: Sequence[int], axis: int, group: str
) -> torch.Tensor:
    """Give all of a tensor whose tokens are shared out, on every rank.

    Args:
        x: with this rank's tokens along `axis`.
        shards: the ranks.
        tokens: on all ranks together.
        shape: of `x`.
        axis: that counts tokens.
        group: name of the process group.

    Returns:
        As `x`, with all tokens along `axis`.
    """
    first = x.transpose(0, axis)
    swapped = [shape[axis], *shape[1:]]
    swapped[axis] = shape[0]
    of_token = torch.Size(swapped[1:]).numel()
    flat = first.reshape(-1)
    own, received = shape[axis] * of_token, [count * of_token for count in shards.sizes(tokens)]
    gathered = all_to_all(torch.cat([flat] * shards.ranks), received, [own] * shards.ranks, group)
    return gathered.view(tokens, *swapped[1:]).transpose(0, axis)
