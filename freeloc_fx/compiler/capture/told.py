"""Arguments whose values a block branches on or counts by: it is called with the values, a graph for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["Lengths", "Sizes", "holds_lengths", "tell", "with_lengths", "worth_telling"]


_WHOLE = (torch.int32, torch.int64)


class Sizes:
    """Frames, rows and columns of each clip of a batch as numbers, in place of a tensor of them.

    Args:
        rows: the numbers, one row a clip.
    """

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def tolist(self) -> list[list[int]]:
        """The numbers, one row a clip."""
        return self.rows

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)


class Lengths:
    """Tokens of each clip of a batch as numbers, in place of a tensor of them.

    Args:
        numbers: one a clip.
        like: the tensor.
    """

    def __init__(self, numbers: list[int], like: torch.Tensor) -> None:
        self.numbers, self.dtype, self.device = numbers, like.dtype, like.device

    def tensor(self) -> torch.Tensor:
        """A tensor of them again: made inside a compiled call, its values are known there."""
        return torch.tensor(self.numbers, dtype=self.dtype, device=self.device)


def worth_telling(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether any argument is a tensor of one truth value, or of frames, rows and columns.

    Args:
        args: of a block.
        kwargs: of a block.
    """
    return any(_is_flag(value) or _is_sizes(value) for value in (*args, *kwargs.values()))


def tell(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with values in place of such tensors.

    LTX2 takes whether all samples are perturbed, Wan's own code a table of clips' sizes, and how many tokens each clip
    has, by which it packs keys for flash_attn. Numbers are told for such only that say what the table says: others may
    differ from step to step.

    Args:
        args: of a block.
        kwargs: of a block.
    """
    tokens = [[math.prod(row) for row in _rows(one)] for one in (*args, *kwargs.values()) if _is_sizes(one)]
    return tuple(_told(one, tokens) for one in args), {name: _told(one, tokens) for name, one in kwargs.items()}


def holds_lengths(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether `with_lengths` would change anything.

    Args:
        args: of a block, as `tell` gives them.
        kwargs: of a block, as `tell` gives them.
    """
    return any(isinstance(one, Lengths) for one in (*args, *kwargs.values()))


def with_lengths(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with tensors in place of `Lengths`, for the inside of a compiled call.

    Args:
        args: of a block, as `tell` gives them.
        kwargs: of a block, as `tell` gives them.
    """
    made = tuple(one.tensor() if isinstance(one, Lengths) else one for one in args)
    return made, {name: one.tensor() if isinstance(one, Lengths) else one for name, one in kwargs.items()}


def _told(value: Any, tokens: list[list[int]]) -> Any:
    if _is_flag(value):
        return bool(value)
    if _is_sizes(value):
        return Sizes(_rows(value))
    counts = isinstance(value, torch.Tensor) and value.dtype in _WHOLE and value.ndim == 1
    return Lengths(value.tolist(), value) if counts and value.tolist() in tokens else value


def _rows(sizes: torch.Tensor) -> list[list[int]]:
    return [[int(n) for n in row] for row in sizes.tolist()]


def _is_flag(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.ndim == 0


def _is_sizes(value: Any) -> bool:
    whole = isinstance(value, torch.Tensor) and value.dtype in _WHOLE
    return whole and value.ndim == 2 and value.shape[1] == 3
