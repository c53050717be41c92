"""Where the videos of `tables.py` are made: what is asked for, what is got, and a diffusers pipeline that makes it."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from clips import peak_growth, prompt_of, real_clip, reconstruct
from contestants import Contestant, originals_of

from freeloc_fx.generation.tiny_wan.scenes import SIZE

REFERENCE = "reconstruction"
REAL = "real"


@dataclass(frozen=True)
class Job:
    """One video to make.

    Args:
        contestant: what makes it.
        frames: video frames.
        seed: of the clip: its prompt and its noise.
        leaves_open: whether the prompt leaves things open, see `clips.scene_of`.
    """

    contestant: Contestant
    frames: int
    seed: int
    leaves_open: bool = False

    def latent(self, temporal: int) -> int:
        """Latent frames of the clip, of which each after the first holds `temporal` video frames."""
        return (self.frames - 1) // temporal + 1


@dataclass(frozen=True)
class Film:
    """A finished video.

    Args:
        frames: float32 (video frames, 64, 64, 3).
        seconds: of the CPU, which other work does not stretch; of the clock on another device.
        memory: bytes at the peak; None where they cannot be measured.
        captured: whether its time holds a capture of the graph.
    """

    frames: np.ndarray
    seconds: float
    memory: int | None
    captured: bool


class Studio(Protocol):
    """Where videos are made."""

    @property
    def period(self) -> int | None:
        """Video frames after which the model is expected to repeat, None where it is not."""

    def film(self, job: Job, steps: int, guidance: float) -> Film:
        """Make one video with so many denoising steps and this guidance scale."""


class Pipeline:
    """A studio with a diffusers pipeline. A contestant stays on for as long as its jobs follow each other."""

    def __init__(self, model: str, profile: str | None = None, device: str = "cpu", backend: str = "eager") -> None:
        from freeloc_fx.generation.pipelines import load_pipeline
        from freeloc_fx.generation.request import Facts, choose_profile
        from freeloc_fx.probing.run import weights_digest

        self.pipe = load_pipeline(model, device=device)
        self.device, self.backend = device, backend
        self.originals = originals_of(self.pipe)
        first = next(iter(self.originals.values()))
        self.profile = choose_profile(first, profile)
        self.layers = self.profile.layer_count or int(first.config.num_layers)
        self.weights = weights_digest(first)
        self.trained = self.profile.trained_frames
        self.temporal = Facts.of(self.pipe).temporal
        self.short = (self.trained - 1) * self.temporal + 1
        self._on: tuple[str, int, str] | None = None
        self._frames: int | None = None

    @functools.cached_property
    def site(self) -> Any:
        """A video self-attention of the model, as planned for a clip of the trained length."""
        from freeloc_fx import plan
        from freeloc_fx.generation.request import check_request

        frames, height, width = check_request(self.pipe, self.short, SIZE, SIZE)
        first = next(iter(self.originals.values()))
        return plan(first, self.profile, frames=frames, height=height, width=width).sites[0]

    @functools.cached_property
    def period(self) -> int:
        """Of the intrinsic frequency as RIFLEx finds it, in frames."""
        from freeloc_fx.method.peers import RIFLEx

        omega = np.abs(self.site.rope.omega)
        slowest = np.sort(omega[0])[::-1][RIFLEx(self.trained).component(omega[0]) - 1]
        return round(2 * math.pi / slowest) * self.temporal

    def film(self, job: Job, steps: int, guidance: float) -> Film:
        from freeloc_fx.generation.noise import for_pipeline
        from freeloc_fx.generation.pipelines import generate

        who = job.contestant
        if who.name in (REAL, REFERENCE):
            real = real_clip(job.seed, job.frames, job.leaves_open)
            if who.name == REAL:
                return Film(real, 0.0, None, False)
            made, memory = peak_growth(lambda: reconstruct(self.pipe, real), self.device)
            return Film(made, 0.0, memory, False)
        key = (who.name, who.draw, who.content(job.latent(self.temporal)))
        fresh = (self._on, self._frames) != (key, job.frames)
        if self._on != key:
            self._on = None
            who.put_on(self.pipe, self.originals, self.trained, self.backend)
            self._on = key
        self._frames = job.frames
        latents = None
        if who.noise:
            latents = for_pipeline(self.pipe, job.frames, SIZE, SIZE, self.trained, seed=job.seed)
        cpu = time.process_time()
        video, memory = peak_growth(
            lambda: generate(
                self.pipe, prompt_of(job.seed, job.leaves_open), frames=job.frames, steps=steps, guidance=guidance,
                seed=job.seed, latents=latents, height=SIZE, width=SIZE,
            ),
            self.device,
        )  # fmt: skip
        seconds = time.process_time() - cpu if self.device == "cpu" else video.seconds
        return Film(video.frames, seconds, memory, fresh and who.profile is not None)
