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

from .embedded import EMBEDDED, TINY_WAN, Defaults, embedded
from .errors import LengthError
from .inputs import check_limits
from .profile import Profile
from .tiny_wan import ModelError

__all__ = ["EMBEDDED", "TINY_WAN", "Defaults", "Facts", "check_request", "choose_profile", "defaults", "resolve_model"]


@dataclass(frozen=True)
class Facts:
    """What a request must fit.

    transformer: the model, or a stand-in with its class name and `.config` but no weights. temporal, spatial: frames
    and pixels that one latent stands for.
    """

    transformer: nn.Module
    temporal: int
    spatial: int

    @classmethod
    def of(cls, pipe: Any) -> Facts:
        """Of a loaded pipeline."""
        model = pipe.transformer if getattr(pipe, "transformer", None) is not None else pipe.transformer_2
        temporal, spatial = (getattr(pipe, f"vae_scale_factor_{axis}", None) for axis in ("temporal", "spatial"))
        return cls(model, int(temporal or 4), int(spatial or 8))

    @classmethod
    def read(cls, model: str = TINY_WAN, **options: Any) -> Facts:
        """From a model's configuration files, without its weights.

        Args:
            model: see `load_pipeline`. options: `local_files_only`, `revision` and the like, for a model on a hub.

        Raises:
            ModelError: no such model, or its folder holds no video pipeline.
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
        patch = self.transformer.config.get("patch_size", 1)  # type: ignore[union-attr, operator]
        sizes = patch[-2:] if isinstance(patch, (list, tuple)) else (patch, patch)
        return self.spatial * int(sizes[0]), self.spatial * int(sizes[1])


def resolve_model(model: str | os.PathLike[str]) -> str:
    """A folder's path, or a hub id as it is.

    Raises:
        ModelError: a path that does not exist, or a folder without model_index.json.
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
    from diffusers.configuration_utils import ConfigMixin

    class Reader(ConfigMixin):
        config_name = "config.json"  # type: ignore[assignment]

    try:
        return dict(Reader.load_config(source, subfolder=part, **options))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {source!r}: the configuration of its {part} cannot be read: {why}") from error


def defaults(pipe: Any | None = None, model: str | os.PathLike[str] | None = None) -> Defaults:
    """Size, steps and guidance for a request that names none.

    An embedded model's are its own (64x64, 20 steps, guidance 3), any other pipeline's what its call defaults to (Wan:
    480x832, 50, 5).
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


def check_request(pipe: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Refuse a size that the model cannot make, before any long work. Returns latent frames, height and width.

    Args:
        pipe: a pipeline, or `Facts`.
        frames, height, width: of the video, in frames and pixels.

    Raises:
        LengthError: frames are not 1 more than a multiple of the VAE's temporal factor, a side is not a multiple of a
            token's, or the model's position tables end before; the message names the nearest valid values.
    """
    facts = pipe if isinstance(pipe, Facts) else Facts.of(pipe)
    step = facts.temporal
    if frames < 1 or frames % step != 1 % step:
        below = max(1, (frames - 1) // step * step + 1)
        near = f"{below}" if frames < 1 else f"{below} and {below + step}"
        raise LengthError(f"frames={frames}: this model makes {step}n+1 frames, the nearest are {near}")
    for name, size, multiple in zip(("height", "width"), (height, width), facts.multiple, strict=True):
        if size < multiple or size % multiple:
            below = size // multiple * multiple
            near = f"{multiple}" if below < multiple else f"{below} and {below + multiple}"
            raise LengthError(f"{name}={size}: expected a multiple of {multiple} pixels, the nearest are {near}")
    latent = (frames - 1) // step + 1, height // facts.spatial, width // facts.spatial
    check_limits(facts.transformer, *latent)
    return latent


def choose_profile(model: nn.Module, profile: Profile | str | Path | None = None) -> Profile:
    """The profile for a model (or a stand-in from `Facts`), checked against its class, configuration and layer count.

    Raises:
        ProfileError: no such profile, a malformed one, or none for this model. PlanError: it is for another model.
    """
    if profile is None:
        profile = Profile.for_model(model)
    elif not isinstance(profile, Profile):
        profile = Profile.load(profile)
    profile.check_model(model)
    config: Any = model.config
    count = config.get("num_layers")
    if isinstance(count, int):
        profile.check_layers(count + int(config.get("num_single_layers") or 0))
    return profile
