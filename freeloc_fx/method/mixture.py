"""Mixtures: several strategies run side by side on the same q, k and v, their outputs combined into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from freeloc_fx.errors import StrategyError

if TYPE_CHECKING:
    from .strategy import Strategy

__all__ = ["Mean", "check_members", "check_outputs"]


def check_members(kind: str, strategies: object) -> None:
    """Refuse anything but a tuple of at least one strategy without a mixture of its own.

    Args:
        kind: the mixture's name, for messages.
        strategies: what was given as the strategies to mix.

    Raises:
        StrategyError: it is something else.
    """
    if not isinstance(strategies, tuple) or not strategies:
        raise StrategyError(f"{kind}.strategies: expected a tuple of at least one strategy, found {strategies!r}")
    for strategy in strategies:
        if getattr(strategy, "mixture", None) is not None:
            raise StrategyError(f"{kind}.strategies: expected strategies without a mixture, found {strategy.name!r}")


def check_outputs(kind: str, count: int, outputs: Sequence[torch.Tensor], tokens: int) -> None:
    """Refuse outputs that are not one a strategy, or not of the grid's tokens.

    Args:
        kind: the mixture's name, for messages.
        count: the number of strategies.
        outputs: one tensor a strategy.
        tokens: video tokens of the sequence.

    Raises:
        StrategyError: another number of outputs, or one that is not (batch, heads, tokens, head_dim) as the first.
    """
    if len(outputs) != count:
        raise StrategyError(f"{kind}: expected {count} outputs, one a strategy, found {len(outputs)}")
    shape = outputs[0].shape
    for index, output in enumerate(outputs):
        if output.ndim != 4 or output.shape[2] != tokens or output.shape != shape:
            raise StrategyError(
                f"{kind}: expected outputs of one shape (batch, heads, {tokens}, head_dim), "
                f"found {tuple(output.shape)} as number {index}"
            )


@dataclass(frozen=True)
class Mean:
    """The mean of the outputs: attention with the average of the strategies' softmax matrices, since v is shared.

    Args:
        strategies: at least one strategy, none with a mixture of its own.

    Raises:
        StrategyError: they are not.
    """

    strategies: tuple[Strategy, ...]

    def __post_init__(self) -> None:
        check_members("mean", self.strategies)

    def combine(self, outputs: Sequence[torch.Tensor], frames: int, height: int, width: int) -> torch.Tensor:
        check_outputs("mean", len(self.strategies), outputs, frames * height * width)
        if len(outputs) == 1:
            return outputs[0]
        # Accumulate at float32 at least: sixteen half-precision outputs would lose their last bits one by one.
        work = torch.promote_types(outputs[0].dtype, torch.float32)
        total = outputs[0].to(work, copy=True)
        for output in outputs[1:]:
            total += output
        return (total / len(outputs)).to(outputs[0].dtype)

    def with_strategies(self, strategies: tuple[Strategy, ...]) -> Mean:
        return replace(self, strategies=strategies)

    def describe(self) -> dict[str, Any]:
        return {"kind": "mean"}
