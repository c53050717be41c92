"""Run a pipeline from a prompt to a finished clip."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from freeloc_fx.compiler.capture.conventions import patches
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.errors import FreelocError
from freeloc_fx.planning.plan import Plan

from .components import transformers_of
from .decoding import in_chunks
from .hints import check_transformers, check_unit
from .request import check_request, defaults

__all__ = ["Video", "generate"]

_TILE_FROM = 81 * 480 * 832  # pixels of a clip past which decoding is tiled: Wan 2.1's own clip still is not


@dataclass(frozen=True)
class Video:
    """A generated clip.

    Args:
        frames: float32 RGB in [0, 1], (frames, height, width, 3).
        seconds: wall time of denoising and decoding.
        plan: what became of the attention; None where the model ran untransformed.
        settings: the request, JSON-serialisable.
    """

    frames: np.ndarray
    seconds: float
    plan: Plan | None
    settings: dict[str, Any] = field(default_factory=dict)


def _tiling(pipe: Any, wanted: bool) -> Callable[[], None]:
    """Turn the VAE's spatial tiling on or off; returns what puts it back."""
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "use_tiling") or bool(vae.use_tiling) == wanted:
        return lambda: None
    (vae.enable_tiling if wanted else vae.disable_tiling)()
    return vae.disable_tiling if wanted else vae.enable_tiling


def _plan(pipe: Any, latent: tuple[int, int, int]) -> Plan | None:
    """The plan of the first transformer for this many latent frames, if it is transformed and was called."""
    for model in transformers_of(pipe).values():
        state = state_of(model)
        # The last one: with several sizes of the same length in one process, that is the one just run or equal to it.
        for plan in reversed(state.backend.plans if state is not None else []):
            if plan.grid.frames * patches(model)[0] == latent[0]:
                return plan
    return None


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
        pipe: a diffusers pipeline from text to video.
        prompt: what the video is to show.
        frames: frames of the video.
        height: of the video in pixels; None: that of `defaults(pipe)`.
        width: of the video in pixels; None: that of `defaults(pipe)`.
        steps: denoising steps, at least 1; None: those of `defaults(pipe)`.
        guidance: scale of classifier-free guidance; None: that of `defaults(pipe)`.
        seed: of the initial noise.
        negative_prompt: what the video is not to show; None: the pipeline's default.
        on_step: called as on_step(done, total) after each denoising step; what it raises ends the run.
        vae_tiling: whether to decode in spatial tiles (Wan's VAE decodes a few frames at a time anyway, see
            `decoding`); None: where the clip has more pixels than 81 frames of 480x832.
        latents: initial noise in place of that of the seed, in the pipeline's own layout (`noise.for_pipeline`).

    Returns:
        The clip, with the plan and the settings that it was made with.

    Raises:
        LengthError: see `check_request`.
        ValueError: `steps` is below 1.
        FreelocError: the frames are not finite.
        Exception: others come from the pipeline as they are.
    """
    usual = defaults(pipe)
    height, width = height or usual.height, width or usual.width
    steps, guidance = usual.steps if steps is None else steps, usual.guidance if guidance is None else guidance
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    latent = check_request(pipe, frames, height, width)
    check_transformers(pipe)
    states = [state_of(model) for model in transformers_of(pipe).values()]
    for state in states:
        if state is not None:
            check_unit(pipe, state.backend.profile, frames)
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
