"""A strategy: what one attention site does with a long video, composed from named parts.

Names are parts joined by "+": "direct", "vrpr", "tsa", "vrpr+tsa", "riflex+tsa", "clip+window", each with an optional
"+temp". A part says what it contributes for one geometry; two parts that contribute the same thing do not compose.
`build.build` makes the strategy of a name. FreeLOC's own parts are in `freeloc`, those of the methods that it is
compared with in `peers`, one file a method, and `catalogue` lists them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch

from freeloc_fx.errors import StrategyError

from .checks import is_whole
from .decay import ScoreDecay
from .frequencies import FrequencyMap, Unchanged
from .positions import Identity, PositionMap
from .visibility import Everything, Rotating, Visibility

__all__ = ["Geometry", "Mixture", "Strategy"]


@runtime_checkable
class Mixture(Protocol):
    """What a strategy says about running several strategies. Implementations are immutable and hashable."""

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The strategies mixed, at least one."""
        ...

    def combine(self, outputs: Sequence[torch.Tensor], frames: int, height: int, width: int) -> torch.Tensor:
        """Make one output from those of the strategies.

        Args:
            outputs: one tensor a strategy, in their order: (batch, heads, frames * height * width, head_dim) each,
                video tokens in raster order, all of one dtype.
            frames: latent frames of the clip.
            height: rows of tokens in one latent frame.
            width: columns of tokens in one latent frame.

        Returns:
            A tensor of that shape and dtype.

        Raises:
            StrategyError: another number of outputs, or a shape that does not fit the grid.
        """
        ...

    def with_strategies(self, strategies: tuple[Strategy, ...]) -> Mixture:
        """Give the same rule on other strategies.

        Args:
            strategies: the others, as many as before.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Give the rule's settings as JSON-serialisable data, with its name under "kind".

        The strategies are left out, because they describe themselves.
        """
        ...


@dataclass(frozen=True)
class Geometry:
    """One call's token grid beside the trained length.

    Args:
        trained_frames: latent frames of the training clips.
        frames: latent frames of the call's clip.
        height: rows of tokens in one latent frame.
        width: columns of tokens in one latent frame.
    """

    trained_frames: int
    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens in one latent frame."""
        return self.height * self.width


@dataclass(frozen=True)
class Strategy:
    """What one attention site does with a long video. Immutable and hashable; the default changes nothing.

    A query of frame i and a key of frame j meet at the angle P[i, j] * omega' instead of (i - j) * omega, where P comes
    from `positions` and omega' from `frequencies`.

    Args:
        name: parts joined by "+", for people to read.
        positions: the map from distances in latent frames to remapped distances P.
        visibility: which pairs of tokens are computed.
        temperature: factor on every score.
        frequencies: the map from the model's angles per latent frame omega to other ones omega'.
        decay: factor on the positive scores of a pair of frames; None for none.
        mixture: several strategies instead of this one; the other fields are then the defaults, because each of the
            strategies has its own. None for no mixture.
        text_scale: where text and video attend to each other, the video token of frame i stands at text_scale * i.
        text_last: the latent frame beyond which no video token stands where it meets text; None for no bound.
        stages: ((n, strategy), ...) with rising n: before denoising step n, counted from 0, that strategy runs instead.

    Raises:
        StrategyError: a mixture beside another field that is not the default.
    """

    name: str = "direct"
    positions: PositionMap = field(default_factory=Identity)
    visibility: Visibility = field(default_factory=Everything)
    temperature: float = 1.0
    frequencies: FrequencyMap = field(default_factory=Unchanged)
    decay: ScoreDecay | None = None
    mixture: Mixture | None = None
    text_scale: float = 1.0
    text_last: int | None = None
    stages: tuple[tuple[int, Strategy], ...] = ()

    def __post_init__(self) -> None:
        if self.mixture is not None and (others := replace(self, mixture=None, stages=()).set_fields):
            raise StrategyError(
                f"strategy {self.name!r}: a mixture leaves the {', '.join(others)} to the strategies it mixes"
            )

    @property
    def set_fields(self) -> list[str]:
        """Names of the fields that change something; `stages` is not among them."""
        return [name for name, default in _DEFAULTS.items() if getattr(self, name) != default]

    @property
    def changes_nothing(self) -> bool:
        """Whether the attention stays as the model has it, at every denoising step."""
        return self.mixture is None and not self.set_fields and all(s.changes_nothing for _, s in self.stages)

    @property
    def turns_by_fractions(self) -> list[str]:
        """What turns q or k by other than a whole number of frames, so that rates must be known beyond whole turns."""
        found = {s.frequencies.describe()["kind"] for s in self.members if not isinstance(s.frequencies, Unchanged)}
        found |= {"squeeze"} if any(s.text_scale not in (0.0, 1.0) for s in self.members) else set()
        return sorted(found.union(*(early.turns_by_fractions for _, early in self.stages)))

    @property
    def follows_steps(self) -> bool:
        """Whether anything depends on the denoising step."""
        return bool(self.stages) or self.period > 1

    @property
    def members(self) -> tuple[Strategy, ...]:
        """The strategies to run: those of the mixture, or this one alone."""
        return (self,) if self.mixture is None else self.mixture.strategies

    @property
    def temperatures(self) -> str:
        """The factor on scores as text, of each of a mixture's strategies where they differ: "1.110 / 0.978"."""
        values = [f"{member.temperature:.3f}" for member in self.members]
        return values[0] if len(set(values)) == 1 else " / ".join(values)

    @property
    def period(self) -> int:
        """Number of denoising steps after which `at` begins again; 1 where nothing depends on the step."""
        if self.mixture is not None:
            return math.lcm(*(strategy.period for strategy in self.mixture.strategies))
        return self.visibility.period if isinstance(self.visibility, Rotating) else 1

    def stage(self, step: int) -> Strategy:
        """Give the strategy of the stage that a denoising step is in. It has no stages, and may still follow steps.

        Args:
            step: the step, counted from 0 at the first one of a generation.
        """
        for stop, strategy in self.stages:
            if step < stop:
                return strategy.stage(step)
        return replace(self, stages=()) if self.stages else self

    def at(self, step: int) -> Strategy:
        """Give the strategy at one denoising step.

        There are at most `period` different ones beside those of `stages`, and a strategy that does not rotate is
        itself at every step.

        Args:
            step: the step, counted from 0 at the first one of a generation.

        Returns:
            The strategy, without stages.

        Raises:
            StrategyError: the step is not an integer from 0.
        """
        if not is_whole(step, 0):
            raise StrategyError(f"strategy {self.name!r}: expected a step from 0, found {step!r}")
        if self.stages:
            for stop, strategy in self.stages:
                if step < stop:
                    return strategy.at(step)
            return replace(self, stages=()).at(step)
        if self.mixture is not None:
            strategies = tuple(strategy.at(step) for strategy in self.mixture.strategies)
            if strategies == self.mixture.strategies:
                return self
            return replace(self, mixture=self.mixture.with_strategies(strategies))
        if not isinstance(self.visibility, Rotating):
            return self
        return replace(self, visibility=self.visibility.at(step))

    def describe(self) -> dict[str, Any]:
        """Give the settings as JSON-serialisable data; different strategies describe themselves differently."""
        mixture = self.mixture
        return {
            "name": self.name,
            **self.positions.describe(),
            **self.visibility.describe(),
            "temperature": self.temperature,
            "frequencies": self.frequencies.describe(),
            "decay": None if self.decay is None else self.decay.describe(),
            "mixture": None
            if mixture is None
            else {**mixture.describe(), "strategies": [strategy.describe() for strategy in mixture.strategies]},
            "period": self.period,
            **({} if self.text_scale == 1.0 else {"text_scale": self.text_scale}),
            **({} if self.text_last is None else {"text_last": self.text_last}),
            **({} if not self.stages else {"stages": [{"before": n, **early.describe()} for n, early in self.stages]}),
        }


_DEFAULTS: dict[str, Any] = {
    "positions": Identity(),
    "visibility": Everything(),
    "temperature": 1.0,
    "frequencies": Unchanged(),
    "decay": None,
    "mixture": None,
    "text_scale": 1.0,
    "text_last": None,
}
"""What each field is where it changes nothing, in the order of the fields."""
