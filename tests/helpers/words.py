"""A video transformer whose text and clip are one sequence from its first layer on, for ranks that share that out."""

from __future__ import annotations

from typing import Any

import torch
from models import DiT
from torch import nn

__all__ = ["Apart", "Words", "of_words", "shared_apart", "shared_words"]


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


class Joining(nn.Module):
    """A block that joins its text and its clip by any of torch's functions, and parts them again."""

    def __init__(self, block: nn.Module, join: str) -> None:
        super().__init__()
        self.block, self.join = block, join

    def forward(self, x: torch.Tensor, text: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        words, still = text.shape[1], torch.ones(text.shape[1], cos.shape[1])
        if self.join == "write":
            whole = x.new_empty(x.shape[0], words + x.shape[1], x.shape[2])
            whole[:, :words], whole[:, words:] = text, x
        else:
            whole = torch.hstack([text, x]) if self.join == "hstack" else torch.concatenate([text, x], 1)
        whole = self.block(whole, (torch.vstack([still, cos]), torch.vstack([still * 0, sin])), None)
        return whole[:, words:], whole[:, :words]


class Apart(Words):
    """Text and clip enter each block apart."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Joining(block, join) for block in self.blocks)

    def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        cos, sin = self.tables(tuple(int(n) for n in hidden_states.shape[2:]))  # type: ignore[arg-type]
        x, text = self.proj_in(hidden_states.flatten(2).transpose(1, 2)), self.proj_in(text)
        for block in self.blocks:
            x, text = block(x, text=text, cos=cos, sin=sin)
        result: torch.Tensor = self.proj_out(x)
        return result


def shared_apart(config: Any, join: str) -> Apart:
    """The model whose blocks join text and clip themselves, with both shared out where the blocks begin.

    Args:
        config: a ContextParallelConfig that is set up.
        join: see `Joining`.
    """
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    torch.manual_seed(0)
    model = Apart(join)
    tokens, table = (ContextParallelInput(split_dim=axis, expected_dims=dims) for axis, dims in ((1, 3), (0, 2)))
    plan: dict[str, Any] = {"blocks.0": {"x": tokens, "text": tokens}, "blocks.*": {"cos": table, "sin": table}}
    plan["proj_out"] = ContextParallelOutput(gather_dim=1, expected_dims=3)
    apply_context_parallel(model, config, plan)
    return model
