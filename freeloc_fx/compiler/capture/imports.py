"""Modules that a model imports by their names while it runs, as Dynamo has them that it imports by a statement.

Code that chooses a kernel at its first call writes `import_module(f"package.for_{device}")`, which Dynamo is told not
to look into. What it gives is a constant: the module of that name, imported as the call would have imported it.
"""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType
from typing import Any

import torch

__all__ = ["let_imports_through"]

_IMPORTED = ModuleType("modules that captured code imported by name")
"""Holds them by the names of `_PLACES`; a module, since Dynamo looks into one at each use and guards what it reads."""

_PLACES: dict[str, str] = {}
"""Full name of a module -> attribute that holds it."""

_LET_THROUGH: list[bool] = []


def let_imports_through() -> None:
    """Let Dynamo follow `importlib.import_module`, in this process, from now on; nothing where it does by itself."""
    if _LET_THROUGH:
        return
    _LET_THROUGH.append(True)
    constant: Any = torch.compiler.assume_constant_result  # says so on the function itself
    constant(_place_of)
    with contextlib.suppress(ValueError):  # what torch says of functions that it, or somebody before, has let through
        torch.compiler.substitute_in_graph(importlib.import_module)(_traced)


def _traced(name: str, package: str | None = None) -> ModuleType:
    """What Dynamo follows in place of `importlib.import_module`."""
    place, kind, message = _place_of(name, package)
    if kind == "ModuleNotFoundError":
        raise ModuleNotFoundError(message)
    if kind == "ImportError":
        raise ImportError(message)
    if kind == "OSError":  # of a shared library that is not there
        raise OSError(message)
    module: ModuleType = getattr(_IMPORTED, place)
    return module


def _place_of(name: str, package: str | None) -> tuple[str, str, str]:
    """Import a module; give the attribute that holds it, or what was raised: which of its kinds, and what it says."""
    try:
        module = importlib.import_module(name, package)
    except (ImportError, OSError) as error:
        kinds = (ModuleNotFoundError, ImportError, OSError)
        return "", next(kind.__name__ for kind in kinds if isinstance(error, kind)), str(error) or name
    place = _PLACES.setdefault(module.__name__, f"module_{len(_PLACES)}")
    setattr(_IMPORTED, place, module)
    return place, "", ""
