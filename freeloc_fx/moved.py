"""Old names of this library's modules, which keep working."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType

__all__ = ["MOVED", "keep_old_names"]

MOVED: Mapping[str, str] = MappingProxyType(
    {
        "decoding": "generation.decoding",
        "generate": "generation.pipelines",
        "metrics": "evaluation.metrics",
        "noise": "generation.noise",
        "report": "evaluation.report",
        "tiny_joint": "generation.tiny_joint",
        "tiny_wan": "generation.tiny_wan",
        "video": "generation.video",
        "windows": "generation.windows",
    }
)
"""Old name of a module or package below this package -> new name."""


class _Moved:
    """Finds modules under their old names: imports the one at the new name, so that both names are one module.

    A module found in this way is the very module of the new name, with the same classes and functions. Files below a
    moved package would otherwise be loaded a second time through the package's search path, hence the finder comes
    before Python's own.
    """

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer the import system's question to every finder.

        Args:
            fullname: of the module that is imported.
            path: the package's search path, which is not needed.
            target: a module to load again, which is not needed.

        Returns:
            A spec that leads to the module of the new name; None for all names but those below `MOVED`.
        """
        if not fullname.startswith(f"{self.package}."):
            return None
        first, _, rest = fullname[len(self.package) + 1 :].partition(".")
        if first not in MOVED:
            return None
        name = ".".join(part for part in (self.package, MOVED[first], rest) if part)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                return None
            raise
        return ModuleSpec(fullname, _Same(name))  # type: ignore[arg-type]


class _Same:
    """Loads a module that there is already, and leaves it as it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Give the module of the new name."""
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Put its own spec back: the import system has put the old name's there, and `reload` goes by it."""
        module.__spec__ = self.spec


def keep_old_names(package: str) -> None:
    """Make the modules of `MOVED` importable under their old names too. They are imported when they are asked for.

    Args:
        package: name of this package.
    """
    # By name: reloading this module makes the class anew.
    there = (finder for finder in sys.meta_path if type(finder).__name__ == _Moved.__name__)
    if not any(getattr(finder, "package", None) == package for finder in there):
        sys.meta_path.insert(0, _Moved(package))
