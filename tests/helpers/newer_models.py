"""Tiny models of the classes that take a clip in other ways than most: packed, with cameras, in a stream with text."""

from __future__ import annotations

from typing import Any

import diffusers
from model_case import Case, powers

__all__ = ["MINIMAX_H3", "NEWER", "REFUSED", "first_tensor"]


_JOY = {
    "in_channels": 4,
    "hidden_size": 24,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 2,
    "rope_dim_list": [4, 4, 4],
}

NEWER = {
    "Cosmos3": Case(  # keys longer than queries, fewer heads of keys, text that is turned
        "Cosmos3OmniTransformer",
        {
            "head_dim": 12,
            "hidden_size": 24,
            "intermediate_size": 32,
            "latent_channel": 4,
            "latent_patch_size": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "patch_latent_dim": 16,
            "rope_axes_dim": (2, 2, 2),
            "vocab_size": 32,
            "rope_theta": 10000.0,
        },
        ("layers.0.self_attn", "layers.1.self_attn"),
        lambda: [1.0, 1e4 ** (-6 / 12)],  # axes take turns: time, height, width, time, height, width
        pairing="half",
        text=(16, 0),
        lora=("add_q_proj", "add_k_proj", "add_v_proj"),
    ),
    "SanaWM": Case(  # every second layer is a linear attention; each has a branch for the camera beside it
        "SanaWMTransformer3DModel",
        {
            "in_channels": 4,
            "num_layers": 4,
            "hidden_size": 48,
            "num_attention_heads": 2,
            "softmax_every_n": 2,
            "linear_head_dim": 24,
            "caption_channels": 16,
            "chunk_plucker_channels": 6,
            "chunk_plucker_post_attn_blocks": 4,
            "image_size": 64,
        },
        ("blocks.1.attn.attn", "blocks.3.attn.attn"),
        patch=(1, 1, 1),
        size=(2, 3),
        branches=2,
    ),
    "JoyImageEdit": Case(
        "JoyImageEditTransformer3DModel",
        _JOY,
        ("double_blocks.0.attn", "double_blocks.1.attn"),
        powers(256.0, 4),
        text=(0, 16),
    ),
}

REFUSED: dict[str, Case] = {
    "JoyImageEdit mrope": Case(
        "JoyImageEditTransformer3DModel",
        _JOY | {"rope_type": "mrope"},
        (),
        refused="double_blocks.0.attn: other: .*tokens 48 to 63 are turned, but are no whole frames beside the clip",
    ),
    "WanAnimate2": Case(
        "WanAnimate2Transformer3DModel",
        {
            "text_len": 8,
            "in_dim": 12,
            "dim": 24,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": 16,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 2,
        },
        (),
        refused="takes kv_cache.*reads a reference's keys",
    ),
}
MINIMAX_H3: dict[str, Any] = {
    "_class_name": "MiniMaxH3Transformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "hidden_size": 32,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "ffn_dim": 48,
    "in_channels": 4,
    "audio_in_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "time_embed_hidden_dim": 32,
    "time_embed_dim": 16,
    "rope_freq_dim": 4,
}
"""A configuration; how many tokens stand beside its clip is a matter of how long that is."""
REFUSED = {name: case for name, case in REFUSED.items() if hasattr(diffusers, case.cls)}


def first_tensor(result: Any) -> Any:
    """The video of what a model gives, also where lists and tuples are around it."""
    while isinstance(result, (list, tuple)):
        result = result[0]
    return result
