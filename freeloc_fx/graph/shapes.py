"""Shapes that Dynamo recorded on nodes."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.compat import example_value

__all__ = ["UNKNOWN", "bounded_shape", "depends_on_data", "shape_of", "size_of", "value_of"]


UNKNOWN = -1
"""In a shape: a size that is only known when the graph runs (the length of what torch.nonzero found)."""


def value_of(node: fx.Node) -> Any:
    """The value that Dynamo recorded on a node: a tensor without data, a number, or None."""
    return example_value(node)


def depends_on_data(node: fx.Node) -> bool:
    """Whether a node is a size, or a tensor of a size, that is only known when the graph runs."""
    value = value_of(node)
    if isinstance(value, torch.Tensor):
        return any(not isinstance(n, int) for n in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape recorded by Dynamo, UNKNOWN where a size depends on data; None for nodes that are not tensors."""
    value = value_of(node)
    return tuple(map(_known, value.shape)) if isinstance(value, torch.Tensor) else None


def size_of(shape: Iterable[int]) -> int:
    """How many elements a tensor of this shape has."""
    return math.prod(shape)


def bounded_shape(node: fx.Node) -> tuple[int, ...] | None:
    """`shape_of` with the largest size there may be where a size depends on data: what indexing picks from."""
    shape = shape_of(node)
    if shape is None or UNKNOWN not in shape:
        return shape
    axis = shape.index(UNKNOWN)
    if node.target in (torch.cat, torch.concat):
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        sizes = [(bounded_shape(n) or shape)[axis] for n in parts]
        bound = UNKNOWN if UNKNOWN in sizes else sum(sizes)
    else:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        before = bounded_shape(source) if source is not None else None
        same = node.target is operator.getitem or node.target in ("contiguous", "to", "float", "type_as", "clone")
        bound = before[axis] if same and before is not None and len(before) == len(shape) else UNKNOWN
    return tuple(bound if n == UNKNOWN and place == axis else n for place, n in enumerate(shape))


def _known(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else UNKNOWN
