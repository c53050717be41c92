"""Example arguments of models that take everything as one packed sequence, laid out as their pipelines lay it out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch

__all__ = ["packed_makers"]


def packed_makers(
    names: Collection[str], config: Mapping[str, Any], size: tuple[int, int, int], text: int, like: torch.Tensor
) -> dict[str, Callable[[], Any]]:
    """Argument name -> function that makes it, where a forward takes its tokens packed or cameras beside them.

    Args:
        names: of forward's arguments.
        config: the model's.
        size: latent frames, height and width.
        text: text tokens.
        like: of the wanted dtype and device.

    Returns:
        The functions, none for a forward that takes neither.
    """
    if "vision_token_shapes" in names:
        made = _one_stream(config, size, text, like)
    elif {"token_tags", "position_ids"} <= set(names):
        made = _tagged(config, size, text, like)
    elif "shape_list" in names:
        made = _in_patches(config, size, text, like)
    elif "camera_conditions" in names:
        made = _with_cameras(config, size, text, like)
    else:
        made = {}
    return {name: partial(_given, value) for name, value in made.items()}


def _given(value: Any) -> Any:
    return value


def _one_stream(config: Mapping[str, Any], size: tuple[int, int, int], text: int, like: torch.Tensor) -> dict[str, Any]:
    """Text, which sees itself alone, and then a clip; both are turned, the clip from far behind the text on."""
    frames, height, width = size
    patch = int(config.get("latent_patch_size") or 1)
    rows, columns = -(-height // patch), -(-width // patch)
    tokens = frames * rows * columns
    order = torch.arange(text + tokens, device=like.device)
    start = text + int(config.get("unified_3d_mrope_temporal_modality_margin") or 0)
    axes = torch.meshgrid(*(torch.arange(n, device=like.device) for n in (frames, rows, columns)), indexing="ij")
    clip = torch.stack([axis.reshape(-1) for axis in axes]) + torch.tensor([[start], [0], [0]], device=like.device)
    return {
        "input_ids": torch.zeros(text, dtype=torch.long, device=like.device),
        "text_indexes": order[:text],
        "position_ids": torch.cat([order[:text].expand(3, -1), clip], 1),
        "und_len": text,
        "sequence_length": text + tokens,
        "vision_tokens": [like.new_zeros(1, int(config.get("latent_channel") or 16), *size)],
        "vision_token_shapes": [(frames, rows, columns)],
        "vision_sequence_indexes": order[text:],
        "vision_mse_loss_indexes": order[text:],
        "vision_timesteps": like.new_zeros(tokens),
        "vision_noisy_frame_indexes": [torch.arange(frames, device=like.device)],
    }


_SPACING = tuple(5 / 3 * n for n in (1, 4, 4, 4, 4))
"""Units of time that a latent frame takes where a group of five holds one frame and then four times four."""


def _tagged(config: Mapping[str, Any], size: tuple[int, int, int], text: int, like: torch.Tensor) -> dict[str, Any]:
    """Text, sound and a clip in a row, tagged token by token; latent frames are as long as what they hold."""
    frames, height, width = size
    patch = tuple(int(n) for n in config.get("patch_size") or (1, 1, 1))
    rows, columns = height // patch[1], width // patch[2]
    lengths = [_SPACING[index % len(_SPACING)] for index in range(frames)]
    sound, tokens = round(sum(lengths)), frames * rows * columns
    order = torch.arange(text + 2 * sound + tokens, device=like.device)
    positions = torch.zeros(len(order), 3, dtype=torch.float64, device=like.device)
    positions[:text, 0] = order[:text]
    heard, seen = slice(text, text + 2 * sound), slice(text + 2 * sound, None)
    positions[heard, 0] = text + torch.arange(sound, dtype=torch.float64, device=like.device).repeat(2)
    times = torch.tensor([0.0, *itertools.accumulate(lengths[:-1])], dtype=torch.float64, device=like.device)
    down, across = ((torch.arange(n, device=like.device) - (n - 1) / 2) * 32 / n for n in (rows, columns))
    grid = torch.meshgrid(text + times, down.double(), across.double(), indexing="ij")
    positions[seen] = torch.stack([axis.reshape(-1) for axis in grid], -1)
    positions[heard, 2] = across.double()[[0, -1]].repeat_interleave(sound)
    tags = torch.zeros(len(order), dtype=torch.long, device=like.device)
    tags[:text], tags[heard] = 1, 2
    channels = int(config.get("in_channels") or 16) * patch[0] * patch[1] * patch[2]
    return {
        "hidden_states": like.new_zeros(1, tokens, channels),
        "audio_hidden_states": like.new_zeros(1, 2 * sound, int(config.get("audio_in_channels") or 16)),
        "timestep": like.new_zeros(1),
        "timestep_indices": torch.zeros_like(order),
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": order[seen],
        "audio_indices": order[heard],
        "text_indices": order[:text],
    }


def _in_patches(config: Mapping[str, Any], size: tuple[int, int, int], text: int, like: torch.Tensor) -> dict[str, Any]:
    """A clip cut into its patches, with how many there are along each axis; references would follow in the same way."""
    patch = tuple(int(n) for n in config.get("patch_size") or (1, 1, 1))
    counts = tuple(n // p for n, p in zip(size, patch, strict=True))
    channels = int(config.get("in_channels") or 16)
    return {
        "hidden_states": like.new_zeros(1, counts[0] * counts[1] * counts[2], channels, *patch),
        "shape_list": [[counts]],
        "encoder_hidden_states_mask": torch.ones(1, text, dtype=torch.long, device=like.device),
    }


def _with_cameras(
    config: Mapping[str, Any], size: tuple[int, int, int], text: int, like: torch.Tensor
) -> dict[str, Any]:
    """A timestep a frame, and where the camera of each frame stands: unmoved."""
    frames = size[0]
    camera = torch.cat([torch.eye(4).flatten(), torch.tensor([1.0, 1.0, 0.5, 0.5])])
    result = {
        "timestep": like.new_zeros(1, 1, frames),
        "encoder_hidden_states": like.new_zeros(1, 1, text, int(config.get("caption_channels") or 16)),
        "camera_conditions": camera.to(like).expand(1, frames, -1),
        "chunk_plucker": like.new_zeros(1, int(config.get("chunk_plucker_channels") or 48), *size),
    }
    if like.device.type == "cpu" and like.dtype != torch.float32:
        del result["camera_conditions"]  # rays are not cast in half precision there; the branch is then left out
    return result
