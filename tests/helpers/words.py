"""A video transformer whose text and clip are one sequence from its first layer on, for ranks that share that out."""

from __future__ import annotations

from typing import Any

import torch
from models import DiT

__all__ = ["Words", "of_words", "shared_words"]


class Words(DiT):
    """Text, not turned, before or behind the clip.

    Args:
        last: the text is behind the clip.
    """

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last

    def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        cos, sin = self.tables(shape)  # type: ignore[arg-type]
        still = torch.ones(text.shape[1], cos.shape[1])
        parts = [[text, hidden_states.flatten(2).transpose(1, 2)], [still, cos], [still * 0, sin]]
        x, cos, sin = (torch.cat(pair[::-1] if self.last else pair, -2) for pair in parts)
        x = self.proj_in(x)
        for block in self.blocks:
            x = block(x, (cos, sin), None)
        result: torch.Tensor = self.proj_out(x)
        return result


def of_words(words: int, frames: int = 12) -> dict[str, torch.Tensor]:
    """What its forward is called with."""
    random = torch.Generator().manual_seed(0)
    clip = torch.randn(1, 4, frames, 2, 3, generator=random)
    return {"hidden_states": clip, "text": torch.randn(1, words, 4, generator=random)}


def shared_words(config: Any, last: bool, at_blocks: bool = True) -> Words:
    """The model, with its one sequence shared out over ranks where the blocks begin, or before.

    Args:
        config: a ContextParallelConfig that is set up.
        last: see `Words`.
        at_blocks: whether the first block is given a share, or what comes before gives one.
    """
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    def split(axis: int, dims: int, output: bool = False) -> Any:
        return ContextParallelInput(split_dim=axis, expected_dims=dims, split_output=output)

    torch.manual_seed(0)
    model = Words(last)
    first: dict[str, Any] = {"blocks.0": {"x": split(1, 3)}} if at_blocks else {"proj_in": {0: split(1, 3, True)}}
    tables = {"blocks.*": {"tables": [split(0, 2)] * 2}}
    apply_context_parallel(
        model, config, first | tables | {"proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3)}
    )
    return model
