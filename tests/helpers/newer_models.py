"""Tiny models of the classes that take a clip in other ways than most: packed, with cameras, in a stream with text."""

from __future__ import annotations

from typing import Any

from model_case import Case, powers

__all__ = ["JOY", "MINIMAX_H3", "NEWER", "first_tensor"]


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

JOY: dict[str, Any] = {
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
        JOY,
        ("double_blocks.0.attn", "double_blocks.1.attn"),
        powers(256.0, 4),
        text=(0, 16),
    ),
    "JoyImageEditPlus": Case(  # a clip in patches, with references of any size behind it
        "JoyImageEditPlusTransformer3DModel",
        JOY,
        ("double_blocks.0.attn", "double_blocks.1.attn"),
        powers(256.0, 4),
        text=(0, 16),
    ),
    "MiniMax-H3": Case(  # words, sound and a clip of uneven frames on one clock
        MINIMAX_H3["_class_name"],
        {key: value for key, value in MINIMAX_H3.items() if key != "_class_name"},
        ("transformer_blocks.0.attn", "transformer_blocks.1.attn"),
        pairing="half",
        text=(130, 0),  # 16 words and 57 latents of each side of ten frames' sound
    ),
}


def first_tensor(result: Any) -> Any:
    """The video of what a model gives, also where lists and tuples are around it."""
    while isinstance(result, (list, tuple)):
        result = result[0]
    return result
