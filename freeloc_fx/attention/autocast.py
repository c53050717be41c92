"""Operators of this library under torch.autocast: cast like scaled_dot_product_attention on CPU, CUDA and XPU."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["take_part_in_autocast"]

_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU"}
"""Device type -> the dispatch key under which autocast calls an operator there."""

_LIBRARY = torch.library.Library("freeloc_fx", "FRAGMENT")


def take_part_in_autocast(operator: Any) -> None:
    """Let autocast cast an operator's q, k and v to its dtype, so that they never arrive in different ones.

    The casts are operations of their own, which a compiler traces: inside compiled code autocast is off.

    Args:
        operator: one whose first three arguments are q, k and v.
    """
    for device, key in _DEVICES.items():

        def cast(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, device: str = device, **named: Any
        ) -> Any:
            dtype = torch.get_autocast_dtype(device)
            # As autocast's own rule: float64 and what is no floating point stay as they are.
            q, k, v = (x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in (q, k, v))
            with torch.autocast(device, enabled=False):
                return operator(q, k, v, *rest, **named)

        _LIBRARY.impl(operator.name().removeprefix("freeloc_fx::"), cast, key)
