"""Tiny random models of every video transformer class in diffusers, with the arguments of a call at any length."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from model_case import Case, powers
from newer_models import NEWER
from torch import nn

from freeloc_fx.compiler.capture.examples import example_inputs

__all__ = ["CASES", "Case", "arguments", "build"]


def _learned(model: Any) -> None:
    with torch.no_grad():
        model.pos_frequencies.normal_(std=0.2)


_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
_HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 1,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 4, 2),
    "image_condition_type": None,
}
_COGVIDEO = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 2,
    "text_embed_dim": 8,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 8,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 8,
    "use_rotary_positional_embeddings": True,
}
_LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "qk_norm": "rms_norm_across_heads",
    "caption_channels": 16,
}
_LTX2 = _LTX | {
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}

_KANDINSKY = {
    "in_visual_dim": 4,
    "in_text_dim": 16,
    "in_text_dim2": 8,
    "time_dim": 16,
    "out_visual_dim": 4,
    "patch_size": (1, 2, 2),
    "model_dim": 24,
    "ff_dim": 32,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 4, 4),
}

CASES = {
    "Wan": Case("WanTransformer3DModel", _WAN, ("blocks.0.attn1", "blocks.1.attn1"), powers(1e4, 4)),
    "Wan I2V": Case(  # reads a first image by channels beside the noise and by cross-attention of its own
        "WanTransformer3DModel",
        _WAN | {"in_channels": 8, "image_dim": 8, "added_kv_proj_dim": 24},
        ("blocks.0.attn1", "blocks.1.attn1"),
        powers(1e4, 4),
    ),
    "WanVACE": Case(
        "WanVACETransformer3DModel",
        _WAN | {"vace_layers": [0], "vace_in_channels": 8},
        ("vace_blocks.0.attn1", "blocks.0.attn1", "blocks.1.attn1"),
        powers(1e4, 4),
    ),
    "WanAnimate": Case(
        "WanAnimateTransformer3DModel",
        _WAN
        | {
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 8,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        ("blocks.0.attn1", "blocks.1.attn1"),
        powers(1e4, 4),
    ),
    "SkyReelsV2": Case("SkyReelsV2Transformer3DModel", _WAN, ("blocks.0.attn1", "blocks.1.attn1"), powers(1e4, 4)),
    "ChronoEdit": Case("ChronoEditTransformer3DModel", _WAN, ("blocks.0.attn1", "blocks.1.attn1"), powers(1e4, 4)),
    "AnyFlow": Case(
        "AnyFlowTransformer3DModel",
        {key: value for key, value in _WAN.items() if key != "qk_norm"},
        ("blocks.0.attn1", "blocks.1.attn1"),
        powers(1e4, 4),
    ),
    "HunyuanVideo": Case(
        "HunyuanVideoTransformer3DModel",
        _HUNYUAN,
        ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn"),
        powers(256.0, 4),
        text=(0, 16),
        patch=(1, 1, 1),
        size=(2, 3),
    ),
    "HunyuanVideo15": Case(
        "HunyuanVideo15Transformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 8,
            "image_embed_dim": 12,
            "rope_axes_dim": (4, 2, 2),
            "target_size": 16,
            "task_type": "t2v",
        },
        ("transformer_blocks.0.attn", "transformer_blocks.1.attn"),
        powers(256.0, 4),
        text=(0, 48),
        patch=(1, 1, 1),
        size=(2, 3),
        regions=True,
    ),
    "MotifVideo": Case(
        "MotifVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_single_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "text_embed_dim": 16,
            "rope_axes_dim": (4, 4, 4),
        },
        ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn"),
        powers(256.0, 4),
        text=(0, 16),
    ),
    "CogVideoX": Case(
        "CogVideoXTransformer3DModel",
        _COGVIDEO | {"patch_size_t": None},
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        powers(1e4, 4),
        text=(8, 0),
    ),
    "CogVideoX 1.5": Case(
        "CogVideoXTransformer3DModel",
        _COGVIDEO | {"patch_size_t": 2, "patch_bias": False},
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        powers(1e4, 4),
        text=(8, 0),
        patch=(2, 2, 2),
    ),
    "ConsisID": Case(
        "ConsisIDTransformer3DModel",
        _COGVIDEO,
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        powers(1e4, 4),
        text=(8, 0),
    ),
    "EasyAnimate": Case(
        "EasyAnimateTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 16,
            "num_layers": 2,
            "mmdit_layers": 1,
            "sample_width": 12,
            "sample_height": 8,
            "patch_size": 2,
        },
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        powers(1e4, 4),
        text=(16, 0),
    ),
    "Allegro": Case(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 24,
            "sample_width": 12,
            "sample_height": 8,
            "sample_frames": 8,
            "caption_channels": 16,
        },
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        powers(1e4, 4, 1 / 2.2),
        pairing="half",
    ),
    "Mochi": Case(
        "MochiTransformer3DModel",
        {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "out_channels": None,
            "qk_norm": "rms_norm",
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "activation_fn": "swiglu",
            "max_sequence_length": 16,
        },
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        text=(0, 16),
        change=_learned,
    ),
    "LTX": Case(
        "LTXVideoTransformer3DModel",
        _LTX,
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        patch=(1, 1, 1),
        size=(2, 3),
    ),
    "LTX2": Case(
        "LTX2VideoTransformer3DModel",
        _LTX2,
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        patch=(1, 1, 1),
        size=(2, 3),
    ),
    "LTX2 split": Case(
        "LTX2VideoTransformer3DModel",
        _LTX2 | {"rope_type": "split"},
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        pairing="half",
        patch=(1, 1, 1),
        size=(2, 3),
    ),
    "Cosmos": Case(
        "CosmosTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "mlp_ratio": 2,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (32, 32, 32),
            "patch_size": (1, 2, 2),
            "rope_scale": (2.0, 1.0, 1.0),
            "concat_padding_mask": False,  # resizing the mask would need torchvision
            "extra_pos_embed_type": None,
        },
        ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        powers(1e4 * 2.0 ** (4 / 2), 4),
        pairing="half",
    ),
    "Kandinsky5": Case(
        "Kandinsky5Transformer3DModel",
        _KANDINSKY,
        ("visual_transformer_blocks.0.self_attention", "visual_transformer_blocks.1.self_attention"),
        powers(1e4, 4),
        lora=("to_query", "to_key", "to_value"),
    ),
    "Kandinsky6": Case(
        "Kandinsky6Transformer3DModel",
        _KANDINSKY | {"visual_cond": False},
        tuple(f"visual_transformer_blocks.{i}.video_dec_block.self_attention" for i in range(2)),
        powers(1e4, 4),
        lora=("to_query", "to_key", "to_value"),
    ),
}
CASES |= NEWER
CASES = {name: case for name, case in CASES.items() if hasattr(diffusers, case.cls)}  # an older one has fewer


def build(name: str, seed: int = 0, case: Case | None = None) -> Any:
    """A model with random weights whose attention has a visible effect on the output."""
    case = case or CASES[name]
    torch.manual_seed(seed)
    model: Any = getattr(diffusers, case.cls)(**case.config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Zero gates and small projections would hide what the attention does.
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=1 / math.sqrt(max(parameter[0].numel(), 1)))
            elif path.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
    case.change(model)
    return model.requires_grad_(False)


def arguments(name: str, model: Any, frames: int, text_shown: int | None = None) -> dict[str, Any]:
    """Forward's arguments at a number of latent frames: random where the numbers are free.

    text_shown: how many of the text tokens are no padding, default all.
    """
    case = CASES[name]
    result = example_inputs(model, frames, *case.size)
    random = torch.Generator().manual_seed(1)
    for key, value in result.items():
        if isinstance(value, list) and key == "vision_tokens":
            result[key] = [torch.randn(each.shape, generator=random) for each in value]
        free = isinstance(value, torch.Tensor) and value.is_floating_point() and "rotary" not in key
        if free and key not in ("image_embeds", "padding_mask", "position_ids", "camera_conditions"):
            result[key] = torch.randn(value.shape, generator=random)
        if isinstance(value, torch.Tensor) and key == "timestep":
            result[key] = torch.full_like(value, 500)
        if key == "encoder_attention_mask" and text_shown is not None:
            result[key] = value.clone()
            result[key][:, text_shown:] = 0
    return result
