"""What one long attention computes, as a value: strategy, token grid, temporal RoPE.

Graphs name a spec by its key, a readable label with a hash of the content. Equal specs have equal keys in every
process, so a graph that Inductor cached on disk finds the same spec again; layers and denoising steps share one entry.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import numpy as np

from .grid import RopeLayout, TokenGrid
from .positions import distances
from .strategy import Strategy
from .visibility import FULL, STRIPE

__all__ = ["AttentionSpec", "levels_of"]


def levels_of(strategy: Strategy, grid: TokenGrid) -> np.ndarray:
    """Give what each place of a sequence sees of each other.

    A stripe says which tokens of a frame see which of another frame of as many rows and columns; of a further frame of
    another size, and by one, everything is seen that the stripe would thin out.

    Args:
        strategy: one without a mixture.
        grid: the tokens of the sequence.

    Returns:
        NONE, STRIPE or FULL, int8 (places, places), row = query place i, column = key place j.
    """
    levels = strategy.visibility.levels(grid.frame_times)
    if not grid.of_one_size:
        of_clip = [(frame.height, frame.width) == (grid.height, grid.width) for frame in grid.further]
        early = len(grid.before)
        odd = ~np.array([*of_clip[:early], *(True,) * grid.frames, *of_clip[early:]])
        levels[(levels == STRIPE) & (odd[:, None] | odd)] = FULL
    return levels


@dataclass(frozen=True)
class AttentionSpec:
    """What one long attention computes. Immutable and hashable.

    Args:
        strategy: what the attention does with a long video.
        grid: the tokens of its sequence.
        rope: how the model's temporal RoPE turns the channels of a head.
    """

    strategy: Strategy
    grid: TokenGrid
    rope: RopeLayout

    @property
    def key(self) -> str:
        """Name of the spec in graphs: the strategy's name, the token grid and a hash of the content."""
        content = [self.strategy.describe(), asdict(self.grid), {**asdict(self.rope), "residual": 0.0}]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        grid = self.grid
        return f"{self.strategy.name}@{grid.frames}x{grid.height}x{grid.width}#{digest}"

    def at(self, step: int) -> AttentionSpec:
        """Give the spec at one denoising step.

        Args:
            step: the step, counted from 0.
        """
        strategy = self.strategy.at(step)
        return self if strategy is self.strategy else replace(self, strategy=strategy)

    def kept_pairs(self) -> float:
        """Count the token pairs that are computed, relative to dense attention. Text sees and is seen by all.

        Returns:
            The visible share, in (0, 1]; for a mixture the sum over its strategies.
        """
        sizes, text = np.asarray(self.grid.sizes), self.grid.text
        visible = 0
        for member in self.strategy.members:  # each strategy of a mixture computes its own pairs
            levels = levels_of(member, self.grid)
            stripe = member.visibility.stripe(self.grid.height, self.grid.width)
            visible += int(sizes @ (levels == FULL) @ sizes) + int((levels == STRIPE).sum()) * int(stripe.sum())
            visible += text * (2 * self.grid.video + text)
        return float(visible / self.grid.sequence**2)

    def shifts(self) -> np.ndarray:
        """Give by how many latent frames key j must turn for query i: i - P[i, j] - j.

        What the model itself has placed off the times of the grid (the first frame of a causal encoder) stays off by
        as much.

        Returns:
            float64 (places, places), row = query place i, column = key place j.
        """
        return distances(self.grid.frame_times) - self.table()

    def table(self) -> np.ndarray:
        """Give the remapped distance P of every pair of places, float64 (places, places)."""
        return self.strategy.positions.table(self.grid.frame_times)

    def levels(self) -> np.ndarray:
        """Give what each place sees of each other, see `levels_of`."""
        return levels_of(self.strategy, self.grid)

    def decay(self) -> np.ndarray | None:
        """Give the factor on positive scores of every pair of places, float64 (places, places); None for none."""
        return None if self.strategy.decay is None else self.strategy.decay.table(self.grid.frame_times)

    @property
    def effective_rope(self) -> RopeLayout:
        """The layout with the strategy's frequencies in place of the model's."""
        omega = self.strategy.frequencies.omega(np.asarray(self.rope.omega), self.grid.frames)
        return replace(self.rope, omega=tuple(tuple(float(w) for w in row) for row in omega))

    def frequency_change(self) -> RopeLayout | None:
        """Give a layout that turns q and k of frame t from the model's frequencies to the strategy's.

        Returns:
            The layout, whose omega is the difference of the two; None where they are equal.
        """
        before, after = np.asarray(self.rope.omega), np.asarray(self.effective_rope.omega)
        if np.array_equal(before, after):
            return None
        return replace(self.rope, omega=tuple(tuple(float(w) for w in row) for row in after - before))

    def text_turn(self) -> np.ndarray | None:
        """Give by how many latent frames a video token turns when it meets a text token.

        Text is not rotated, so RoPE tells it a video token's absolute frame, which a long clip takes out of the trained
        range; `text_scale` and `text_last` bring it back.

        Returns:
            float64 (places,), or None where no token turns.
        """
        scale, last = self.strategy.text_scale, self.strategy.text_last
        index = self.grid.times
        if scale == 1.0 and (last is None or last >= index.max()):
            return None
        return np.minimum(index * scale, np.inf if last is None else last) - index
