"""The clips that scripts are measured on: prompts, their true videos, what the VAE makes of those, and a pipeline's
own videos with the time and memory they took."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from freeloc_fx.generation.tiny_wan.drawing import varied
from freeloc_fx.generation.tiny_wan.scenes import Scene


def scene_of(seed: int, leaves_open: bool = False) -> Scene:
    """The scene that a seed stands for, which training never drew (its generators have other keys).

    Args:
        seed: of the clip.
        leaves_open: whether its prompt leaves things open (`drawing.varied`), or tells everything.
    """
    if leaves_open:
        return varied(np.random.default_rng((seed, 5)))
    return Scene.random(np.random.default_rng((seed, 4)))


def prompt_of(seed: int, leaves_open: bool = False) -> str:
    """The prompt of `scene_of`."""
    return scene_of(seed, leaves_open).prompt


def real_clip(seed: int, frames: int, leaves_open: bool = False) -> np.ndarray:
    """The clip of `scene_of`, float32 (frames, 64, 64, 3)."""
    return scene_of(seed, leaves_open).render(frames)


def reconstruct(pipe: Any, video: np.ndarray) -> np.ndarray:
    """What the VAE makes of a clip: the best that any sampler could score."""
    import torch

    x = torch.from_numpy(video)[None].permute(0, 4, 1, 2, 3) * 2 - 1
    x = x.to(pipe.vae.device, pipe.vae.dtype)
    with torch.no_grad():
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample
    return (y[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1).float().cpu().numpy()


def peak_growth(run: Callable[[], Any], device: str = "cpu") -> tuple[Any, int | None]:
    """(what `run` returns, most bytes that were in use at once while it ran, beyond what was before).

    On a CUDA device those of torch's allocator. On CPU resident memory: free pages are given back first, so that what
    an earlier video left in the allocator does not hide this one's need, and Linux' own high-water mark is reset. None
    where the system has no such mark (/proc/self/clear_refs).
    """
    import torch

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, int(torch.cuda.max_memory_allocated(device) - before)
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
        return run(), None
    result = run()
    return result, max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
