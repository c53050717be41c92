"""The models that come with the package: where their files are, how they are loaded, what a request leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from . import tiny_joint, tiny_wan

__all__ = ["EMBEDDED", "TINY_JOINT", "TINY_WAN", "Defaults", "Embedded", "embedded"]


TINY_WAN, TINY_JOINT = "tiny-wan", "tiny-joint"


@dataclass(frozen=True)
class Defaults:
    """What a request leaves out.

    Args:
        height: of the video in pixels.
        width: of the video in pixels.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
    """

    height: int
    width: int
    steps: int
    guidance: float


def _diffusers() -> Any:
    """The class that loads any pipeline of diffusers."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline


def _joint() -> Any:
    """The class of tiny-joint's pipeline."""
    from freeloc_fx.generation.tiny_joint.pipeline import TinyJointPipeline

    return TinyJointPipeline


@dataclass(frozen=True)
class Embedded:
    """An embedded model.

    Args:
        package: a package whose `path()` is the pipeline's folder.
        defaults: what a request for this model leaves out.
        loader: gives the class whose `from_pretrained` takes that folder; a function, since the class needs
            transformers.
        shared: parts of the pipeline that are another package's, by the part's name.
    """

    package: ModuleType
    defaults: Defaults
    loader: Callable[[], Any] = _diffusers
    shared: Mapping[str, ModuleType] = field(default_factory=dict)

    def folder(self, part: str | None = None) -> Path:
        """Find the pipeline's folder, or the one that holds a part of it as a subfolder.

        Args:
            part: name of a part of the pipeline, as in "vae"; None: the whole.

        Returns:
            The folder.

        Raises:
            ModelError: files are missing.
        """
        package = self.package if part is None else self.shared.get(part, self.package)
        return Path(package.path())


EMBEDDED: Mapping[str, Embedded] = MappingProxyType(
    {
        TINY_WAN: Embedded(tiny_wan, Defaults(64, 64, 20, 3.0)),
        TINY_JOINT: Embedded(tiny_joint, Defaults(64, 64, 20, 3.0), _joint, {"vae": tiny_wan}),
    }
)
"""Embedded models by name."""


def embedded(model: str | os.PathLike[str]) -> Embedded | None:
    """Find an embedded model by its name or by its folder.

    Args:
        model: an embedded model's name, the folder that the name stands for, or anything else.

    Returns:
        The model; None for any other.
    """
    name = os.fspath(model)
    if name in EMBEDDED:
        return EMBEDDED[name]
    for found in EMBEDDED.values():
        if Path(name) == Path(str(found.package.__file__)).parent / "model":
            return found
    return None
