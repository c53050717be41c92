"""Calls of diffusers' tiny models with a start image, keyframes and references, as their pipelines make them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers_models import CASES, Case, arguments, build
from newer_models import MINIMAX_H3

from freeloc_fx.method.grid import Further

__all__ = ["NAMES", "Conditioned", "conditioned", "minimax_h3", "pixel_coords"]


class Conditioned:
    """A model, what its forward is called with at a number of latent frames, and the frames beside its clip.

    Args:
        model: tiny, with random weights.
        given: forward's arguments.
        before: frames expected before the clip.
        after: frames expected after it.
        order: spans of tokens in the order in which all frames stand next to the clip; empty where they do.
    """

    def __init__(
        self,
        model: Any,
        given: dict[str, Any],
        before: tuple[Further, ...] = (),
        after: tuple[Further, ...] = (),
        order: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.model, self.given, self.before, self.after, self.order = model, given, before, after, order


def pixel_coords(frames: int, height: int, width: int, *, causal: bool, ends: bool, stride: int = 1) -> torch.Tensor:
    """Coordinates of a clip's tokens in frames and pixels: (1, 3, tokens), or (1, 3, tokens, 2) with their ends."""
    places = torch.meshgrid(*(torch.arange(float(n)) for n in (frames, height, width)), indexing="ij")
    grid = torch.stack(places).flatten(1)
    scale = torch.tensor([8.0, 32.0 * stride, 32.0 * stride])[:, None]
    both = [grid * scale, (grid + 1) * scale]
    if causal:
        for one in both:
            one[0] = (one[0] - 7).clamp(min=0)
    return torch.stack(both, -1)[None] if ends else both[0][None]


def _ltx(model: Any, given: dict[str, Any], frames: int, keyframes: tuple[int, ...], reference: int) -> Conditioned:
    """Keyframes and a reference clip in front of the clip, their coordinates in seconds; sizes are not given."""
    height, width = CASES["LTX"].size
    parts, before = [], []
    for first, count in [*((pixel, 1) for pixel in keyframes), *([(1, reference)] if reference else [])]:
        coords = pixel_coords(count, height, width, causal=True, ends=False)
        coords[:, 0] += first
        parts.append(coords)
        at = [(first + max(0, 8 * i - 7) + 7) / 8 for i in range(count)]
        before += [Further(time, height, width) for time in at]
    coords = torch.cat([*parts, pixel_coords(frames, height, width, causal=True, ends=False)], 2)
    coords[:, 0] /= 25
    for name in ("num_frames", "height", "width", "rope_interpolation_scale"):
        given.pop(name, None)
    return _longer(model, given, coords, before, ())


def _ltx2(model: Any, given: dict[str, Any], frames: int, keyframes: tuple[int, ...], reference: int) -> Conditioned:
    """Keyframes and a reference clip of half the size behind the clip, as LTX2's IC-LoRA pipeline has them."""
    height, width = given["height"], given["width"]
    parts, after = [pixel_coords(frames, height, width, causal=True, ends=True)], []
    for pixel in keyframes:
        coords = pixel_coords(1, height, width, causal=False, ends=True)
        coords[:, 0] += pixel
        coords[:, 0, :, 1] = coords[:, 0, :, 0] + 1
        parts.append(coords)
        after.append(Further((pixel + 3.5) / 8, height, width))  # a token stands in the middle of its pixels
    if reference:
        half = (height // 2, width // 2)
        parts.append(pixel_coords(reference, *half, causal=True, ends=True, stride=2))
        after += [Further(float(i), *half) for i in range(reference)]  # the first stands with the clip's first
    coords = torch.cat(parts, 2)
    coords[:, 0] /= 24
    return _longer(model, given, coords, (), after)


def _longer(model: Any, given: dict[str, Any], coords: torch.Tensor, before: Any, after: Any) -> Conditioned:
    """As many random latents as coordinates."""
    random = torch.Generator().manual_seed(3)
    latents = torch.randn(1, coords.shape[2], given["hidden_states"].shape[2], generator=random)
    made = given | {"hidden_states": latents, "video_coords": coords}
    return Conditioned(model, made, tuple(before), tuple(after))


def _kandinsky6(model: Any, given: dict[str, Any], frames: int, reference: int) -> Conditioned:
    """A reference behind the clip whose time is that of the clip's first frame."""
    random = torch.Generator().manual_seed(3)
    clip = given["hidden_states"]
    batch, _, height, width, channels = clip.shape
    longer = torch.cat([clip, torch.randn(batch, reference, height, width, channels, generator=random)], 1)
    positions = (
        torch.cat([torch.arange(frames), torch.zeros(reference, dtype=torch.long)]),
        torch.arange(height // 2),
        torch.arange(width // 2),
    )
    made = given | {"hidden_states": longer, "visual_rope_pos": positions}
    return Conditioned(model, made, (), (Further(0.0, height // 2, width // 2),) * reference)


def _hunyuan(how: str) -> Case:
    """HunyuanVideo-I2V: the image is the clip's first frame, or channels beside the noise."""
    case = CASES["HunyuanVideo"]
    return replace(case, config=dict(case.config) | {"image_condition_type": how})


def minimax_h3(frames: int, text: int = 5, sound: int = 4) -> tuple[Any, dict[str, Any]]:
    """MiniMax-H3 and a call as its pipeline packs it: words, stereo sound and the clip, on one rotary clock.

    Args:
        frames: latent frames, of 2x3 tokens.
        text: words.
        sound: latents of each side of the sound.
    """
    config = dict(MINIMAX_H3)
    case = Case(config.pop("_class_name"), config, ())
    model, random = build("MiniMaxH3", case=case), torch.Generator().manual_seed(1)
    first, tokens = text + 2 * sound, text + 2 * sound + 6 * frames
    positions = torch.zeros(tokens, 3, dtype=torch.float64)
    positions[:text, 0] = torch.arange(text)
    positions[text:first, 0] = text + torch.arange(sound).repeat(2)
    positions[text:first, 2] = torch.tensor([-3.5, 25.0]).repeat_interleave(sound)
    steps = [0.0, *(5 / 3 * (1, 4, 4, 4, 4)[i % 5] for i in range(frames - 1))]
    positions[first:, 0] = (text + torch.tensor(steps, dtype=torch.float64).cumsum(0)).repeat_interleave(6)
    positions[first:, 1] = torch.tensor([3.0, 16.0]).repeat_interleave(3).repeat(frames)
    positions[first:, 2] = torch.tensor([-3.5, 10.0, 23.5]).repeat(2 * frames)
    kinds = torch.tensor([0] * text + [1] * (2 * sound) + [2] * (6 * frames))
    given = {
        "hidden_states": torch.randn(1, 6 * frames, 16, generator=random),
        "audio_hidden_states": torch.randn(1, 2 * sound, 4, generator=random),
        "encoder_hidden_states": torch.randn(1, text, 16, generator=random),
        "timestep": torch.tensor([500.0]),
        "timestep_indices": torch.zeros(tokens, dtype=torch.long),
        "token_tags": kinds,
        "position_ids": positions,
        "video_indices": torch.arange(first, tokens),
        "audio_indices": torch.arange(text, first),
        "text_indices": torch.arange(text),
        "return_dict": False,
    }
    return model, given


def _started(name: str, frames: int, case: Case | None = None) -> Conditioned:
    """A start image that is no token of its own."""
    model = build(name, case=case)
    return Conditioned(model, arguments(name, model, frames))


NAMES = ("Wan I2V", "LTX", "LTX2", "HunyuanVideo token replace", "HunyuanVideo latent concat", "Kandinsky6")


def conditioned(
    name: str, frames: int, keyframes: tuple[int, ...] = (17, 40), reference: int = 2, size: tuple[int, int] = (2, 4)
) -> Conditioned:
    """A conditioned call.

    Args:
        name: one of `NAMES`.
        frames: latent frames of the clip.
        keyframes: pixel frames at which keyframes stand, in models that append them.
        reference: latent frames of a reference, in models that append one.
        size: rows and columns of LTX2's tokens.
    """
    if name.startswith("HunyuanVideo"):
        how = name.partition(" ")[2].replace(" ", "_")
        return _started("HunyuanVideo", frames, _hunyuan(how))
    if name not in ("LTX", "LTX2", "Kandinsky6"):
        return _started(name, frames)
    model = build(name)
    given = arguments(name, model, frames)
    if name == "Kandinsky6":
        return _kandinsky6(model, given, frames, reference)
    if name == "LTX":
        return _ltx(model, given, frames, keyframes, reference)
    return _ltx2(model, given | {"height": size[0], "width": size[1]}, frames, keyframes, reference)
