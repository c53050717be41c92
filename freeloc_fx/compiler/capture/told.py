"""Arguments whose values a block branches on or counts by: it is called with the values, a graph for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["Sizes", "tell", "worth_telling"]


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


def worth_telling(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether any argument is a tensor of one truth value, or of frames, rows and columns.

    Args:
        args: of a block.
        kwargs: of a block.
    """
    return any(_is_flag(value) or _is_sizes(value) for value in (*args, *kwargs.values()))


def tell(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with values in place of such tensors.

    LTX2 takes whether all samples are perturbed, Wan's own code a table of clips' sizes.

    Args:
        args: of a block.
        kwargs: of a block.
    """
    return tuple(map(_told, args)), {name: _told(value) for name, value in kwargs.items()}


def _told(value: Any) -> Any:
    if _is_flag(value):
        return bool(value)
    return Sizes([[int(n) for n in row] for row in value.tolist()]) if _is_sizes(value) else value


def _is_flag(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.ndim == 0


def _is_sizes(value: Any) -> bool:
    whole = isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64)
    return whole and value.ndim == 2 and value.shape[1] == 3
