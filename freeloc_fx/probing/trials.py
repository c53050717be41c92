"""Strategies tried in every layer beside the rule's assignment: one generation and its reward for each seed.

The rule knows two sensitivities and three parts. Whether a method of others suits a model better, only videos say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from freeloc_fx.errors import ProfileError
from freeloc_fx.method.build import parse

__all__ = ["MINIMUM", "Candidates", "Trial", "check", "choose"]


Candidates = Sequence[str] | Mapping[str, Sequence[int] | None]
"""Strategy names, tried at every target length; or name -> the targets at which it is tried, None for every one."""


MINIMUM = 3
"""Seeds without which a standard error says nothing."""


@dataclass(frozen=True)
class Trial:
    """What came of one strategy.

    Args:
        rewards: of each seed.
        difference: mean difference from the rule's assignment within seeds.
        error: its standard error.
    """

    rewards: tuple[float, ...]
    difference: float
    error: float

    @property
    def better(self) -> bool:
        """Whether it beats the rule's assignment by twice the standard error."""
        return self.difference > 0 and self.difference >= 2 * self.error


def check(
    candidates: Candidates, targets: Sequence[int], seeds: Sequence[int], rewarded: bool
) -> dict[int, tuple[str, ...]]:
    """Refuse candidates that cannot be tried, and sort the others by the length at which they are tried.

    Args:
        candidates: what keeps every pair may be worth its time at 4x and not at 10x, hence the lengths.
        targets: lengths of the probe, as `generate` counts frames.
        seeds: of the probe.
        rewarded: whether there is a reward.

    Returns:
        Target length -> the candidates to try there, without repeats; a target without any is left out.

    Raises:
        ProfileError: a length that is no target, no reward, fewer than `MINIMUM` seeds.
        StrategyError: a name that is not a strategy's.
    """
    names = dict(candidates) if isinstance(candidates, Mapping) else dict.fromkeys(candidates)
    for name, lengths in names.items():
        parse(name)
        if strange := [n for n in lengths or () if n not in targets]:
            raise ProfileError(
                f"candidates: {name!r} is to be tried at {', '.join(map(str, strange))}, "
                f"expected lengths of the probe: {', '.join(map(str, targets))}"
            )
    if names and not rewarded:
        raise ProfileError("candidates: a strategy is chosen by its videos, expected reward=f(video, seed), found none")
    if names and len(seeds) < MINIMUM:
        raise ProfileError(f"candidates: expected at least {MINIMUM} seeds to compare their videos, found {len(seeds)}")
    found = {n: tuple(name for name, at in names.items() if at is None or n in at) for n in targets}
    return {n: tried for n, tried in found.items() if tried}


def choose(rewards: Mapping[str, Sequence[float]], keep: str) -> tuple[str, dict[str, Trial]]:
    """Choose the strategy of the best mean reward among those better than `keep` by twice the standard error of the
    difference within seeds.

    Args:
        rewards: strategy -> one reward for each seed, seeds in the same order.
        keep: the strategy of the rule, which stays where none is better.

    Returns:
        The strategy, and the trial of each.
    """
    base = np.asarray(rewards[keep], float)
    trials = {}
    for name, values in rewards.items():
        gain = np.asarray(values, float) - base
        error = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        trials[name] = Trial(tuple(float(v) for v in values), float(gain.mean()), error)
    better = [name for name, trial in trials.items() if trial.better]
    return max(better, key=lambda name: trials[name].difference, default=keep), trials
