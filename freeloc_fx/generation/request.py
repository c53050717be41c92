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
from freeloc_fx.compiler.capture.conventions import check_limits, config_of, layer_table, patches
from freeloc_fx.errors import LengthError, ModelError
from freeloc_fx.method.checks import is_whole
from freeloc_fx.planning.profile import Profile

from .components import first_transformer
from .embedded import EMBEDDED, TINY_WAN, Defaults, embedded, embedded_by_parts

__all__ = [
    "EMBEDDED",
    "TINY_WAN",
    "Defaults",
    "Facts",
    "check_frames",
    "check_request",
    "choose_profile",
    "defaults",
    "resolve_model",
]


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
        vae: configuration of the VAE; None where there is none.
        pipeline: class name of the pipeline; None where it is not known.
    """

    transformer: nn.Module
    temporal: int
    spatial: int
    vae: Mapping[str, Any] | None = None
    pipeline: str | None = None

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
        vae = getattr(pipe, "vae", None)
        known = None if vae is None else {"_class_name": type(vae).__name__, **getattr(vae, "config", {})}
        return cls(first_transformer(pipe), temporal, spatial, known, type(pipe).__name__)

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
        index = _read_config(source, None, options)
        return cls(stand_in, int(temporal), int(spatial), vae, index.get("_class_name"))

    @property
    def every(self) -> int:
        """Video frames from one length that the model can make to the next, counted from a single frame.

        One latent frame's, but for two of diffusers' VAEs: CogVideoX's decodes two latent frames at a time, and makes
        frames of an even number of them that nobody asked for; Allegro's pipeline cuts what is too many.
        """
        kind = (self.vae or {}).get("_class_name")
        return {"AutoencoderKLCogVideoX": 2 * self.temporal, "AutoencoderKLAllegro": 1}.get(str(kind), self.temporal)

    def latent_frames(self, frames: int) -> tuple[int, int]:
        """Latent frames that the pipeline puts before a clip, so that patches over time fit, and those of the clip.

        Args:
            frames: of the video.
        """
        if (self.vae or {}).get("_class_name") == "AutoencoderKLAllegro" and frames % 2 == 0:
            return 0, -(-frames // self.temporal)  # there the first latent frame stands for as many as the others
        count = -(-(frames - 1) // self.temporal) + 1
        fills = "use_rotary_positional_embeddings" in config_of(self.transformer)  # CogVideoX 1.5's pipelines do
        return (-count % patches(self.transformer)[0] if fills else 0), count

    def video_frames(self, profile_frames: int, argument: str = "frames") -> int:
        """Frames of a video that a profile counts as so many latent frames, which the model takes in patches over time.

        Args:
            profile_frames: latent frames as `Profile.trained_frames` counts them.
            argument: what a message calls the number of frames.

        Raises:
            LengthError: the model makes no such video, see `check_frames`.
        """
        front, _ = self.latent_frames(1)  # what comes before a clip that ends with the first latent frame of a patch
        frames = (patches(self.transformer)[0] * profile_frames - front - 1) * self.temporal + 1
        check_frames(self, frames, argument=argument)
        return frames

    def profile_frames(self, frames: int) -> int:
        """How many latent frames a profile counts in a video, see `video_frames`.

        Args:
            frames: of the video.
        """
        return sum(self.latent_frames(frames)) // patches(self.transformer)[0]

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


def _read_config(source: str, part: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of one part of a pipeline, or the index of its parts."""
    from diffusers.configuration_utils import ConfigMixin

    class Reader(ConfigMixin):
        config_name = "config.json" if part else "model_index.json"  # type: ignore[assignment]

    try:
        return dict(Reader.load_config(source, subfolder=part, **options))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"the configuration of its {part}" if part else "model_index.json"
        raise ModelError(f"model {source!r}: {what} cannot be read: {why}") from error


def defaults(pipe: Any | None = None, model: str | os.PathLike[str] | None = None) -> Defaults:
    """Give size, steps and guidance for a request that names none.

    They follow the transformer and the VAE, not where these were loaded from: those of an embedded model are its own
    (64x64, 20 steps, guidance 3), any other pipeline's what its call defaults to (Wan: 480x832, 50, 5), or the size of
    the transformer's own samples where the call says none.

    Args:
        pipe: a loaded pipeline, or `Facts`, or None.
        model: the model's name where it is not loaded. A hub id tells nothing without its files, which `Facts.read`
            reads.

    Returns:
        The defaults; Wan's where neither argument tells.

    Raises:
        TypeError: `pipe` is a model.
        TransformError: the pipeline has no transformer.
        ModelError: the model's folder holds no video pipeline.
    """
    if pipe is None and model is not None:
        ours = embedded(model)
        if ours is not None:
            return ours.defaults
        pipe = Facts.read(os.fspath(model)) if Path(model).expanduser().is_dir() else None
    height, width, steps, guidance = 480, 832, 50, 5.0
    if pipe is None:
        return Defaults(height, width, steps, guidance)
    facts = pipe if isinstance(pipe, Facts) else Facts.of(pipe)
    config: Any = getattr(facts.transformer, "config", {})
    known = {"_class_name": type(facts.transformer).__name__, **dict(config)}
    ours = embedded_by_parts(known, facts.vae)
    if ours is not None:
        return ours.defaults
    named = _call_defaults(facts.pipeline) if pipe is facts else inspect.signature(pipe.__call__).parameters
    own = {"height": config.get("sample_height"), "width": config.get("sample_width")}
    sizes = {side: value * facts.spatial for side, value in own.items() if is_whole(value, 1)}

    def usual(name: str, fallback: float) -> float:
        value = named[name].default if name in named else None
        for found in (value, getattr(pipe, f"default_{name}", None), sizes.get(name)):
            if isinstance(found, (int, float)) and not isinstance(found, bool):
                return found
        return fallback

    return Defaults(
        int(usual("height", height)),
        int(usual("width", width)),
        int(usual("num_inference_steps", steps)),
        float(usual("guidance_scale", guidance)),
    )


def _call_defaults(pipeline: str | None) -> Mapping[str, inspect.Parameter]:
    """Parameters of the call of one of diffusers' pipelines; empty for any other."""
    import diffusers

    found = getattr(diffusers, pipeline, None) if pipeline else None
    return inspect.signature(found.__call__).parameters if isinstance(found, type) else {}


def check_frames(facts: Facts, frames: int, *, argument: str = "frames") -> int:
    """Refuse a number of frames that the model's VAE cannot make.

    Args:
        facts: of the pipeline.
        frames: frames of the video.
        argument: what a message calls the number of frames.

    Returns:
        Latent frames of the clip.

    Raises:
        LengthError: frames are no integer, or not 1 more than a multiple of `facts.every`; the message names the
            nearest valid values.
    """
    step = facts.every
    if not is_whole(frames):
        raise LengthError(f"{argument}: expected an integer of at least 1, found {frames!r}")
    if frames < 1 or frames % step != 1 % step:
        below = max(1, (frames - 1) // step * step + 1)
        near = f"{below}" if frames < 1 else f"{below} and {below + step}"
        raise LengthError(f"{argument}={frames}: this model makes {step}n+1 frames, the nearest are {near}")
    return facts.latent_frames(frames)[1]


def check_request(pipe: Any, frames: int, height: int, width: int, *, argument: str = "frames") -> tuple[int, int, int]:
    """Refuse a size that the model cannot make, before any long work.

    Args:
        pipe: a pipeline, or `Facts`.
        frames: frames of the video.
        height: of the video in pixels.
        width: of the video in pixels.
        argument: what a message calls the number of frames.

    Returns:
        Latent frames of the model's input (see `Facts.latent_frames`), latent height and latent width.

    Raises:
        LengthError: frames are not 1 more than a multiple of `Facts.every`, a side is not a multiple of a
            token's, or the model's position tables end before; the message names the nearest valid values.
    """
    facts = pipe if isinstance(pipe, Facts) else Facts.of(pipe)
    check_frames(facts, frames, argument=argument)
    for name, size, multiple in zip(("height", "width"), (height, width), facts.multiple, strict=True):
        if size < multiple or size % multiple:
            below = size // multiple * multiple
            near = f"{multiple}" if below < multiple else f"{below} and {below + multiple}"
            raise LengthError(f"{name}={size}: expected a multiple of {multiple} pixels, the nearest are {near}")
    latent = sum(facts.latent_frames(frames)), height // facts.spatial, width // facts.spatial
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
    config = config_of(model)
    count = config.get("num_layers")
    if isinstance(count, int) and not layer_table(model):  # a stand-in, which has no blocks to be counted
        chosen.check_layers(count + int(config.get("num_single_layers") or 0) + len(config.get("vace_layers") or ()))
    return chosen
