"""A budgeted search over strategies a group of layers and their settings, for any function that scores a candidate.

Coordinate ascent from the best of several starts; each choice is made by successive halving over seeds (Jamieson and
Talwalkar, AISTATS 2016, arXiv 1502.07943, algorithm 1, with seeds as the resource). Given the same scores it takes the
same way, so a search whose scores are kept in a journal resumes by running again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from freeloc_fx.method.build import parse
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.visibility import TSA
from freeloc_fx.planning.profile import Profile

__all__ = ["Candidate", "Found", "OutOfBudget", "bootstrap", "groups_of", "halve", "neighbours", "search", "summary"]


Score = Callable[["Candidate", int], float]


class OutOfBudget(Exception):
    """A score was asked for that the budget, or a journal that is only read, does not have."""


@dataclass(frozen=True)
class Candidate:
    """Strategy names, one a group of layers; settings for the whole model, None = solved.

    vrpr: (W1, W2, G1, G2) in latent frames. tsa: (D1, D2) in latent frames and D_s in tokens.
    """

    layers: tuple[str, ...]
    vrpr: tuple[int, int, int, int] | None = None
    tsa: tuple[int, int, int] | None = None

    @property
    def key(self) -> str:
        return json.dumps([self.layers, self.vrpr, self.tsa])

    def uses(self, part: str) -> bool:
        return any(part in parse(name) for name in self.layers)

    def profile(self, base: Profile, groups: Sequence[Sequence[int]]) -> Profile:
        """The base profile's trained length, model and temperatures with this candidate's choices."""
        layers = {layer: name for name, group in zip(self.layers, groups, strict=True) for layer in group}
        vrpr = None if self.vrpr is None else VRPR(*self.vrpr)
        tsa = None if self.tsa is None else TSA(*self.tsa)
        return replace(base.with_layers(layers, "candidate"), vrpr=vrpr, tsa=tsa)


@dataclass(frozen=True)
class Found:
    """best: of the candidates scored on every seed, with its mean score. evaluations: scores asked for. complete: the
    search stopped because no coordinate improved, not because the budget ran out. path: the best after each choice."""

    best: Candidate
    mean: float
    evaluations: int
    complete: bool
    path: tuple[tuple[Candidate, float], ...] = field(default=())


def groups_of(layers: int, groups: int) -> list[list[int]]:
    """Layer indices in `groups` runs of about equal length."""
    return [run.tolist() for run in np.array_split(np.arange(layers), min(groups, layers))]


def halve(candidates: Sequence[Candidate], seeds: Sequence[int], score: Score, keep: Candidate) -> Candidate:
    """The candidate of the best mean: scored on 1, 2, 4, ... seeds, the worse half dropped each time.

    Args:
        keep: stays to the end and wins ties, so that a choice is left only for one that is better on every seed's mean.
    """
    alive = [keep, *dict.fromkeys(c for c in candidates if c != keep)]
    count = 1
    while True:
        means = {c: float(np.mean([score(c, seed) for seed in seeds[:count]])) for c in alive}
        ranked = sorted(alive, key=lambda c: -means[c])  # stable: the one to keep comes first among equals
        if count >= len(seeds) or len(ranked) == 1:
            return ranked[0] if count >= len(seeds) else keep
        alive = ranked[: (len(ranked) + 1) // 2]
        if keep not in alive:
            alive.append(keep)
        alive.sort(key=lambda c: c != keep)
        count = min(2 * count, len(seeds))


def search(
    starts: Sequence[Candidate],
    moves: Callable[[Candidate], Sequence[Sequence[Candidate]]],
    seeds: Sequence[int],
    score: Score,
    budget: int,
) -> Found:
    """The best candidate found with at most `budget` different scores.

    Args:
        starts: at least one. moves: of a candidate, its alternatives along each coordinate. score: of a candidate on a
            seed, larger = better; it is asked once for each pair, and may raise `OutOfBudget` itself.

    Raises:
        OutOfBudget: before the first start was scored on every seed.
    """
    known: dict[tuple[Candidate, int], float] = {}

    def counted(candidate: Candidate, seed: int) -> float:
        if (candidate, seed) not in known:
            if len(known) >= budget:
                raise OutOfBudget(f"search: the budget of {budget} scores is spent")
            known[candidate, seed] = score(candidate, seed)
        return known[candidate, seed]

    def mean(candidate: Candidate) -> float:
        return float(np.mean([counted(candidate, seed) for seed in seeds]))

    best = starts[0]
    path = [(best, mean(best))]
    complete = False
    try:
        best = halve(starts, seeds, counted, keep=best)
        path.append((best, mean(best)))
        since = 0  # coordinates tried since the last improvement
        while not complete:
            for coordinate in range(len(moves(best))):
                options = moves(best)
                if coordinate >= len(options):
                    break
                chosen = halve(options[coordinate], seeds, counted, keep=best)
                since = 0 if chosen != best else since + 1
                if chosen != best:
                    best = chosen
                    path.append((best, mean(best)))
                if since >= len(options):
                    complete = True
                    break
            if not moves(best):
                complete = True
    except OutOfBudget:
        pass
    return Found(best, mean(best), len(known), complete, tuple(path))


def neighbours(
    candidate: Candidate, names: Sequence[str], trained: int, frames: int, solved: tuple[VRPR, TSA], tokens: int
) -> list[list[Candidate]]:
    """Alternatives along each coordinate: every group's strategy, then VRPR's tiers and TSA's windows where in use.

    Args:
        names: strategies to try. trained, frames: latent frames. solved: the settings that None stands for. tokens: in
            a frame.
    """
    moves = []
    for group, current in enumerate(candidate.layers):
        changed = [
            (*candidate.layers[:group], name, *candidate.layers[group + 1 :]) for name in names if name != current
        ]
        moves.append([replace(candidate, layers=layers) for layers in changed])
    near = max(1, round(trained / 10))
    if candidate.uses("vrpr"):
        w1, w2, g1, _ = candidate.vrpr or (solved[0].w1, solved[0].w2, solved[0].g1, solved[0].g2)
        tiers = [(w1 - near, w2, g1), (w1 + near, w2, g1), (w1, w2 - near, g1), (w1, w2 + near, g1)]
        tiers += [(w1, w2, max(1, g1 // 2)), (w1, w2, 2 * g1)]
        options = [_within(*tier, trained, frames) for tier in tiers]
        found = [replace(candidate, vrpr=option) for option in dict.fromkeys(options) if option is not None]
        moves.append([c for c in found if c != candidate])
    if candidate.uses("tsa"):
        d1, d2, ds = candidate.tsa or (solved[1].d1, solved[1].d2, solved[1].ds)
        windows = [(d1 - near, d2, ds), (d1 + near, d2, ds), (d1, d2 - 2 * near, ds), (d1, d2 + 2 * near, ds)]
        windows += [(d1, d2, ds // 2), (d1, d2, min(2 * ds, tokens))]
        legal = [w for w in dict.fromkeys(windows) if 1 <= w[0] <= w[1] and w[2] >= 1 and w != (d1, d2, ds)]
        moves.append([replace(candidate, tsa=w) for w in legal])
    return moves


def _within(w1: int, w2: int, g1: int, trained: int, frames: int) -> tuple[int, int, int, int] | None:
    """Tiers with the smallest G2 that keeps every distance of the clip within the trained ones; None if none does."""
    if not 0 <= w1 <= w2:
        return None
    for g2 in range(g1, frames + 1):
        if int(VRPR(w1, w2, g1, g2).of_distance(frames - 1)) <= trained - 1:  # P is monotone: its end is its largest
            return w1, w2, g1, g2
    return None


def bootstrap(values: Sequence[float], draws: int = 2000) -> list[float]:
    """Mean of the values and its 95% percentile bootstrap interval (Efron 1979): [mean, low, high]."""
    data = np.asarray(values, float)
    means = np.random.default_rng(0).choice(data, (draws, len(data))).mean(1)
    return [float(data.mean()), *(float(q) for q in np.quantile(means, [0.025, 0.975]))]


def summary(candidate: Candidate, groups: Sequence[Sequence[int]]) -> Mapping[str, Any]:
    """A candidate as JSON data, strategies by layer."""
    layers = {str(layer): name for name, group in zip(candidate.layers, groups, strict=True) for layer in group}
    return {"layers": layers, "vrpr": candidate.vrpr, "tsa": candidate.tsa}
