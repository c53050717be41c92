"""The operator that stands for a hooked leaf module."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import opaque_operator, outside_fake_mode
from freeloc_fx.errors import CaptureError

__all__ = ["OPERATOR", "Leaf", "leaf_call"]


_CALLS: weakref.WeakValueDictionary[str, Leaf] = weakref.WeakValueDictionary()


_NUMBERS = itertools.count()  # two transformed copies of one model have leaves of their own


class Leaf:
    """One hooked module without children and how it is called: x (..., channels) -> (..., channels out).

    Args:
        path: of the module in the model.
        module: with its hooks in place.
    """

    def __init__(self, path: str, module: nn.Module) -> None:
        self.key = f"{path}#{next(_NUMBERS)}"
        self.call: Callable[..., Any] = module.forward
        self.stand_in = self.forward  # one object, so that a swap can tell its own
        self.results: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}
        _CALLS[self.key] = self

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """A row of zeros through the module: its result tells channels and dtype of any other."""
        known = (int(x.shape[-1]), x.dtype, x.device)
        if known not in self.results:
            with outside_fake_mode(), torch.no_grad():
                row = torch.zeros((1,) * (x.ndim - 1) + (known[0],), dtype=x.dtype, device=x.device)
                self.results[known] = self.call(row)
        return self.results[known]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the module's forward during a capture."""
        if len(args) != 1 or kwargs:
            return self.call(*args, **kwargs)
        return OPERATOR(args[0], self.key)


@opaque_operator("freeloc_fx::leaf_call")
def leaf_call(x: torch.Tensor, leaf: str) -> torch.Tensor:
    """Call a hooked leaf with its hooks.

    Args:
        x: (..., channels), any dtype that the module takes.
        leaf: key of a `Leaf` that lives.

    Returns:
        (..., channels out), contiguous.

    Raises:
        CaptureError: no such leaf lives.
    """
    known = _CALLS.get(leaf)
    if known is None:
        raise CaptureError(f"leaf call {leaf!r}: expected a module of a transformed model that lives, found none")
    result: torch.Tensor = known.call(x).contiguous()
    return result.clone() if result.data_ptr() == x.data_ptr() else result  # an operator's result is its own


@leaf_call.register_fake
def _(x: torch.Tensor, leaf: str) -> torch.Tensor:
    row = _CALLS[leaf].like(x)
    return x.new_empty((*x.shape[:-1], row.shape[-1]), dtype=row.dtype)


OPERATOR = torch.ops.freeloc_fx.leaf_call.default
"""The operator as a graph calls it."""
