"""From a model's name to a long video: load a pipeline, check a request before any long work, apply a strategy, run.

`freeloc generate` and `freeloc compare` are these functions with a progress bar; scripts call them directly:

    facts = Facts.read("tiny-wan")
    check_request(facts, 321, 64, 64)
    pipe = load_pipeline("tiny-wan")
    apply(pipe, strategy="vrpr+tsa")
    video = generate(pipe, prompt, frames=321)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .decoding import in_chunks
from .embedded import embedded
from .errors import FreelocError, TransformError
from .plan import Plan
from .profile import Profile
from .request import EMBEDDED, TINY_WAN, Defaults, Facts, check_request, choose_profile, defaults, resolve_model
from .strategy import parse
from .tiny_wan import ModelError
from .transform import plans, restore, transform

__all__ = [
    "EMBEDDED",
    "TINY_WAN",
    "Defaults",
    "Facts",
    "ModelError",
    "Video",
    "apply",
    "check_request",
    "choose_profile",
    "defaults",
    "generate",
    "load_pipeline",
    "resolve_model",
]

TRANSFORMERS = ("transformer", "transformer_2")
_TILE_FROM = 81 * 480 * 832  # pixels of a clip past which decoding is tiled: Wan 2.1's own clip still is not


@dataclass(frozen=True)
class Video:
    """A generated clip.

    frames: float32 RGB in [0, 1], (frames, height, width, 3). seconds: denoising and decoding. plan: what became of the
    attention, None where the model ran untransformed. settings: the request, JSON-serialisable.
    """

    frames: np.ndarray
    seconds: float
    plan: Plan | None
    settings: dict[str, Any] = field(default_factory=dict)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars from the libraries that load weights; the caller has its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [
        log
        for log in (diffusers_logging, transformers_logging)
        if getattr(log, "is_progress_bar_enabled", lambda: True)()
    ]
    for log in loggers:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in loggers:
            log.enable_progress_bar()


def load_pipeline(
    model: str | os.PathLike[str] = TINY_WAN,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    transformer_only: bool = False,
    **options: Any,
) -> Any:
    """A diffusers pipeline on a device, its own progress bar off.

    Args:
        model: "tiny-wan" or "tiny-joint" (embedded), the folder of a diffusers pipeline, or a hub id.
        dtype: of the weights; the VAE stays in float32, since its bfloat16 shows in the picture.
        transformer_only: leave text encoders and the VAE out, enough for a plan.
        options: passed to `DiffusionPipeline.from_pretrained`, e.g. `local_files_only`.

    Raises:
        ModelError: no such model, a folder that is not a pipeline, or one without a transformer.
    """
    source = resolve_model(model)
    from diffusers import DiffusionPipeline
    from diffusers import __version__ as diffusers_version

    ours = embedded(source)
    loader = DiffusionPipeline if ours is None else ours.loader()
    if transformer_only:
        options = {"vae": None, "tokenizer": None, "text_encoder": None, **options}
    dtypes = dtype if transformer_only or dtype == torch.float32 else {"default": dtype, "vae": torch.float32}
    recent = tuple(int(n) for n in diffusers_version.split(".")[:2]) >= (0, 42)  # it renamed the argument
    options["dtype" if recent else "torch_dtype"] = dtypes
    try:
        with _quiet():
            pipe = loader.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {os.fspath(model)!r} cannot be loaded: {why}") from error
    if all(getattr(pipe, name, None) is None for name in TRANSFORMERS):
        raise ModelError(f"model {os.fspath(model)!r} is a {type(pipe).__name__}, which has no transformer")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def apply(
    pipe: Any,
    profile: Profile | str | Path | None = None,
    strategy: str | None = None,
    *,
    backend: str | Callable[..., Any] | Mapping[str, Any] = "eager",
    attention: str = "auto",
    verify: bool = False,
) -> Profile | None:
    """Give a pipeline's transformer (and transformer_2) one strategy; what was applied before is taken off first.

    Args:
        pipe: its transformers are replaced.
        profile: a Profile, a shipped name or a path; default the shipped one for this model.
        strategy: None or "profile": the profile's own, layer by layer. "direct": the untouched model. Else a strategy
            name for every layer, with the profile's settings.
        backend, attention, verify: see `transform`.

    Returns: the profile used; None for "direct" without one.

    Raises:
        StrategyError: an unknown strategy. Others as `transform`, the pipeline then being as it was.
    """
    strategy = None if strategy == "profile" else strategy
    if strategy is not None:
        parse(strategy)
    originals = {}
    for name in TRANSFORMERS:
        model = getattr(pipe, name, None)
        if model is not None:
            try:
                originals[name] = restore(model)
            except TransformError:
                originals[name] = model
    first = next(iter(originals.values()))
    if strategy == "direct":
        used = choose_profile(first, profile) if profile is not None else None
        made = originals
    else:
        used = choose_profile(first, profile)
        if strategy is not None:
            used = used.with_layers(strategy)
        made = {
            name: transform(model, used, backend=backend, attention=attention, verify=verify)
            for name, model in originals.items()
        }
    for name, model in made.items():
        setattr(pipe, name, model)
    return used


def _tiling(pipe: Any, wanted: bool) -> Callable[[], None]:
    """Turn the VAE's spatial tiling on or off; returns what puts it back."""
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "use_tiling") or bool(vae.use_tiling) == wanted:
        return lambda: None
    (vae.enable_tiling if wanted else vae.disable_tiling)()
    return vae.disable_tiling if wanted else vae.enable_tiling


def _plan(pipe: Any, latent: tuple[int, int, int]) -> Plan | None:
    """The plan of the first transformer for this many latent frames, if it is transformed and was called."""
    for name in TRANSFORMERS:
        model = getattr(pipe, name, None)
        try:
            made = plans(model) if model is not None else []
        except TransformError:
            continue
        # The last one: with several sizes of the same length in one process, that is the one just run or equal to it.
        for plan in reversed(made):
            if plan.grid.frames * _patch_frames(model) == latent[0]:
                return plan
    return None


def _patch_frames(model: Any) -> int:
    patch = model.config.get("patch_size", 1)
    return int(patch[0]) if isinstance(patch, (list, tuple)) and len(patch) == 3 else 1


def generate(
    pipe: Any,
    prompt: str,
    *,
    frames: int = 321,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
    vae_tiling: bool | None = None,
    latents: torch.Tensor | None = None,
) -> Video:
    """Run a pipeline. The same seed gives the same initial noise whatever the device and the strategy.

    Args:
        frames, height, width: of the video, in frames and pixels; None is `defaults(pipe)`'s, as of steps and guidance.
        on_step: called as on_step(done, total) after each denoising step; what it raises ends the run.
        vae_tiling: decode in spatial tiles (Wan's VAE decodes a few frames at a time anyway, see `decoding`); None:
            where the clip has more pixels than 81 frames of 480x832.
        latents: initial noise in place of that of the seed, in the pipeline's own layout (`noise.for_pipeline`).

    Raises:
        LengthError: see `check_request`. FreelocError: the frames are not finite. Others from the pipeline as they are.
    """
    usual = defaults(pipe)
    height, width = height or usual.height, width or usual.width
    steps, guidance = usual.steps if steps is None else steps, usual.guidance if guidance is None else guidance
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    latent = check_request(pipe, frames, height, width)
    tiling = frames * height * width > _TILE_FROM if vae_tiling is None else vae_tiling

    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, steps)
        return tensors

    undo = _tiling(pipe, tiling)
    started = time.monotonic()
    try:
        with in_chunks(getattr(pipe, "vae", None), height, width) as chunk:
            result = pipe(
                prompt=prompt,
                negative_prompt=negative_prompt,
                num_frames=frames,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=after_step,
                output_type="np",
                **({} if latents is None else {"latents": latents}),
            )
    finally:
        undo()
    video = np.asarray(result.frames[0], dtype=np.float32)
    seconds = time.monotonic() - started
    if not np.isfinite(video).all():
        raise FreelocError(
            f"the video holds NaN or infinity ({np.isnan(video).mean():.1%} NaN); "
            "try float32 instead of a half-precision dtype, or less guidance"
        )
    settings = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "frames": frames,
        "height": height,
        "width": width,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "vae_tiling": tiling,
        "vae_chunk": chunk,  # latent frames a decoder call took; None: as the VAE does itself
    }
    return Video(video, seconds, _plan(pipe, latent), settings)
