"""Run a pipeline from a prompt to a finished clip, or from denoised latents to one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from freeloc_fx.compat import COMPILED_CALL
from freeloc_fx.compiler.capture.conventions import patches
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.compiler.capture.swapped import swapped
from freeloc_fx.errors import FreelocError
from freeloc_fx.method.shards import Shards
from freeloc_fx.planning.plan import Plan

from .components import check_pipeline, transformers_of
from .decoding import chunk_of, in_chunks
from .hints import call_counts, check_transformers, check_unit, checking_calls
from .latents import Latents, LatentsError
from .request import check_request, defaults
from .step_noise import another_seed, seeded_steps
from .stretches import stretch_of, why_at_once
from .timeline import marks_of, timeline
from .turns import taking_turns

__all__ = ["Video", "decode_latents", "generate"]

log = logging.getLogger("freeloc_fx")

_TILE_FROM = 81 * 480 * 832
"""Pixels of a clip past which a VAE that cannot decode a few frames at a time decodes in spatial tiles."""
_LARGE = 1280 * 720
"""Pixels of a picture past which one that can does, too; unless somebody takes the frames as they come it then holds
all tiles of the clip."""


@dataclass(frozen=True)
class Video:
    """A generated clip.

    Args:
        frames: float32 RGB in [0, 1], (frames, height, width, 3); none where `on_frames` took them.
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


def _plan(pipe: Any, latent: tuple[int, int, int], before: Mapping[Any, int]) -> Plan | None:
    """The plan of the first transformer that was called since, for this many latent frames."""
    for model in transformers_of(pipe).values():
        state = state_of(model)
        if state is None or state.calls == before.get(state):
            continue
        # The last one: with several sizes of the same length in one process, that is the one just run or equal to it.
        for plan in reversed(state.backend.plans):
            if plan.grid.frames * patches(model)[0] == latent[0]:
                return plan
    return None


def _run(
    pipe: Any,
    settings: Mapping[str, Any],
    tiling: bool | None,
    on_frames: Callable[[np.ndarray], None] | None,
    shards: Shards | None = None,
    **arguments: Any,
) -> tuple[np.ndarray, Any, bool]:
    """Call a pipeline for a video of these settings.

    Returns:
        The frames, float32 in [0, 1], none where somebody took them; latent frames that a decoder call took; whether it
        decoded in spatial tiles.

    Raises:
        FreelocError: the frames are not finite.
    """
    frames, height, width = (int(settings[name]) for name in ("frames", "height", "width"))
    vae = getattr(pipe, "vae", None)
    if tiling is None:
        by_time = chunk_of(vae, height, width) is not None or (on_frames is not None and stretch_of(vae) is not None)
        tiling = height * width > _LARGE if by_time else frames * height * width > _TILE_FROM
    undo = _tiling(pipe, tiling)
    try:
        with in_chunks(vae, height, width, on_frames, shards) as chunk:
            if on_frames is not None and chunk is None and vae is not None:
                log.warning("all frames are held at once: %s", why_at_once(vae))
            result = pipe(num_frames=frames, height=height, width=width, output_type="np", **arguments)
    finally:
        undo()
    video = np.asarray(result.frames[0], dtype=np.float32)
    if on_frames is not None and chunk is not None:
        return video[:0], chunk, tiling
    if not np.isfinite(video).all():
        raise FreelocError(
            f"the video holds NaN or infinity ({np.isnan(video).mean():.1%} NaN); "
            "try float32 instead of a half-precision dtype, or less guidance"
        )
    if on_frames is not None:  # of a VAE that makes all frames at once
        for start in range(0, len(video), _AT_ONCE):
            on_frames((video[start : start + _AT_ONCE] * 255).round().astype(np.uint8))
        return video[:0], chunk, tiling
    if len(video) != frames:
        log.warning("%s: %d frames were asked for, and it made %d", type(pipe).__name__, frames, len(video))
    return video, chunk, tiling


_AT_ONCE = 16
"""Frames that are made 8-bit together where the whole clip is there."""


def generate(
    pipe: Any,
    prompt: str | Mapping[Any, str],
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
    on_latents: Callable[[Latents], None] | None = None,
    on_frames: Callable[[np.ndarray], None] | None = None,
    shards: Shards | None = None,
    blend: int | str = 16,
    fps: float | None = None,
) -> Video:
    """Run a pipeline. The same seed gives the same noise whatever the device and the strategy.

    What fails after the last denoising step, Ctrl-C included, costs no denoising: the exception carries the denoised
    latents as its attribute `latents`, a `Latents`, of which `decode_latents` makes the video.

    Args:
        pipe: a diffusers pipeline from text to video.
        prompt: what the video is to show; or when it is to show what, as of `timeline`.
        frames: frames of the video.
        height: of the video in pixels; None: that of `defaults(pipe)`.
        width: of the video in pixels; None: that of `defaults(pipe)`.
        steps: denoising steps, at least 1; None: those of `defaults(pipe)`.
        guidance: scale of classifier-free guidance; None: that of `defaults(pipe)`.
        seed: of the initial noise, and of that which a scheduler adds on the way (`step_noise`).
        negative_prompt: what the video is not to show; None: the pipeline's default.
        on_step: called as on_step(done, total) after each denoising step; what it raises ends the run.
        vae_tiling: whether to decode in spatial tiles (Wan's VAE decodes a few frames at a time anyway, see
            `decoding`, others may with `on_frames`); None: where a picture has more pixels than 1280x720, with VAEs
            that decode all frames at once where the clip has more than 81 frames of 480x832.
        latents: initial noise in place of that of the seed, in the pipeline's own layout (`noise.for_pipeline`).
        on_latents: called with the denoised latents before they are decoded, to keep them in a file.
        on_frames: takes the frames as they are decoded, uint8 RGB (frames, height, width, 3) (see
            `streaming.streamed`); what is held then does not grow with the clip, and the result has no frames. A VAE
            that makes them all at once (see `stretches`) does so before it hands them over, and a warning says so.
        shards: ranks that make this same call and share the decoding too, where that pays; the first one's `on_frames`
            gets all frames. None: this process decodes alone.
        blend: as of `timeline`, where the prompt changes over time.
        fps: frames per second of the video, for times in seconds; None where there are none.

    Returns:
        The clip, with the plan and the settings that it was made with.

    Raises:
        TypeError: `pipe` is a model.
        TransformError: the pipeline has no transformer.
        LengthError: see `check_request`.
        TimelineError: see `timeline`.
        ValueError: `steps` is below 1.
        FreelocError: the latents or the frames are not finite.
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
    settings: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "frames": frames,
        "height": height,
        "width": width,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
    }
    texts: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
    if isinstance(prompt, Mapping):
        marks = marks_of(prompt, frames, fps)
        settings |= {"prompt": {str(mark): text for mark, text in marks.items()}, "blend": blend}
        texts = timeline(pipe, marks, num_frames=frames, blend=blend, fps=fps, negative_prompt=negative_prompt)
    kept: list[Latents] = []

    def after_step(running: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        number = getattr(running, "num_timesteps", None)
        last = step + 1 >= (number if isinstance(number, int) else steps)
        if last and isinstance(done := tensors.get("latents"), torch.Tensor):
            _check_finite(done)
            plan, seconds = _plan(pipe, latent, before), time.monotonic() - started
            facts = {"plan": None if plan is None else plan.to_dict()}
            tensor = done.detach().to("cpu", copy=True)
            kept.append(Latents(tensor, type(pipe).__name__, settings, seconds, facts, plan))
            if on_latents is not None:
                on_latents(kept[0])
        if on_step is not None:
            on_step(step + 1, steps)
        return tensors

    with (
        taking_turns(pipe),
        seeded_steps(pipe, seed),
        _carrying(kept, said=on_latents is not None),
        checking_calls(pipe),
    ):
        before, started = call_counts(pipe), time.monotonic()
        video, chunk, tiling = _run(
            pipe,
            settings,
            vae_tiling,
            on_frames,
            shards,
            **texts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            # Latents of the caller's may be of this seed (`noise.for_pipeline`); a pipeline that hands its generator to
            # the scheduler would add the same noise again.
            generator=torch.Generator("cpu").manual_seed(seed if latents is None else another_seed(seed)),
            callback_on_step_end=after_step,
            **({} if latents is None else {"latents": latents}),
        )
    # Latent frames a decoder call took; None: as the VAE does itself.
    settings |= {"vae_tiling": tiling, "vae_chunk": chunk}
    return Video(video, time.monotonic() - started, _plan(pipe, latent, before), settings)


def decode_latents(
    pipe: Any,
    latents: Latents,
    *,
    vae_tiling: bool | None = None,
    on_frames: Callable[[np.ndarray], None] | None = None,
) -> Video:
    """Make the video of denoised latents; bitwise the one that `generate` would have made.

    Every pipeline scales, unpacks and decodes latents in its own way, so it is the pipeline that runs: over one step,
    in which the transformer is passed over and whose result is replaced by the latents.

    Args:
        pipe: a diffusers pipeline of the class that made the latents, with the same VAE; enabled or not.
        latents: what `generate` kept, or `Latents.load` read.
        vae_tiling: as of `generate`.
        on_frames: as of `generate`.

    Returns:
        The clip, with the plan of the latents where it is known; its seconds are those of denoising and of decoding.

    Raises:
        LatentsError: they are of another pipeline.
        FreelocError: the frames are not finite.
        Exception: others come from the pipeline as they are.
    """
    models = check_pipeline(pipe)
    if type(pipe).__name__ != latents.pipeline:
        raise LatentsError(f"latents: expected those of a {type(pipe).__name__}, found those of a {latents.pipeline}")
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    def passed_over(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return Transformer2DModelOutput(sample=states) if kwargs.get("return_dict", True) else (states,)

    def after_step(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "latents": latents.tensor.to(tensors["latents"].device)}

    with taking_turns(pipe), ExitStack() as put:
        started = time.monotonic()
        for model in models.values():
            put.enter_context(swapped(model, COMPILED_CALL, None))
            put.enter_context(swapped(model, "forward", passed_over))
        video, chunk, tiling = _run(
            pipe,
            latents.settings,
            vae_tiling,
            on_frames,
            prompt="",
            num_inference_steps=1,
            guidance_scale=1.0,
            callback_on_step_end=after_step,
        )
    settings = {**latents.settings, "vae_tiling": tiling, "vae_chunk": chunk}
    return Video(video, latents.seconds + time.monotonic() - started, latents.plan, settings)


def _check_finite(latents: torch.Tensor) -> None:
    """Refuse to decode what is no video.

    Raises:
        FreelocError: the latents are not finite.
    """
    if not torch.isfinite(latents).all():
        share = torch.isnan(latents).float().mean().item()
        raise FreelocError(
            f"the denoised latents hold NaN or infinity ({share:.1%} NaN); "
            "try float32 instead of a half-precision dtype, or less guidance"
        )


@contextmanager
def _carrying(kept: list[Latents], said: bool) -> Iterator[None]:
    """What is raised within the context carries the latents that are kept by then.

    Args:
        kept: filled once denoising is done.
        said: somebody else tells the user where they are.
    """
    try:
        yield
    except BaseException as error:
        if kept:
            error.latents = kept[0]  # type: ignore[attr-defined]
            if not said:
                log.warning(
                    "denoising was done when %s was raised: its attribute `latents` holds the result, of which "
                    "freeloc_fx.generation.pipelines.decode_latents(pipe, error.latents) makes the video, and "
                    "error.latents.save(path) keeps it",
                    type(error).__name__,
                )
        raise
