"""Example arguments for a model's forward, from its configuration: shapes as its pipeline would give them.

Everything is zeros but what decides where tokens stand: masks show all tokens, rotary tables are the pipeline's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from freeloc_fx.errors import CaptureError, LengthError

from .conventions import config_of, forward_signature, patches
from .packed import packed_makers

__all__ = ["example_inputs", "makers"]


TEXT = 16
"""Text tokens of an example where the configuration names no length."""


def makers(model: nn.Module, frames: int, height: int, width: int) -> dict[str, Callable[[], Any]]:
    """Argument name -> function that makes it, for the names that mean something with this configuration.

    Args:
        model: whose forward needs them.
        frames: latent frames of the model's input.
        height: latent height of the model's input.
        width: latent width of the model's input.
    """
    config = config_of(model)
    names = forward_signature(model).parameters
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    dtype = getattr(model, "dtype", torch.float32)
    p_t, p_h, p_w = patches(model)
    positions = (frames // p_t, height // p_h, width // p_w)

    def zeros(*shape: int) -> Callable[[], torch.Tensor]:
        return lambda: torch.zeros(shape, device=device, dtype=dtype)

    def ones(*shape: int) -> Callable[[], torch.Tensor]:
        return lambda: torch.ones(shape, device=device, dtype=torch.long)

    def first(*keys: str, default: int) -> int:
        return next((int(config[key]) for key in keys if config.get(key)), default)

    text = first("max_text_seq_length", "max_sequence_length", default=512 if config.get("image_dim") else TEXT)
    text_dim = first("text_dim", "caption_channels", "text_embed_dim", "in_text_dim", default=TEXT)
    channels = first("in_channels", default=16)
    flat = {"num_frames", "height", "width"} <= names.keys()
    result: dict[str, Callable[[], Any]] = {
        "hidden_states": zeros(1, channels, frames, height, width),
        "timestep": zeros(1),
        "encoder_hidden_states": zeros(1, text, text_dim),
        "encoder_attention_mask": ones(1, text),
        "pooled_projections": zeros(1, first("pooled_projection_dim", "in_text_dim2", default=TEXT)),
    }
    if config.get("video_length"):
        del result["encoder_attention_mask"]  # attention over one frame at a time, whose pipeline passes no mask
    if "use_rotary_positional_embeddings" in config:
        result["hidden_states"] = zeros(1, frames, channels, height, width)
        if config["use_rotary_positional_embeddings"]:
            result["image_rotary_emb"] = lambda: _cropped_tables(config, positions, frames, device)
        if config.get("ofs_embed_dim"):
            result["ofs"] = zeros(1)
    if config.get("interpolation_scale_t"):
        result["image_rotary_emb"] = lambda: _indexed_tables(config, positions, device)
    if "r_timestep" in names:  # a flow map from one time to another, given frame by frame
        result["hidden_states"] = zeros(1, frames, channels, height, width)
        result |= {name: zeros(1, frames) for name in ("timestep", "r_timestep")}
    if "in_visual_dim" in config:
        visual = int(config["in_visual_dim"])
        # A model without text is told by a second clip what to make.
        last = 2 * visual + 1 if config.get("visual_cond") or "encoder_hidden_states" not in names else visual
        result["hidden_states"] = zeros(1, frames, height, width, last)
        result["visual_rope_pos"] = lambda: [torch.arange(n, device=device) for n in positions]
        result["text_rope_pos"] = lambda: torch.arange(text, device=device)
        result["encoder_attention_mask"] = lambda: torch.ones((1, text), device=device, dtype=torch.bool)
    if flat:
        result |= {"num_frames": lambda: frames, "height": lambda: height, "width": lambda: width}
        result["hidden_states"] = zeros(1, positions[0] * positions[1] * positions[2], channels)
        # Seconds and pixels of one latent at 25 frames a second and the usual compression.
        result["rope_interpolation_scale"] = lambda: (8 / 25, 32, 32)
    if "audio_encoder_hidden_states" in names:
        sound = 8 * frames
        result |= {
            "audio_hidden_states": zeros(1, sound, first("audio_in_channels", default=channels)),
            "audio_encoder_hidden_states": zeros(1, text, text_dim),
            "audio_encoder_attention_mask": ones(1, text),
            "audio_num_frames": lambda: sound,
            "sigma": zeros(1),
        }
    if config.get("guidance_embeds"):
        result["guidance"] = zeros(1)
    if config.get("image_dim"):
        result["encoder_hidden_states_image"] = zeros(1, 257, int(config["image_dim"]))
    if config.get("text_embed_2_dim"):
        result["encoder_hidden_states_2"] = zeros(1, TEXT, int(config["text_embed_2_dim"]))
        result["encoder_attention_mask_2"] = ones(1, TEXT)
    if config.get("image_embed_dim"):
        result["image_embeds"] = zeros(1, TEXT, int(config["image_embed_dim"]))
    if config.get("vace_in_channels"):
        result["control_hidden_states"] = zeros(1, int(config["vace_in_channels"]), frames, height, width)
    if config.get("concat_padding_mask"):
        result["padding_mask"] = zeros(1, 1, 8 * height, 8 * width)
    if config.get("rope_scale"):
        result["fps"] = lambda: 24
    if config.get("motion_encoder_size"):
        side, latent = int(config["motion_encoder_size"]), int(config.get("latent_channels") or 16)
        result["pose_hidden_states"] = zeros(1, latent, frames - 1, height, width)
        result["face_pixel_values"] = zeros(1, 3, 4 * (frames - 1) - 3, side, side)
    like = torch.zeros((), device=device, dtype=dtype)
    return result | packed_makers(names.keys(), config, (frames, height, width), text, like)


def _cropped_tables(
    config: Any, positions: tuple[int, int, int], frames: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (tokens, head_dim) in float32, spatial positions fitted to the trained size or, with patches over
    time, cut from a table of it."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, height, width = positions
    patch = int(config["patch_size"])
    trained = (int(config["sample_height"]) // patch, int(config["sample_width"]) // patch)
    if config.get("patch_size_t") is not None:
        if height > trained[0] or width > trained[1]:
            raise LengthError(
                f"its position tables are made for at most {config['sample_height']} x {config['sample_width']} "
                f"latents (sample_height, sample_width), found {height * patch} x {width * patch}"
            )
        options: dict[str, Any] = {"crops_coords": None, "grid_type": "slice", "max_size": trained}
    else:
        scale = min(trained[0] / height, trained[1] / width)
        size = round(height * scale), round(width * scale)
        top, left = (round((t - s) / 2.0) for t, s in zip(trained, size, strict=True))
        options = {"crops_coords": ((top, left), (top + size[0], left + size[1]))}
    found: Any = get_3d_rotary_pos_embed(
        embed_dim=int(config["attention_head_dim"]),
        grid_size=(height, width),
        temporal_size=frames,
        device=device,
        **options,
    )
    return found


def _indexed_tables(config: Any, positions: tuple[int, int, int], device: torch.device) -> tuple[Any, Any]:
    """Tables of one axis each and, for every token, the row of each."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    frames, height, width = positions
    t, h, w = (float(config[f"interpolation_scale_{axis}"]) for axis in "thw")
    found: Any = get_3d_rotary_pos_embed_allegro(
        embed_dim=int(config["attention_head_dim"]),
        crops_coords=((0, 0), (height, width)),
        grid_size=(height, width),
        temporal_size=frames,
        interpolation_scale=(t, h, w),
        device=device,
    )
    index = torch.meshgrid(*(torch.arange(n, device=device) for n in positions), indexing="ij")
    return tuple(found[:3]), tuple(axis.reshape(1, -1) for axis in index)


def example_inputs(
    model: nn.Module, frames: int, height: int, width: int, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Zeros of the right shape for every argument that forward needs, by the conventional argument names.

    Args:
        model: whose forward needs them.
        frames: latent frames of the model's input.
        height: latent height of the model's input.
        width: latent width of the model's input.
        given: arguments to use as they are.

    Raises:
        CaptureError: a required argument has no conventional meaning; pass it in `given`.
        LengthError: the model's pipeline makes no position tables of that size.
    """
    given = dict(given or {})
    known = makers(model, frames, height, width)
    result: dict[str, Any] = {}
    for name, parameter in forward_signature(model).parameters.items():
        if name in given:
            result[name] = given[name]
        elif name in known:
            result[name] = known[name]()
        elif name == "return_dict":
            result[name] = False
        elif parameter.default is inspect.Parameter.empty and parameter.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        ):
            raise CaptureError(
                f"{type(model).__name__}.forward needs {name!r}, for which no example can be made; "
                f"pass it as plan(..., inputs={{{name!r}: tensor}})"
            )
    return result
