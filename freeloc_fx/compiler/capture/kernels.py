"""Python functions of attention packages that Dynamo cannot trace, as one operator each while it captures.

SageAttention's functions look at the device and quantise q and k before they call operators of their own. What they
compute is told by their arguments; an operator that is named after them and calls them lets a capture go on around
them, and what no strategy replaces calls them as before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["let_kernels_through"]


_PACKAGES = {"sageattention": "sageattn"}
"""Package -> what the names of its attention functions begin with."""


_FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Functions that are let through, by name; kept, since Dynamo knows them by their identity."""


_TAKEN = {"q", "k", "v", "tensor_layout", "is_causal", "sm_scale", "return_lse"}


@torch.library.custom_op("freeloc_fx::sageattn", mutates_args=())
def _operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    function: str,
    tensor_layout: str,
    is_causal: bool,
    sm_scale: float | None,
) -> torch.Tensor:
    given: Any = {"tensor_layout": tensor_layout, "is_causal": is_causal, "sm_scale": sm_scale}
    found: torch.Tensor = _FUNCTIONS[function](q, k, v, **given)
    return found


@_operator.register_fake
def _(q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def let_kernels_through() -> None:
    """Make such functions of packages that are imported by now one operator each, in this process, from now on."""
    for package, beginning in _PACKAGES.items():
        module = sys.modules.get(package)
        for name, function in list(vars(module).items()) if module is not None else ():
            if name.startswith(beginning) and inspect.isfunction(function):
                _let_through(f"{package}.{name}", function)


def _let_through(name: str, function: Callable[..., Any]) -> None:
    if (
        any(function is known for known in _FUNCTIONS.values())
        or not inspect.signature(function).parameters.keys() >= _TAKEN
    ):
        return
    key = name if name not in _FUNCTIONS else f"{name}#{len(_FUNCTIONS)}"
    _FUNCTIONS[key] = function

    def traced(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensor_layout: str = "HND",
        is_causal: bool = False,
        *rest: Any,
        sm_scale: float | None = None,
        return_lse: bool = False,
        **more: Any,
    ) -> torch.Tensor:
        if rest or more or return_lse:  # to Dynamo it is then a function that it cannot trace, as it was before
            beyond = [*more, *(["return_lse"] if return_lse else []), *(["arguments without a name"] if rest else [])]
            raise NotImplementedError(
                f"{key}: expected q, k, v, tensor_layout, is_causal and sm_scale, found {', '.join(beyond)}"
            )
        found: torch.Tensor = torch.ops.freeloc_fx.sageattn(q, k, v, key, tensor_layout, is_causal, sm_scale)
        return found

    torch.compiler.substitute_in_graph(function, skip_signature_check=True)(traced)
