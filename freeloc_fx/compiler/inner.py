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
        ValueError: an unknown name, keyword, mode or option, or something else in place of them; the message lists what
            there is.
    """
    options: dict[str, Any] = (
        {"backend": backend} if not isinstance(backend, Mapping) else {"backend": "inductor", **backend}
    )
    unknown = options.keys() - {"backend", "mode", "options"}
    if unknown:
        raise ValueError(f"backend: expected the keys 'backend', 'mode', 'options', found {sorted(unknown)}")
    name, mode, own = options["backend"], options.get("mode"), options.get("options")
    if not isinstance(name, str) and not callable(name):
        raise ValueError(
            f"backend: expected a name, a callable or a mapping of torch.compile's options, found {name!r}"
        )
    if name == "eager":
        return None
    if callable(name) and not mode and not own:
        return name  # type: ignore[no-any-return]
    if isinstance(name, str) and name not in backend_names(all_of_them=True):
        raise ValueError(f"backend: expected 'eager' or one of {backend_names()}, found {name!r}")
    if own is not None and not isinstance(own, Mapping):
        raise ValueError(f"backend: expected a mapping of options, found {own!r}")
    try:
        return torch_compiler(name, mode, own)
    except (RuntimeError, TypeError, AttributeError) as error:  # torch checks modes and options here
        raise ValueError(f"backend: {error}") from error
