"""A small video transformer that takes all tokens in one sequence, with positions of each as numbers."""

from __future__ import annotations

import torch
from models import DiT

__all__ = ["Packed"]


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
