"""VRPR's tiers for a strategy that sees a window and, beyond it, only frames that everybody sees.

The law binds the distances that attention reaches (|P| <= L - 1 for every reachable d), and only those can lose
resolution. With TSA all pairs but the sink's lie within D2, about the trained length. Tiers that fit the whole clip
would quantise that window for the sake of distances that nobody sees; here it keeps the resolution, and the sink,
whose exact distance says little, gets the one position behind it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import solve
from .positions import VRPR
from .visibility import FULL, NONE, STRIPE, Visibility

__all__ = ["vrpr_sparse", "window"]


def window(rule: Visibility, frames: int, height: int, width: int) -> np.ndarray:
    """Count the visible pairs of frames at each distance, without the key frames that all queries see.

    Args:
        rule: what queries see.
        frames: latent frames of the clip, at least 1.
        height: rows of tokens in one latent frame.
        width: columns of tokens in one latent frame.

    Returns:
        The number of pairs at distances 0 .. frames-1, float64 (frames,); a pair that is seen along a stripe counts as
        the stripe's share of tokens.
    """
    levels = rule.levels(frames).copy()
    if not (levels == FULL).all():
        levels[:, (levels == FULL).all(0)] = NONE
    share = float(rule.stripe(height, width).mean()) if (levels == STRIPE).any() else 0.0
    weight = np.where(levels == FULL, 1.0, np.where(levels == STRIPE, share, 0.0))
    return np.array([weight.trace()] + [weight.trace(-d) + weight.trace(d) for d in range(1, frames)])


def vrpr_sparse(trained_frames: int, rule: Visibility, frames: int, height: int, width: int) -> VRPR:
    """Find the setting that loses least resolution on the window of `rule`, with |P| <= trained_frames - 1 everywhere.

    The loss is that of `solve.loss` over the window's pairs. A rule whose window is the clip has `solve.vrpr`'s answer.

    Args:
        trained_frames: latent frames of the training clips, at least 2.
        rule: what queries see.
        frames: latent frames of the clip, at least 1.
        height: rows of tokens in one latent frame.
        width: columns of tokens in one latent frame.

    Returns:
        The setting.

    Raises:
        SolveError: an argument is not of that kind.
    """
    count = window(rule, frames, height, width)
    reach = int(np.flatnonzero(count)[-1]) if count.any() else 0
    if reach == frames - 1:
        return solve.vrpr(trained_frames, frames)
    return _solve(trained_frames, frames, tuple(float(c) for c in count[: reach + 1]))


@lru_cache(maxsize=64)
def _solve(trained_frames: int, frames: int, counts: tuple[float, ...]) -> VRPR:
    """Search for the setting of `vrpr_sparse`, given the window's pairs at each distance that it holds."""
    bound, reach = trained_frames - 1, len(counts) - 1
    if reach <= bound:
        return VRPR(bound, bound, 1, frames)  # the window as it is, and a clip
    d = np.arange(1, reach + 1)
    weight = np.array(counts[1:]) / d / d**2
    best: tuple[float, VRPR] | None = None
    for w1 in range(bound, -1, -1):
        for g1 in range(2, reach + 2):
            setting = VRPR(w1, reach, g1, max(frames, g1))
            if setting.of_distance(frames - 1) > bound:
                continue
            _, index, size = np.unique(setting.of_distance(np.arange(-reach, reach + 1)), return_inverse=True,
                                       return_counts=True)  # fmt: skip
            lost = float((weight * (size[index][reach + 1 :].astype(float) ** 2 - 1)).sum())
            if best is None or lost < best[0] * (1 - 1e-9):
                best = lost, setting
    assert best is not None, "w1 = 0 and one group that holds the window always fit"
    return best[1]
