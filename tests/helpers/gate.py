"""How the embedded models' short clips are judged: the prompts, and the best that any sampler could score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from freeloc_fx.evaluation.metrics import GroundTruthScore, score
from freeloc_fx.generation.tiny_wan.scenes import Scene


def scene(seed: int) -> Scene:
    """A scene that training never drew: its generator has its own key."""
    return Scene.random(np.random.default_rng((seed, 4)))


def mean(scores: list[GroundTruthScore], name: str) -> float:
    return float(np.mean([getattr(s, name) for s in scores]))


def reconstructions(vae: Any, seeds: Iterable[int]) -> list[GroundTruthScore]:
    """Scores of what the VAE makes of real clips of the same prompts, 81 frames each."""
    result = []
    for seed in seeds:
        x = torch.from_numpy(scene(seed).render(81))[None].permute(0, 4, 1, 2, 3) * 2 - 1
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mean).sample
        video = (y[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1).numpy()
        result.append(score(video, scene(seed).prompt))
    return result
