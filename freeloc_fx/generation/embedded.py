"""The models that come with the package: where their files are, how they are loaded, what a request leaves out."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from . import tiny_joint, tiny_wan

__all__ = ["EMBEDDED", "TINY_JOINT", "TINY_WAN", "Defaults", "Embedded", "embedded", "embedded_by_parts", "loader_of"]


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
        pipeline: name of the pipeline's class where that is this package's own; None where it is one of diffusers'.
    """

    package: ModuleType
    defaults: Defaults
    loader: Callable[[], Any] = _diffusers
    shared: Mapping[str, ModuleType] = field(default_factory=dict)
    pipeline: str | None = None

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
        TINY_JOINT: Embedded(tiny_joint, Defaults(64, 64, 20, 3.0), _joint, {"vae": tiny_wan}, "TinyJointPipeline"),
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


def loader_of(model: str | os.PathLike[str]) -> Any:
    """Find the class whose `from_pretrained` takes a model: an embedded one's, also for other folders of its kind.

    Args:
        model: an embedded model's name, a pipeline's folder, or a hub id.

    Returns:
        The class; diffusers' own for whatever names none of ours.

    Raises:
        ValueError: the folder's model_index.json is no JSON.
    """
    ours = embedded(model)
    if ours is not None:
        return ours.loader()
    index = Path(model) / "model_index.json"
    named = json.loads(index.read_text(encoding="utf-8")).get("_class_name") if index.is_file() else None
    loaders = [found.loader for found in EMBEDDED.values() if named is not None and found.pipeline == named]
    return loaders[0]() if loaders else _diffusers()


def embedded_by_parts(transformer: Mapping[str, Any], vae: Mapping[str, Any] | None) -> Embedded | None:
    """Find the embedded model that a transformer and a VAE are of, wherever they were loaded from.

    Args:
        transformer: its configuration, with "_class_name".
        vae: its configuration, with "_class_name"; None where the pipeline has none.

    Returns:
        The model; None where they are of another, or of no one.
    """
    for name in EMBEDDED:
        parts = {"transformer": transformer} | ({} if vae is None else {"vae": vae})
        if all(_same(_config(name, part), config) for part, config in parts.items()):
            return EMBEDDED[name]
    return None


@functools.cache
def _config(name: str, part: str) -> Mapping[str, Any]:
    """The configuration of a part of an embedded model; empty where the file is missing."""
    found = EMBEDDED[name]
    package = found.shared.get(part, found.package)
    path = Path(str(package.__file__)).parent / "model" / part / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _same(expected: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a configuration is the expected one: the class, and every setting that a file of it has."""
    names = {key for key in expected if not key.startswith("_")} | {"_class_name"}
    return bool(expected) and all(_plain(config.get(key)) == _plain(expected.get(key)) for key in names)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
