"""Which FlexAttention calls a strategy needs: one for each place where the keys stand.

The score of query frame i and key frame j must come out as if they stood P(i, j) apart. Keys that stand at
b = floor(j / G) serve a whole tier of VRPR, at any G, if each query stands at one of four places: which one is a matter
of the pair (see `method.positions.quantised`). So a tier is one call: one turned copy of the keys, and as many turned
copies of the queries as there are places, as query heads that share one key head. The block mask of each of these heads
holds the pairs for which its place is right, and every visible pair is in exactly one.

    VRPR  near tier     1 version of q, k as it is          direct, TSA, window, anchors: this call alone
          middle tier   4 versions of q, k at floor(j / G1)
          far tier      4 versions of q, k at floor(j / G2)

A version in which nothing is visible (TSA leaves far tiers little or nothing) is left out, and so is a call without
versions. The text of a joint model is part of the call in which nothing turns; where video tokens turn to meet text
(`AttentionSpec.text_turn`), text is one more call.

This file knows frames and numbers; `tables` makes tensors of them, `attend` runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from freeloc_fx.attention.cache import Cache
from freeloc_fx.method.positions import tiers
from freeloc_fx.method.spec import AttentionSpec, levels_of
from freeloc_fx.method.visibility import FULL, NONE, STRIPE

__all__ = ["FlexCall", "Version", "call_levels", "flex_calls", "member_specs"]


@dataclass(frozen=True)
class Version:
    """One place at which each query stands, and the pairs of segments for which it is right.

    Args:
        turn: latent frames by which each query frame turns, float64 (frames,).
        pairs: bool (frames, frames), row = query frame; only visible ones of these are computed.
        text: whether pairs with a text token, on either side or both, are among them.
    """

    turn: np.ndarray
    pairs: np.ndarray
    text: bool = False


@dataclass(frozen=True)
class FlexCall:
    """One FlexAttention call.

    Args:
        turn: latent frames by which each key frame turns, float64 (frames,).
        versions: of the queries, at least one.
        striped: whether a pair of frames in it is visible along the stripe at some denoising step.
        dense: whether every pair of tokens is visible in it at every step, so that it needs no mask.
    """

    turn: np.ndarray
    versions: tuple[Version, ...]
    striped: bool
    dense: bool

    @property
    def turns_keys(self) -> bool:
        """Whether the keys must be turned."""
        return bool(self.turn.any())

    @property
    def turns_queries(self) -> bool:
        """Whether there are several versions of the queries, or one that is turned."""
        return len(self.versions) > 1 or bool(self.versions[0].turn.any())

    @property
    def text(self) -> bool:
        """Whether pairs with text tokens are among its own."""
        return any(version.text for version in self.versions)


def member_specs(spec: AttentionSpec) -> list[AttentionSpec]:
    """The strategies to run side by side: those of a mixture, else the one.

    Args:
        spec: the strategy, grid and RoPE.
    """
    return [replace(spec, strategy=strategy) for strategy in spec.strategy.members]


_calls = Cache(64)
"""Spec -> its calls. It decides nothing about results: what is not there is made again."""


def flex_calls(spec: AttentionSpec) -> list[FlexCall]:
    """The calls of a strategy without a mixture, which serve every denoising step.

    Args:
        spec: the strategy, grid and RoPE.

    Returns:
        Calls that together hold every pair of tokens that is visible at some step exactly once, at least one.
    """
    return _calls.get(spec, lambda: list(_made(spec)))


def _made(spec: AttentionSpec) -> Iterator[FlexCall]:
    grid, strategy = spec.grid, spec.strategy
    frames, index = grid.places, grid.times
    steps = [levels_of(strategy.at(step), grid) for step in range(strategy.period)]
    seen = np.maximum.reduce(steps) != NONE
    stripes = np.logical_or.reduce([levels == STRIPE for levels in steps])
    text, text_turn = bool(grid.text), spec.text_turn()
    placed = not text
    for bands in tiers(strategy.positions, grid.frame_times):
        key = bands[0].key - index
        versions = []
        for band in bands:
            turn = band.query - index
            used = band.pairs & seen
            with_text = not placed and text_turn is None and not key.any() and not turn.any()
            placed = placed or with_text
            if used.any() or with_text:
                versions.append(Version(turn, used, with_text))
        if not versions:
            continue
        pairs = np.logical_or.reduce([version.pairs for version in versions])
        whole = len(versions) == 1 and versions[0].pairs.all() and versions[0].text == text
        dense = bool(whole and all((levels == FULL).all() for levels in steps))
        yield FlexCall(key, tuple(versions), bool((pairs & stripes).any()), dense)
    if not placed:
        turn = np.zeros(frames) if text_turn is None else text_turn
        yield FlexCall(turn, (Version(turn, np.zeros((frames, frames), bool), True),), False, False)


def call_levels(spec: AttentionSpec, call: FlexCall) -> np.ndarray:
    """What each segment sees of each other in a call, by version.

    Args:
        spec: the strategy at one denoising step, its grid and RoPE.
        call: of the strategy, from `flex_calls`.

    Returns:
        NONE, STRIPE or FULL, int8 (versions, segments, segments): the places, and text as the last segment where the
        sequence has any.
    """
    frames, text = spec.grid.places, bool(spec.grid.text)
    visible = spec.levels()
    levels = np.full((len(call.versions), frames + text, frames + text), NONE, np.int8)
    for version, table in zip(call.versions, levels, strict=True):
        table[:frames, :frames] = np.where(version.pairs, visible, NONE)
        if version.text:
            table[frames:] = table[:, frames:] = FULL
    return levels
