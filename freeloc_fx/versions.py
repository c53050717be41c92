"""Versions of other libraries that this one was tested with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType

from freeloc_fx.compat import release

__all__ = ["NEWEST", "warn_of_newer"]

NEWEST: Mapping[str, tuple[int, int]] = MappingProxyType({"torch": (2, 15), "diffusers": (0, 42)})
"""The newest release, by its first two numbers, with which the whole suite has passed; see CONTRIBUTING.md."""


def warn_of_newer() -> None:
    """Warn where an installed library is newer than any that was tested: what it has changed may show as a refusal.

    Nothing is refused for its version. Python shows a warning of one text once a process.
    """
    for name, newest in NEWEST.items():
        if release(name) > newest:
            tested = ".".join(map(str, newest))
            warnings.warn(
                f"{name} {version(name)} is newer than {tested}, the newest that freeloc_fx was tested with; if "
                f"something is refused that worked before, try {name} {tested}",
                stacklevel=3,
            )
