"""Every kind of call beside the plain one, class by class: how it is made, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from conditioned import Conditioned
from conditions import CONTROL, KEYFRAMES, REFERENCES, START, TIMESTEPS, Maker
from diffusers_models import CASES, arguments, build

__all__ = ["AUTOCAST", "FAILS", "KINDS", "MASKS", "NONE", "PAIR", "autocast", "calls", "one_of", "unlike"]

NONE = "none in diffusers"
"""No argument of the class's forward and none of its pipelines takes an input of that kind."""

AUTOCAST, MASKS, PAIR = "autocast", "batch of unlike masks", "two transformers"

MAKERS: dict[str, dict[str, list[Maker]]] = {
    "start image": START,
    "keyframes": KEYFRAMES,
    "references": REFERENCES,
    "control": CONTROL,
    "per-token timesteps": TIMESTEPS,
}

MASKED: dict[str, tuple[str, ...]] = {
    "HunyuanVideo": ("encoder_attention_mask",),
    "HunyuanVideo15": ("encoder_attention_mask", "encoder_attention_mask_2"),
    "MotifVideo": ("encoder_attention_mask",),
    "Allegro": ("encoder_attention_mask",),
    "Mochi": ("encoder_attention_mask",),
    "LTX": ("encoder_attention_mask",),
    "LTX2": ("encoder_attention_mask", "audio_encoder_attention_mask"),
    "LTX2 split": ("encoder_attention_mask", "audio_encoder_attention_mask"),
    "Cosmos": ("attention_mask",),
    "Kandinsky6": ("encoder_attention_mask",),
    "SanaWM": ("encoder_attention_mask",),
    "JoyImageEditPlus": ("encoder_hidden_states_mask",),
}
"""Masks of text that a forward takes. Where there is none, a batch is of texts of one length, or of one sample."""

FAILS = {(AUTOCAST, "Cosmos3"): "scatter.*Expected self.dtype to be equal to src.dtype"}
"""Calls in which diffusers' own model fails, and what its error says."""

KINDS = ("start image", "keyframes", "references", "control", MASKS, AUTOCAST, "per-token timesteps", PAIR)


def calls(kind: str, name: str, frames: int) -> Iterator[Conditioned]:
    """The calls of one kind that a class takes, none where there is none in diffusers.

    Args:
        kind: one of `KINDS`, but not two transformers.
        name: a class, of `CASES`.
        frames: latent frames of the clip, as many as its tokens have.
    """
    if kind == AUTOCAST:
        model = build(name)
        yield Conditioned(model, arguments(name, model, frames * CASES[name].patch[0]))
    elif kind == MASKS:
        if name in MASKED:
            yield unlike(name, frames)
    else:
        for make in MAKERS[kind].get(name, []):
            yield make(frames)


def autocast(kind: str) -> AbstractContextManager[Any]:
    """What a call of a kind runs in."""
    return torch.autocast("cpu", torch.bfloat16) if kind == AUTOCAST else nullcontext()


def unlike(name: str, frames: int, shown: tuple[int, int] = (13, 4)) -> Conditioned:
    """A batch of two clips whose texts have unlike lengths: other latents, other words, another padding.

    Args:
        name: a class of `MASKED`.
        frames: latent frames of each.
        shown: words of each that are no padding.
    """
    model = build(name)
    given = arguments(name, model, frames * CASES[name].patch[0])
    words = given["encoder_hidden_states"].shape[-2]
    if name == "SanaWM":
        given["encoder_attention_mask"] = torch.ones(1, words, dtype=torch.long)
    if name == "Cosmos":
        given["attention_mask"] = torch.ones(1, words, dtype=torch.bool)
    random = torch.Generator().manual_seed(5)
    both: dict[str, Any] = {}
    for key, value in given.items():
        both[key] = value
        if isinstance(value, torch.Tensor) and "rotary" not in key and not key.endswith("rope_pos"):
            both[key] = torch.cat([value, value])
            if key in ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_2"):
                both[key][1] = torch.randn(value.shape[1:], generator=random)
        if key == "shape_list":
            both[key] = value * 2
    for key in MASKED[name]:
        for row, n in enumerate(shown):
            both[key][row, n:] = 0
    return Conditioned(model, both)


def one_of(given: dict[str, Any], index: int) -> dict[str, Any]:
    """The call of one sample of a batch of two."""

    def part(key: str, value: Any) -> Any:
        if key == "shape_list":
            return value[index : index + 1]
        batched = isinstance(value, torch.Tensor) and "rotary" not in key and not key.endswith("rope_pos")
        return value[index : index + 1] if batched else value

    return {key: part(key, value) for key, value in given.items()}
