"""Where the files of an embedded model are."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from freeloc_fx.errors import ModelError

__all__ = ["embedded_folder"]


def embedded_folder(package: str, needed: Sequence[str]) -> Path:
    """Find the folder "model" of an embedded model's package.

    Args:
        package: dotted name of the package, "freeloc_fx.generation.tiny_wan".
        needed: files that have to be there, relative to the folder.

    Returns:
        The folder.

    Raises:
        ModelError: a file is missing (a source checkout without weights, or a package inside an archive).
    """
    folder = Path(str(importlib.resources.files(package) / "model"))
    name = package.rpartition(".")[2]
    for file in needed:
        if not (folder / file).is_file():
            raise ModelError(
                f"{name.replace('_', '-')}: {folder / file} is missing; install freeloc_fx with its package data, "
                f"or make the folder with bench/train.py"
            )
    return folder
