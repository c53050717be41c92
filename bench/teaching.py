"""A model that learns from another: from what it predicts, and from what its blocks put out on the way there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from text_to_video import TextToVideo, read_pipeline
from torch import nn

__all__ = ["Watched", "distance", "read_teacher"]

SHARE = 0.5
"""Weight of the blocks' distance beside that of the predictions."""


class Watched(nn.Module):
    """A model with the outputs of its blocks.

    Args:
        model: `TextToVideo` or `JointTextToVideo`; its parameters are these.
        layers: which of its blocks, in order.
    """

    def __init__(self, model: nn.Module, layers: list[int]) -> None:
        super().__init__()
        self.model = model
        self.seen: list[torch.Tensor] = []
        blocks = model.video_blocks()
        for layer in layers:
            blocks[layer].register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        self.seen.append(output[0] if isinstance(output, tuple) else output)  # text comes second

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The model's prediction, and video tokens (batch, tokens, channels) behind each of the blocks."""
        self.seen = []
        prediction = self.model(*given)
        seen, self.seen = self.seen, []
        return prediction, seen


def distance(
    found: tuple[torch.Tensor, list[torch.Tensor]], expected: tuple[torch.Tensor, list[torch.Tensor]]
) -> torch.Tensor:
    """How far a pupil is from its teacher.

    A block's own target says more about it than the prediction several blocks later (Romero et al. 2015, FitNets);
    tiny-joint's video blocks were copied from tiny-wan's, so their channels mean the same without a projection.

    Args:
        found: of the pupil, as `Watched` gives it.
        expected: of the teacher.

    Returns:
        Mean square between the predictions, plus SHARE of that between the blocks as a part of the teacher's variance.
    """
    blocks = [F.mse_loss(a.float(), b.float()) / b.float().var() for a, b in zip(found[1], expected[1], strict=True)]
    return F.mse_loss(found[0].float(), expected[0].float()) + SHARE * torch.stack(blocks).mean()


def read_teacher(
    folder: Path, args: argparse.Namespace, vocab_size: int, mean: torch.Tensor, std: torch.Tensor
) -> TextToVideo:
    """The tiny-wan of a pipeline folder.

    Args:
        folder: of the pipeline.
        args: of `train.py`.
        vocab_size: tokens of the tokenizer.
        mean, std: (channels,), by which the pupil's latents are normalised.

    Returns:
        The model in float32 on the CPU, none of whose parameters takes a gradient.

    Raises:
        ValueError: its latents are normalised by other numbers.
    """
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    for key, mine in (("latents_mean", mean), ("latents_std", std)):
        if not np.array_equal(np.round(config[key], 4), np.round(mine.tolist(), 4)):
            raise ValueError(
                f"--teacher {folder}: expected {key} {mine.tolist()}, by which the latents here are normalised, found "
                f"{config[key]}"
            )
    teacher = TextToVideo(argparse.Namespace(heads=args.heads, layers=None), vocab_size, len(mean))
    read_pipeline(folder, teacher)
    return teacher.requires_grad_(False)
