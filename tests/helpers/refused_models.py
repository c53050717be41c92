"""Tiny models of the video transformer classes of diffusers that are refused, and what the refusal says."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers_models import CASES
from model_case import Case
from newer_models import JOY

__all__ = ["REFUSED"]

_TINY: dict[str, Any] = {"num_attention_heads": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1}
_WAN, _HUNYUAN = CASES["Wan"].config, CASES["HunyuanVideo"].config

REFUSED: dict[str, Case] = {
    "JoyImageEdit mrope": Case(
        "JoyImageEditTransformer3DModel",
        JOY | {"rope_type": "mrope"},
        (),
        refused="tokens 48 to 63 are turned, but are no whole frames beside the clip",
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
        refused="takes kv_cache, kv_cache_mode: it is autoregressive, or reads a reference's keys",
    ),
    "Latte": Case(
        "LatteTransformer3DModel",
        _TINY
        | {
            "attention_head_dim": 8,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "video_length": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "activation_fn": "gelu-approximate",
            "norm_type": "ada_norm_single",
        },
        (),
        refused="no video self-attention with temporal RoPE",
    ),
    "CogVideoX-2b": Case(
        "CogVideoXTransformer3DModel",
        {**CASES["CogVideoX"].config, "use_rotary_positional_embeddings": False, "sample_frames": 29},
        (),
        refused="nothing but a norm or a projection stands before the attention: no RoPE",
    ),
    "SanaVideo": Case(
        "SanaVideoTransformer3DModel",
        _TINY
        | {
            "attention_head_dim": 12,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 4,
            "rope_max_seq_len": 32,
        },
        (),
        refused="no video self-attention with temporal RoPE.*transformer_blocks.0.attn2: cross",
    ),
    "SanaWM refiner": Case(
        "SanaWMLTX2RefinerTransformer3DModel",
        CASES["LTX2"].config,
        (),
        refused="takes kv_cache, kv_cache_mode: it is autoregressive, or reads a reference's keys",
    ),
    "SkyReels-DF causal": Case(  # without blocks of frames diffusion forcing is a clip at once, see SkyReelsV2
        "SkyReelsV2Transformer3DModel",
        {**_WAN, "num_frame_per_block": 2},
        (),
        refused="the model passes an attention mask that is more than padding of single keys, as an autoregressive",
    ),
    "Kandinsky6 SR": Case(
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 16,
            "model_dim": 24,
            "ff_dim": 32,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 4),
        },
        (),
        patch=(1, 1, 1),
        size=(8, 16),
        refused="flex_attention is an attention kernel of its own.*it has a block mask of its own",
    ),
    "Framepack": Case(
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN, "has_clean_x_embedder": True},
        (),
        refused="takes latents_history_2x.*it is autoregressive and makes video of any length",
    ),
    "Helios": Case(
        "HeliosTransformer3DModel",
        {key: value for key, value in _WAN.items() if key != "rope_max_seq_len"} | {"rope_dim": [4, 4, 4]},
        (),
        refused="takes indices_latents_history_short.*it is autoregressive and makes video of any length",
    ),
    "AnyFlowFAR": Case(
        "AnyFlowFARTransformer3DModel",
        {key: value for key, value in _WAN.items() if key != "qk_norm"},
        (),
        refused="takes kv_cache, kv_cache_flag: it is autoregressive",
    ),
}
REFUSED = {name: case for name, case in REFUSED.items() if hasattr(diffusers, case.cls)}  # an older one has fewer
