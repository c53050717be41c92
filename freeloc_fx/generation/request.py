"""What is asked of a model, checked against its configuration alone, before weights are loaded or anything runs."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from freeloc_fx.compiler import transform
from freeloc_fx.compiler.capture.conventions import check_limits, patches
from freeloc_fx.errors import LengthError, ModelError
from freeloc_fx.planning.profile import Profile

from .components import first_transformer
from .embedded import EMBEDDED, TINY_WAN, Defaults, embedded

__all__ = ["EMBEDDED", "TINY_WAN", "Defaults", "Facts", "check_request", "choose_profile", "defaults", "resolve_model"]


# What diffusers' pipelines call the compression of their VAE.
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")


@dataclass(frozen=True)
class Facts:
    """What a request must fit.

    Args:
        transformer: the model, or a stand-in with its class name and `.config` but no weights.
        temporal: video frames that one latent frame stands for (the first one stands for a single frame).
        spatial: pixels of a side that one latent stands for.
    """

    transformer: nn.Module
    temporal: int
    spatial: int

    @classmethod
    def of(cls, pipe: Any) -> Facts:
        """Read the facts of a loaded pipeline.

        Args:
            pipe: a diffusers pipeline; without a VAE it counts as one of 4 frames and 8 pixels.

        Returns:
            The facts, with the transformer that runs first.

        Raises:
            TypeError: `pipe` is a model.
            TransformError: the pipeline has no transformer.
        """
        temporal, spatial = (
            next((int(getattr(pipe, name)) for name in names if getattr(pipe, name, None)), usual)
            for names, usual in ((_TEMPORAL, 4), (_SPATIAL, 8))
        )
        return cls(first_transformer(pipe), temporal, spatial)

    @classmethod
    def read(cls, model: str = TINY_WAN, **options: Any) -> Facts:
        """Read the facts from a model's configuration files, without its weights.

        Args:
            model: see `load_pipeline`.
            **options: `local_files_only`, `revision` and the like, for a model on a hub.

        Returns:
            The facts, with a stand-in for the transformer.

        Raises:
            ModelError: there is no such model, or its folder holds no video pipeline.
        """
        source = resolve_model(model)
        ours = embedded(source)
        config, vae = (
            _read_config(source if ours is None else str(ours.folder(part)), part, options)
            for part in ("transformer", "vae")
        )
        stand_in = type(str(config.get("_class_name", "Module")), (nn.Module,), {})()
        stand_in.config = config
        temporal = vae.get("scale_factor_temporal") or vae.get("temporal_compression_ratio") or 4
        spatial = vae.get("scale_factor_spatial") or vae.get("spatial_compression_ratio") or 8
        return cls(stand_in, int(temporal), int(spatial))

    @property
    def multiple(self) -> tuple[int, int]:
        """Pixels that a height and a width must be multiples of."""
        _, rows, columns = patches(self.transformer)
        return self.spatial * rows, self.spatial * columns


def resolve_model(model: str | os.PathLike[str]) -> str:
    """Find where a model is loaded from.

    Args:
        model: an embedded model's name, a pipeline's folder, or a hub id.

    Returns:
        The folder's path, or the hub id as it is.

    Raises:
        ModelError: the path does not exist, or the folder has no model_index.json.
    """
    name = os.fspath(model)
    if name in EMBEDDED:
        return str(EMBEDDED[name].folder())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ModelError(f"model {name!r}: the folder holds no model_index.json; expected a diffusers pipeline")
        return str(folder)
    if folder.exists():
        raise ModelError(f"model {name!r} is a file; expected the folder of a diffusers pipeline")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise ModelError(
            f"model {name!r}: no such folder; expected {', '.join(EMBEDDED)}, a folder, or a hub id OWNER/NAME"
        )
    return name


def _read_config(source: str, part: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of one part of a pipeline."""
    from diffusers.configuration_utils import ConfigMixin

    class Reader(ConfigMixin):
        config_name = "config.json"  # type: ignore[assignment]

    try:
        return dict(Reader.load_config(source, subfolder=part, **options))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {source!r}: the configuration of its {part} cannot be read: {why}") from error


def defaults(pipe: Any | None = None, model: str | os.PathLike[str] | None = None) -> Defaults:
    """Give size, steps and guidance for a request that names none.

    An embedded model's are its own (64x64, 20 steps, guidance 3), any other pipeline's what its call defaults to (Wan:
    480x832, 50, 5).

    Args:
        pipe: a loaded pipeline, or None.
        model: the model's name where it is not loaded; None: the name that the pipeline carries.

    Returns:
        The defaults; Wan's where neither argument tells.
    """
    name = os.fspath(model) if model is not None else str(getattr(pipe, "name_or_path", ""))
    ours = embedded(name)
    if ours is not None:
        return ours.defaults
    known = inspect.signature(pipe.__call__).parameters if pipe is not None else {}
    fallback = {"height": 480, "width": 832, "num_inference_steps": 50, "guidance_scale": 5.0}
    found = {key: known[key].default if key in known else value for key, value in fallback.items()}
    values = [found[key] if isinstance(found[key], (int, float)) else value for key, value in fallback.items()]
    return Defaults(int(values[0]), int(values[1]), int(values[2]), float(values[3]))


def check_request(pipe: Any, frames: int, height: int, width: int, *, argument: str = "frames") -> tuple[int, int, int]:
    """Refuse a size that the model cannot make, before any long work.

    Args:
        pipe: a pipeline, or `Facts`.
        frames: frames of the video.
        height: of the video in pixels.
        width: of the video in pixels.
        argument: what a message calls the number of frames.

    Returns:
        Latent frames, latent height and latent width.

    Raises:
        LengthError: frames are not 1 more than a multiple of the VAE's temporal factor, a side is not a multiple of a
            token's, or the model's position tables end before; the message names the nearest valid values.
    """
    facts = pipe if isinstance(pipe, Facts) else Facts.of(pipe)
    step = facts.temporal
    if frames < 1 or frames % step != 1 % step:
        below = max(1, (frames - 1) // step * step + 1)
        near = f"{below}" if frames < 1 else f"{below} and {below + step}"
        raise LengthError(f"{argument}={frames}: this model makes {step}n+1 frames, the nearest are {near}")
    for name, size, multiple in zip(("height", "width"), (height, width), facts.multiple, strict=True):
        if size < multiple or size % multiple:
            below = size // multiple * multiple
            near = f"{multiple}" if below < multiple else f"{below} and {below + multiple}"
            raise LengthError(f"{name}={size}: expected a multiple of {multiple} pixels, the nearest are {near}")
    latent = (frames - 1) // step + 1, height // facts.spatial, width // facts.spatial
    check_limits(facts.transformer, *latent)
    return latent


def choose_profile(model: nn.Module, profile: Profile | str | Path | None = None) -> Profile:
    """Choose the profile for a model, checked against its class, configuration and layer count.

    Args:
        model: a transformer, or a stand-in from `Facts`.
        profile: a `Profile`, a shipped profile's name, or the path of a profile's file; None: the shipped profile for
            this model.

    Returns:
        The profile.

    Raises:
        TypeError: `profile` is of another type.
        ProfileError: there is no such profile, it is malformed, or none is shipped for this model.
        PlanError: the profile is for another model.
    """
    chosen = transform.choose_profile(model, profile)
    config: Any = model.config
    count = config.get("num_layers")
    if isinstance(count, int):  # a stand-in has no blocks to be counted
        chosen.check_layers(count + int(config.get("num_single_layers") or 0))
    return chosen
