"""Which of FlexAttention's kernels may be asked for: `kernel_options={"BACKEND": ...}`.

The results of several calls merge by their log-sum-exp, so a kernel that returns a wrong one is wrong in silence:
torch's FLASH kernels (FA4) were off by ln 2 before torch 2.13. They are allowed from that version on, and only where
one small call agrees with the plain formula on the device at hand.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from freeloc_fx.attention.cache import Cache
from freeloc_fx.errors import CaptureError

from .options import FlexOptions

__all__ = ["check_backend", "log_sum_exp_error"]

_FIRST = (2, 13)
"""The first version of torch whose FLASH kernels return the right log-sum-exp."""


_errors = Cache(16)
"""(device, dtype, kernel options) -> what `log_sum_exp_error` found; a measurement, which is made once."""


def check_backend(options: FlexOptions, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Refuse FLASH kernels where they are not known to be right.

    Args:
        options: choices about FlexAttention.
        device: where it runs.
        dtype: of q, k and v.
        head_dim: channels of a head.

    Raises:
        CaptureError: FLASH without CUDA, with a torch before 2.13, or where its log-sum-exp is wrong.
    """
    if dict(options.kernel_options).get("BACKEND") != "FLASH":
        return
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    about = "attention.flex.kernel_options: BACKEND 'FLASH'"
    if version < _FIRST:
        raise CaptureError(
            f"{about} wants torch {_FIRST[0]}.{_FIRST[1]}, found {torch.__version__}: its log-sum-exp was off by ln 2 "
            "before; leave BACKEND out"
        )
    if device.type != "cuda":
        raise CaptureError(f"{about} wants a CUDA device, found {device}; leave BACKEND out")
    key = (device, dtype, head_dim, options.kernel_options)
    error = _errors.get(key, lambda: log_sum_exp_error(options, device, dtype, head_dim))
    if not error <= 0.02:
        raise CaptureError(
            f"{about} on {torch.cuda.get_device_name(device)}: its log-sum-exp differs by {error:.3g} from the plain "
            "formula, expected at most 0.02; leave BACKEND out"
        )


def log_sum_exp_error(options: FlexOptions, device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """How far the log-sum-exp of one small call is from the plain formula.

    Args:
        options: choices about FlexAttention.
        device: where it runs.
        dtype: of q, k and v.
        head_dim: channels of a head.

    Returns:
        The largest absolute difference; NaN where there is one.
    """
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 256, head_dim, generator=random).to(device, dtype) for _ in range(3))

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor | None:
        given: Any = dict(options.kernel_options)
        return flex_attention(q, k, v, kernel_options=given, return_aux=AuxRequest(lse=True))[1].lse

    call.__code__ = call.__code__.replace()  # Dynamo counts what it compiles by code object
    with torch.no_grad():
        run = torch.compile(call, backend="inductor" if device.type == "cuda" else "aot_eager", dynamic=False)
        found = run(q, k, v)
        expected = (q.double() @ k.double().transpose(-1, -2) / math.sqrt(head_dim)).logsumexp(-1)
    assert found is not None
    return float((found.double() - expected).abs().max())
