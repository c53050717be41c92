"""How far a fast way may be from the literal one before `verify=True` raises."""

from __future__ import annotations

import torch

from freeloc_fx.errors import VerificationError

__all__ = ["check_agreement"]


def check_agreement(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, about: str) -> None:
    """Compare two tensors by the norm of their difference, relative to the norm of what was expected.

    Args:
        found: what the fast way gave, floating point, any shape.
        expected: what the literal way gave, of the same shape.
        dtype: in which the attention ran; it decides the limit: 1e-4 for float32 and float64, 3e-2 for half precision.
        about: begins the message.

    Raises:
        VerificationError: they differ by more than the limit, or by NaN.
    """
    found, expected = found.double(), expected.double()
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    limit = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
    if not error <= limit:
        raise VerificationError(f"{about}: expected a relative error of at most {limit}, found {error:.2g}")
