"""A small random model, what generates with it, and a probe of it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel

import freeloc_fx
from freeloc_fx.planning.profile import Profile

__all__ = ["generate", "run", "small"]


def small() -> Any:
    """A Wan of three layers with random weights."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=3, cross_attn_norm=True, rope_max_seq_len=32,
    ).eval()  # fmt: skip


def generate(model: Any, frames: int, seed: int) -> torch.Tensor:
    x = torch.randn(1, 4, frames, 4, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for step in range(3):
            x = x - 0.1 * model(x, torch.tensor([900 - 300 * step]), torch.ones(1, 5, 16)).sample
    return x


def run(model: Any, **changes: Any) -> Profile:
    arguments = {"generate": generate, "trained_frames": 3, "target_frames": 7, "every": 1, **changes}
    return freeloc_fx.probe(model, **arguments)
