"""Mixtures: several strategies run side by side on the same q, k and v, their outputs combined into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from .errors import StrategyError

if TYPE_CHECKING:
    from .strategy import Strategy

__all__ = ["Mean", "Mixture", "check_members", "check_outputs"]


@runtime_checkable
class Mixture(Protocol):
    """What a strategy says about running several. Immutable and hashable."""

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The strategies mixed, at least one."""
        ...

    def combine(self, outputs: Sequence[torch.Tensor], frames: int, height: int, width: int) -> torch.Tensor:
        """One output from those of the strategies, in their order.

        Args:
            outputs: (batch, heads, frames * height * width, head_dim) each, video tokens in raster order, one dtype.

        Returns: that shape and dtype.

        Raises:
            StrategyError: another number of outputs, or a shape that does not fit the grid.
        """
        ...

    def with_strategies(self, strategies: tuple[Strategy, ...]) -> Mixture:
        """The same rule on other strategies, as many as before."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-serialisable settings of the rule, with its name under "kind"; the strategies describe themselves."""
        ...


def check_members(kind: str, strategies: object) -> None:
    """Refuse anything but a tuple of at least one strategy without a mixture of its own."""
    if not isinstance(strategies, tuple) or not strategies:
        raise StrategyError(f"{kind}.strategies: expected a tuple of at least one strategy, found {strategies!r}")
    for strategy in strategies:
        if getattr(strategy, "mixture", None) is not None:
            raise StrategyError(f"{kind}.strategies: expected strategies without a mixture, found {strategy.name!r}")


def check_outputs(kind: str, count: int, outputs: Sequence[torch.Tensor], tokens: int) -> None:
    """Refuse outputs that are not one a strategy, or not of the grid's tokens."""
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
    """The mean of the outputs: attention with the average of the strategies' softmax matrices, since v is shared."""

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
