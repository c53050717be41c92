"""Where `passes` and `profiles` are in a source checkout: beside this package's folder, not inside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__all__ = ["find_beside"]

BESIDE = ("passes", "profiles")
"""Packages that an install places inside this one."""


class _Beside:
    """Finds them there, as the same modules that an install has.

    The checkout on the package's own search path would do that too, but whoever walks the packages would then find this
    package inside itself, and in that one again.
    """

    def __init__(self, package: str, folder: str) -> None:
        self.folder = folder
        self.names = tuple(f"{package}.{name}" for name in BESIDE)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer the import system's question to every finder.

        Args:
            fullname: of the module that is imported.
            path: the package's search path, which is not needed.
            target: a module to load again, which is not needed.

        Returns:
            A spec of one of `BESIDE`; None for all other names.
        """
        return PathFinder.find_spec(fullname, [self.folder]) if fullname in self.names else None


def find_beside(package: str) -> None:
    """Make `BESIDE` importable where this is a source checkout; elsewhere nothing is done.

    Args:
        package: name of this package.
    """
    folder = Path(__file__).resolve().parent.parent
    if not (folder / BESIDE[0]).is_dir() or not (folder / "pyproject.toml").is_file():
        return
    # By name: reloading this module makes the class anew.
    if not any(type(finder).__name__ == _Beside.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Beside(package, str(folder)))
