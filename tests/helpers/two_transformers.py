"""Tiny pipelines in the manner of Wan 2.2: one transformer for the noisy steps, another one for the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers_models import CASES, build
from small_vaes import wan

__all__ = ["PIPELINES", "latents", "pipeline"]

PIPELINES = {
    "Wan": ("WanPipeline", {}),
    "Wan I2V": (  # the image in channels alone, as in 2.2: noise, four of a mask, the clip
        "WanImageToVideoPipeline",
        {"in_channels": 12, "image_dim": None, "added_kv_proj_dim": None},
    ),
    "WanVACE": ("WanVACEPipeline", {"vace_in_channels": 8 + 64}),
}
"""Class of pipeline and changes of the transformers' configuration, of every class whose pipelines take two."""


def pipeline(name: str) -> Any:
    """A pipeline with two transformers of unlike weights.

    Args:
        name: one of `PIPELINES`.
    """
    cls, config = PIPELINES[name]
    case = CASES[name]
    case = replace(case, config=dict(case.config) | config)
    first, second = (build(name, seed=seed, case=case) for seed in (0, 1))
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    none = {"tokenizer": None, "text_encoder": None}
    if name == "Wan I2V":
        none |= {"image_processor": None, "image_encoder": None}
    made = getattr(diffusers, cls)(
        vae=wan(), scheduler=scheduler, transformer=first, transformer_2=second, boundary_ratio=0.9, **none
    )
    made.set_progress_bar_config(disable=True)
    return made


def latents(pipe: Any, frames: int) -> torch.Tensor:
    """What a pipeline makes in two steps, one by each transformer, of so many latent frames of 4x6 latents."""
    random = torch.Generator().manual_seed(3)
    given: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, 16, 16, generator=random),
        "height": 32,
        "width": 48,
        "num_frames": 4 * (frames - 1) + 1,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "generator": torch.Generator().manual_seed(4),
        "output_type": "latent",
    }
    if isinstance(pipe, diffusers.WanImageToVideoPipeline):
        given["image"] = torch.rand(1, 3, 32, 48, generator=random)
    result: torch.Tensor = pipe(**given).frames
    return result
