"""How far a fast way may be from the literal one before `verify=True` raises."""

from __future__ import annotations

import torch

from ..errors import VerificationError

__all__ = ["check_agreement"]


def check_agreement(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, about: str) -> None:
    """Compare two tensors of one shape by the norm of their difference.

    dtype: that the attention ran in. about: begins the message.

    Raises:
        VerificationError: they differ by more than 1e-4 of the expected norm, 3e-2 in half precision, or by NaN.
    """
    found, expected = found.double(), expected.double()
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    limit = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
    if not error <= limit:
        raise VerificationError(f"{about}: expected a relative error of at most {limit}, found {error:.2g}")
