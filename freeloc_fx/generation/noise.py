"""Initial noise for long video whose parts agree with each other.

FreeNoise (Qiu et al., ICLR 2024, arXiv 2310.15169, "Local Noise Shuffle Unit"): what far apart frames show
depends on their initial noise, so the noise of the first window is used again and again, in another order each time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from freeloc_fx.errors import LengthError
from freeloc_fx.method.checks import is_whole

from .components import first_transformer
from .request import Facts, check_request
from .step_noise import adds_noise

__all__ = ["default_stride", "for_pipeline", "freenoise"]

log = logging.getLogger("freeloc_fx")


def freenoise(
    shape: Sequence[int],
    window: int,
    stride: int = 4,
    generator: torch.Generator | None = None,
    *,
    dim: int = 2,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Draw standard normal noise in which each stride of latent frames is a shuffle of those `window` earlier.

    Every latent frame alone is standard normal noise, as in independent noise, but each one after the first window
    repeats one of the first window. Pass the result as a pipeline's `latents`.

    Args:
        shape: of the latents, (batch, channels, latent frames, height, width) unless `dim` says otherwise.
        window: latent frames of independent noise at the start, usually the trained length (the paper: 16).
        stride: latent frames shuffled among themselves, 1 to window (the paper: 4). The order is the same for the whole
            batch.
        generator: what to draw from, on the CPU or another device; the same state gives the same noise. Default: the
            global one of the CPU.
        dim: which axis counts latent frames.
        device: where the result lies; default the generator's device.
        dtype: of the result, and the one in which it is drawn.

    Returns:
        The noise, of the given shape and dtype.

    Raises:
        LengthError: the shape, window, stride or axis is not as above.
    """
    shape = tuple(shape)
    if not all(is_whole(size, 1) for size in shape):
        raise LengthError(f"freenoise shape: expected positive integers, found {shape}")
    if not -len(shape) <= dim < len(shape):
        raise LengthError(f"freenoise dim: expected an axis of the {len(shape)} of the shape, found {dim}")
    for name, value, most in (("window", window, None), ("stride", stride, window)):
        if not is_whole(value, 1, most):
            bounds = "at least 1" if most is None else f"1 to the window's {most}"
            raise LengthError(f"freenoise {name}: expected an integer of {bounds}, found {value!r}")
    source = generator.device if generator is not None else torch.device("cpu")
    frames = shape[dim]
    start = [size if axis != dim % len(shape) else min(window, frames) for axis, size in enumerate(shape)]
    first = torch.randn(start, generator=generator, device=source, dtype=dtype)
    # Which frame of the first window each frame repeats.
    origin = torch.arange(frames, device=source)
    for begin in range(window, frames, stride):
        order = torch.randperm(stride, generator=generator, device=source)[: frames - begin]
        origin[begin : begin + stride] = origin[begin - window + order]
    result = first.index_select(dim, origin)
    return result if device is None else result.to(device)


def default_stride(window: int) -> int:
    """Scale the paper's stride of 4 for a window of 16 to another window.

    Args:
        window: latent frames, at least 1.

    Returns:
        Latent frames of a stride, at least 1: 5 for a window of 21.
    """
    return max(1, round(Fraction(4 * window, 16)))


def for_pipeline(
    pipe: Any, frames: int, height: int, width: int, window: int, stride: int | None = None, seed: int = 0
) -> torch.Tensor:
    """Draw FreeNoise's initial noise in a diffusers pipeline's own layout, for its argument `latents`.

    The layout is asked of the pipeline's `prepare_latents`, so that latent frames may be the second or the third axis.
    A scheduler that adds new noise in each step loses what the initial noise repeats; a warning says so.

    Args:
        pipe: a diffusers pipeline.
        frames: frames of the video.
        height: of the video in pixels.
        width: of the video in pixels.
        window: latent frames of independent noise, usually the trained length.
        stride: see `freenoise`; default `default_stride(window)`.
        seed: of a generator on the CPU, so that the noise is the same on every device.

    Returns:
        float32 on the CPU; (1, channels, latent frames, latent height, latent width) for Wan.

    Raises:
        TransformError: the pipeline has no transformer.
        LengthError: see `check_request` and `freenoise`, or neither of the two axes has as many latent frames as the
            request.
    """
    latent, _, _ = check_request(pipe, frames, height, width)
    if adds_noise(getattr(pipe, "scheduler", None)):
        log.warning(
            "FreeNoise: %s adds new noise in each step, so that what the initial noise repeats is lost on the way",
            type(pipe.scheduler).__name__,
        )
    facts, model = Facts.of(pipe), first_transformer(pipe)
    front, _ = facts.latent_frames(frames)
    made = pipe.prepare_latents(
        batch_size=1,
        num_channels_latents=model.config.in_channels,
        height=height,
        width=width,
        num_frames=frames + front * facts.temporal,  # as the pipeline's own call has it
        dtype=torch.float32,
        device=torch.device("cpu"),
        generator=torch.Generator("cpu").manual_seed(seed),
    )
    shape = tuple((made[0] if isinstance(made, tuple) else made).shape)
    dim = next((axis for axis in (2, 1) if len(shape) == 5 and shape[axis] == latent), None)
    if dim is None:
        raise LengthError(
            f"{type(pipe).__name__}: expected latents of 5 axes with {latent} frames on the second or third, "
            f"found {shape}"
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    return freenoise(shape, window, default_stride(window) if stride is None else stride, generator, dim=dim)
