"""Calls of classes that take everything as one packed sequence, with more in it than words and a clip."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from conditioned import Conditioned
from diffusers_models import CASES, arguments, build

from freeloc_fx.method.grid import Further

__all__ = ["cosmos3_with_actions", "minimax_h3_with_frames"]


def minimax_h3_with_frames(
    frames: int, anchors: tuple[str, ...] = (), references: tuple[tuple[int, int, int], ...] = ()
) -> Conditioned:
    """Keyframes, or references, as MiniMax-H3's own pipeline lays them out: after the words and before the sound.

    Args:
        frames: latent frames of the clip.
        anchors: "first" and "last": where keyframes stand.
        references: latent frames, height and width of each.
    """
    from diffusers.modular_pipelines.minimax_h3 import before_denoise as own

    case = CASES["MiniMax-H3"]
    model = build("MiniMax-H3")
    random = torch.Generator().manual_seed(7)
    channels, text, sound = model.config.in_channels * 4, 5, 6
    shared = (frames, *case.size, sound, case.patch, 2, 2, 0)
    tags = torch.ones(text, dtype=torch.long)
    if references:
        kinds: Any = [
            SimpleNamespace(kind="image" if size[0] == 1 else "video", has_audio=False) for size in references
        ]
        latents = [torch.zeros(1, 1, *size) for size in references]
        made = own.MiniMaxH3Ref2VAPrepareLayoutStep.build_ref2va_packed_sequence(tags, kinds, latents, [], *shared)
    else:
        made = own.MiniMaxH3PrepareLayoutStep.build_packed_sequence(tags, *shared, anchors)
    positions, tags, video, audio, words, still, _ = made
    of_rows = torch.ones(len(positions), dtype=torch.long)
    of_rows[video[:still]] = 0
    given = {
        "hidden_states": torch.randn(1, len(video), channels, generator=random),
        "audio_hidden_states": torch.randn(1, len(audio), model.config.audio_in_channels, generator=random),
        "encoder_hidden_states": torch.randn(1, text, model.config.text_dim, generator=random),
        "timestep": torch.tensor([0.0, 500.0]),
        "timestep_indices": of_rows,
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": words,
        "return_dict": False,
    }
    start, sizes = text + still, [(1, *case.size)] * len(anchors) or references
    mean = float(positions[-1, 0] - positions[-frames * 6, 0]) / (frames - 1)
    before, at = [], text
    for count, height, width in sizes:
        for _ in range(count):
            time = float(positions[at, 0] - positions[-frames * 6, 0]) / mean
            before.append(Further(round(time * 64) / 64, height // 2, width // 2))
            at += before[-1].tokens
    assert at == start
    order = ((0, text), (start, start + 2 * sound), (text, start), (start + 2 * sound, len(positions)))
    return Conditioned(model, given, tuple(before), (), order)


def cosmos3_with_actions(frames: int) -> Conditioned:
    """What a robot does, four actions a latent frame, behind the clip and on its clock."""
    case = CASES["Cosmos3"]
    config = dict(case.config) | {"action_gen": True, "action_dim": 3, "num_embodiment_domains": 2}
    model = build("Cosmos3", case=replace(case, config=config))
    given, count = arguments("Cosmos3", model, frames), 4 * (frames - 1)
    first = given["sequence_length"]
    places = given["position_ids"].float()
    start = float(places[0, given["und_len"]])
    more = torch.zeros(3, count)
    more[0] = start + torch.arange(1, count + 1) / 4
    order = torch.arange(first, first + count)
    return Conditioned(
        model,
        given
        | {
            "position_ids": torch.cat([places, more], 1),
            "sequence_length": first + count,
            "action_tokens": [torch.randn(count, 3, generator=torch.Generator().manual_seed(7))],
            "action_token_shapes": [(count, 1, 1)],
            "action_sequence_indexes": order,
            "action_mse_loss_indexes": order,
            "action_timesteps": torch.full((count,), 500.0),
            "action_noisy_frame_indexes": [torch.arange(count)],
            "action_domain_ids": [torch.tensor(1)],
        },
    )
