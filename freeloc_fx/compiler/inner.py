"""The next compiler: what torch.compile would call for a backend's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.fx as fx

from freeloc_fx.compat import backend_names, torch_compiler

__all__ = ["Compiler", "compiler"]

Compiler = Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]


def compiler(backend: str | Callable[..., Any] | Mapping[str, Any]) -> Compiler | None:
    """What torch.compile would call for `backend`; None for "eager".

    Args:
        backend: a name, a callable (graph module, inputs) -> callable, or a mapping of torch.compile's own keywords
            "backend", "mode" and "options".

    Returns:
        A callable (graph module, inputs) -> callable, or None.

    Raises:
        ValueError: an unknown name or keyword; the message lists what there is.
    """
    options: dict[str, Any] = (
        {"backend": backend} if not isinstance(backend, Mapping) else {"backend": "inductor", **backend}
    )
    unknown = options.keys() - {"backend", "mode", "options"}
    if unknown:
        raise ValueError(f"backend: expected the keys 'backend', 'mode', 'options', found {sorted(unknown)}")
    name = options["backend"]
    if name == "eager":
        return None
    if callable(name) and not options.get("mode") and not options.get("options"):
        return name  # type: ignore[no-any-return]
    if isinstance(name, str) and name not in backend_names(all_of_them=True):
        raise ValueError(f"backend: expected 'eager' or one of {backend_names()}, found {name!r}")
    return torch_compiler(name, options.get("mode"), options.get("options"))
