"""What a key-padding mask is, and whether a larger mask says nothing beyond it."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["SHORT", "explains", "is_per_key"]


SHORT = 11
"""Tokens of the masks that `explains` tries: no size that other arguments of a model are likely to have."""


def is_per_key(shape: tuple[int, ...] | None, batch: int, tokens: int) -> bool:
    """Tell whether a mask has one value a key: (tokens,), (batch, tokens), (batch, 1, tokens), (batch, 1, 1, tokens).

    Args:
        shape: the mask's shape; None for no mask.
        batch: samples of the batch.
        tokens: keys of the attention.

    Returns:
        Whether it has.
    """
    if not shape or len(shape) > 4 or shape[-1] != tokens:
        return False
    rest = shape[:-1]
    return all(n == 1 for n in rest[1:]) and (not rest or rest[0] in (1, batch))


def explains(expand: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Tell whether `expand` shows each valid query exactly the keys that its argument leaves visible.

    What the rows of padding see does not matter: nobody reads them.

    Args:
        expand: makes a mask that broadcasts to (batch, heads, tokens, tokens) from a mask with one value a key.
        shape: shape of the mask with one value a key, tokens last.
        dtype: that mask's dtype: bool (True is visible) or floating (added to the scores: 0 is visible).

    Returns:
        Whether it does, tried on four random masks.
    """
    if dtype != torch.bool and not dtype.is_floating_point:
        return False
    generator = torch.Generator().manual_seed(0)
    tokens = shape[-1]
    for trial in range(4):
        drawn = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
        visible = drawn < (1.1 if not trial else 0.6)
        visible[..., 0] = True
        given = visible if dtype == torch.bool else torch.zeros_like(drawn, dtype=dtype).masked_fill(~visible, -1e4)
        try:
            wide = expand(given.clone())
        except Exception:  # the arguments between mean something else by that number: no explanation
            return False
        if not isinstance(wide, torch.Tensor) or wide.shape[-1] != tokens or wide.shape[-2] not in (1, tokens):
            return False
        seen = wide if wide.dtype == torch.bool else wide > -1e4 / 2
        rows = visible.reshape(-1, tokens)  # (batch or 1, tokens)
        seen = seen.reshape(-1, *wide.shape[-3:]) if wide.ndim >= 3 else seen[None, None]
        seen = seen.expand(max(len(seen), len(rows)), -1, tokens, tokens)
        for sample in range(len(seen)):
            keys = rows[sample % len(rows)]
            if not bool((seen[sample][:, keys] == keys).all()):
                return False
    return True
