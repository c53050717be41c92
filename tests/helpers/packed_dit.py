"""A small video transformer that takes all tokens in one sequence, with positions of each as numbers."""

from __future__ import annotations

from typing import Any

import torch
from models import DiT

__all__ = ["Packed", "packed"]


class Packed(DiT):
    """In the manner of MiniMax-H3: tokens of text, sound and clip in one sequence, with float positions of each."""

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = self.proj_in(hidden_states)
        angle = torch.cat([position_ids[:, axis, None] * self.omega(axis) for axis in range(3)], -1)
        tables = angle.cos().float(), angle.sin().float()
        for block in self.blocks:
            x = block(x, tables, None)
        result: torch.Tensor = self.proj_out(x)
        return result


def packed(frames: int, text: int = 5, sound: int = 4) -> dict[str, Any]:
    """Text and stereo sound with times of their own, then frames of 2x3 at steps of 5/3 (1, 4, 4, 4, 4)."""
    steps = [5 / 3 * (1, 4, 4, 4, 4)[i % 5] for i in range(frames - 1)]
    rows = [(float(t), 0.0, 0.0) for t in range(text)]
    rows += [(text + float(t), 0.0, side) for side in (-3.5, 12.5) for t in range(sound)]
    for i in range(frames):
        rows += [(text + sum(steps[:i]), y * 8.0, 4.0 + x * 8) for y in range(2) for x in range(3)]
    places = torch.tensor(rows, dtype=torch.float64)
    tokens = torch.randn(1, len(rows), 4, generator=torch.Generator().manual_seed(4))
    return {"hidden_states": tokens, "position_ids": places}
