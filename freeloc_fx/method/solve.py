"""Settings for any length: VRPR's tiers and TSA's windows computed from the trained length and the grid.

The paper gives settings for one model at two lengths. Here VRPR's are the minimum of a loss of resolution under the
law that no distance leaves the trained range, and TSA's are the paper's scaled to the trained length at its own budget.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from freeloc_fx.errors import SolveError

from .checks import is_whole
from .positions import VRPR
from .visibility import TSA

__all__ = ["PAPER_TSA", "agreement", "loss", "tsa", "vrpr"]


Quantise = Literal["pair", "separable"]


PAPER_TRAINED_FRAMES = 21
"""Latent frames on which Wan2.1-T2V-1.3B was trained."""


PAPER_TOKENS = 1560
"""Tokens of one latent frame of that model at 832 x 480 pixels."""


PAPER_TSA = TSA(8, 24, 195)
"""FreeLOC's settings for Wan2.1-T2V-1.3B: 21 trained latent frames of 1560 tokens."""


def _integer(name: str, value: Any, least: int) -> int:
    """Refuse anything but an integer of at least `least`, NumPy's among them, and give it as an int."""
    # True == 1 would share a cache entry with 1, so True is refused.
    if not is_whole(value, least, numpy=True):
        raise SolveError(f"{name}: expected an integer of at least {least}, found {value!r}")
    return int(value)


def _weights(frames: int) -> np.ndarray:
    """Give what one unit of size^2 - 1 at distance d = 0 .. frames-1 adds to the loss, float64 (frames,)."""
    d = np.arange(1, frames, dtype=np.float64)
    attention = (frames - d) / d
    return np.append(0.0, attention / attention.sum() / (12 * d**2))


def loss(setting: VRPR, frames: int) -> float:
    """Give the mean squared relative error of distance that a setting costs in a clip.

    Where a run of distances shares one position, each is known up to a uniform error of variance (size^2 - 1)/12
    frames^2; relative to the distance d that is (size^2 - 1)/(12 d^2). The mean is over what attention reads:
    frames - d pairs of frames lie d apart, and the mass a query gives to distance d is taken to fall as 1/d. So

        loss = sum_d (frames - d)/d * (size(d)^2 - 1)/(12 d^2) / sum_d (frames - d)/d,    d = 1 .. frames - 1.

    size(d) counts the distances of either sign that have the position of d: mostly 1, G1 and G2 in the three tiers,
    but it is counted in the map, because the groups at the tiers' boundaries merge. Without the factor frames - d, and
    with a free choice of sizes, the minimum at a given reach has size proportional to d: equal ratios of distance get
    equal numbers of positions. The pair formula is judged for both values of `setting.quantise`; they differ in reach.

    Args:
        setting: the setting.
        frames: latent frames of the clip, at least 1.

    Returns:
        The loss; it has no unit.

    Raises:
        SolveError: `frames` is not an integer of at least 1.
    """
    frames = _integer("solve.loss frames", frames, 1)
    if frames == 1:
        return 0.0
    p = setting.of_distance(np.arange(1 - frames, frames))
    _, index, count = np.unique(p, return_inverse=True, return_counts=True)
    size = count[index][frames - 1 :].astype(np.float64)
    return float((_weights(frames) * (size**2 - 1)).sum())


def vrpr(trained_frames: int, frames: int, quantise: Quantise = "pair") -> VRPR:
    """Find the VRPR setting of smallest `loss` among those with |P| <= trained_frames - 1 at every distance of a clip.

    An answer exists for every length: w1 = w2 = trained_frames - 1 and one group beyond is a plain clip. Within the
    trained length the map is the identity. The bound holds for the quantisation asked for; the separable one can reach
    1 further than the pair formula in the middle tier.

    Args:
        trained_frames: latent frames of the training clips, at least 2.
        frames: latent frames of the clip, at least 1.
        quantise: "pair" or "separable", as in `VRPR`.

    Returns:
        The setting.

    Raises:
        SolveError: an argument is not of that kind.
    """
    trained_frames = _integer("solve.vrpr trained_frames", trained_frames, 2)
    frames = _integer("solve.vrpr frames", frames, 1)
    if quantise not in ("pair", "separable"):
        raise SolveError(f"solve.vrpr quantise: expected 'pair' or 'separable', found {quantise!r}")
    return _vrpr(trained_frames, frames, quantise)


@lru_cache(maxsize=256)
def _vrpr(trained_frames: int, frames: int, quantise: Quantise) -> VRPR:
    """Search for the setting of `vrpr` among all that are different maps, with bounds that leave most of them out."""
    bound, last = trained_frames - 1, frames - 1
    if frames <= trained_frames:
        return VRPR(bound, bound, 1, 1, quantise)
    weights = _weights(frames)
    before = np.append(0.0, np.cumsum(weights))  # before[a] = sum over d < a, a = 0 .. frames
    # Lower bound on the loss of the distances from a on, cut into m groups: Hoelder's inequality for
    # sum(w size^2) (sum 1/size)^2 >= (sum w^(1/3))^3, where sum 1/size = m.
    roots = np.append(np.cumsum(np.cbrt(weights)[::-1])[::-1], 0.0)
    rows = [_left(trained_frames, frames, g1, before, quantise) for g1 in range(1, frames)]
    w1, w2, g1, start, spare, left = (np.concatenate(column) for column in zip(*rows, strict=True))
    lower = left + roots[start] ** 3 / (spare + 1.0) ** 2 - (before[-1] - before[start])
    # far[g2][m] = the loss of the blocks [m g2, (m+1) g2) from m on; the clip cuts the last one short. One flat table.
    edges = [np.minimum(np.arange(last // g2 + 3) * g2, frames) for g2 in range(1, frames + 1)]
    far = np.concatenate([np.cumsum(_group(e[:-1], e[1:], before)[::-1])[::-1] for e in edges])
    place = np.append(0, np.cumsum([len(e) - 1 for e in edges]))

    best, setting = np.inf, (bound, bound, 1, frames)

    def consider(state: np.ndarray, g2: np.ndarray) -> None:
        """Keep the best of these near and middle tiers, each with its g2, where it beats what was best before."""
        nonlocal best, setting
        if not state.size:
            return
        block = w2[state] // g2
        fits = last // g2 - block <= spare[state]
        stop = np.minimum((block + 1) * g2, frames)
        total = left[state] + _group(start[state], stop, before) + far[place[g2 - 1] + block + 1]
        total = np.where(fits, total, np.inf)
        least = float(total.min())
        if least < best * (1 - 1e-9):  # rounding must not choose between settings that are the same map
            k = int((total <= least * (1 + 1e-9)).argmax())
            best, setting = least, (int(w1[state[k]]), int(w2[state[k]]), int(g1[state[k]]), int(g2[k]))

    # Beyond w2 lie between length // g2 and length // g2 + 1 groups of the far tier: that bounds g2 from below by
    # `spare` and, since few groups lose much, from above by the best loss so far.
    length = last - w2
    least = np.maximum(g1, length // (spare + 1) + 1)
    consider(np.arange(len(w1)), least)
    promising = np.sort(np.argsort(lower, kind="stable")[:1000])  # first, to discard most of the rest without a look
    for state in (promising, *np.array_split(np.arange(len(w1)), len(w1) // (1 << 15) + 1)):
        state = state[lower[state] < best]
        groups = np.sqrt(roots[start[state]] ** 3 / (best - left[state] + before[-1] - before[start[state]]))
        most = np.where(groups > 2, length[state] / np.maximum(groups - 2, 1e-9), frames)
        count = np.maximum(np.minimum(most, frames).astype(np.int64) - least[state] + 1, 0)
        g2 = np.repeat(least[state] - np.cumsum(count) + count, count) + np.arange(count.sum())
        consider(np.repeat(state, count), g2)
    return VRPR(*setting, quantise)


def _group(start: np.ndarray, stop: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Give the loss of distances start .. stop-1 that share one position; with 0 among them, their negatives do too."""
    size = stop - start + np.where(start == 0, np.maximum(stop - 1, 0), 0)
    return (size.astype(np.float64) ** 2 - 1) * (before[stop] - before[start])


def _left(trained_frames: int, frames: int, g1: int, before: np.ndarray, quantise: Quantise) -> tuple[np.ndarray, ...]:
    """Give the near and the middle tier of all settings with one g1: w1, w2, g1, start, spare and left.

    All are (settings,). `start` is the first distance of the group that holds w2; the far tier decides where that group
    ends. `left` is the loss of the groups before it. `spare` is how many positions are left for the groups after it.
    """
    bound, last = trained_frames - 1, frames - 1
    w1 = np.arange(trained_frames)[:, None]
    if g1 == 1:
        w2 = w1  # two tiers
    else:
        # g2 >= g1, so a group of the middle tier has at most one multiple of g2 in it: its first and its last distance
        # as w2 give every map there is.
        first = np.arange(0, min(last, g1 * trained_frames), g1)
        w2 = np.unique(np.minimum(np.concatenate([first, first + g1 - 1]), last - 1))[None, :]
    used = w1 - w1 // g1 + w2 // g1
    fits = (used <= bound) & ((w1 < w2) | (g1 == 1))
    if quantise == "separable" and g1 > 1:
        # floor(i/G) - floor(j/G) is ceil(d/G) for some pairs d apart, if the clip is long enough to hold them. In the
        # far tier the pair with j = 0 has the maximum, which is the pair formula's.
        fits &= w1 - w1 // g1 + np.minimum(-(-w2 // g1), last // g1) <= bound
    row, column = np.nonzero(fits)
    spare = bound - used[row, column]
    a, b = w1[row, 0], w2[row, 0] if g1 == 1 else w2[0, column]
    start = np.maximum(a, b // g1 * g1)
    second = np.minimum((a // g1 + 1) * g1, start)  # where the group of w1 ends, unless it holds w2 too
    left = _group(a, second, before) * (second > a) + (g1**2 - 1.0) * (before[start] - before[second])
    return a, b, np.full_like(a, g1), start, spare, left


def agreement(setting: VRPR, trained_frames: int, frames: int) -> dict[str, Any]:
    """Compare a setting with the solved one.

    Args:
        setting: the setting.
        trained_frames: latent frames of the training clips, at least 2.
        frames: latent frames of the clip, at least 1.

    Returns:
        JSON-serialisable data: "given" and "solved", each {"setting": [w1, w2, g1, g2], "reach": largest |P|, "loss":
        its loss}; "bound", which is trained_frames - 1; "within", whether the given setting keeps to it.

    Raises:
        SolveError: an argument is not of that kind, as in `vrpr`.
    """
    solved = vrpr(trained_frames, frames, setting.quantise)

    def row(value: VRPR) -> dict[str, Any]:
        """Describe one of the two settings."""
        tiers = [value.w1, value.w2, value.g1, value.g2]
        return {"setting": tiers, "reach": value.reach(frames), "loss": loss(value, frames)}

    given = row(setting)
    bound = int(trained_frames) - 1
    return {"given": given, "solved": row(solved), "bound": bound, "within": given["reach"] <= bound}


def _seen(d1: int, d2: int, ds: int, tokens: int) -> int:
    """Count the tokens that a query sees in the interior of a long clip and of its frame, the sink's among them."""
    return (2 * d1 - 1 + 1) * tokens + 2 * (d2 - d1) * (2 * ds - 1)


def tsa(trained_frames: int, height: int, width: int) -> TSA:
    """Scale the paper's TSA setting to another trained length and grid.

    D1 = 8 L/21 and D2 = 24 L/21, rounded (D1 >= 1, D2 > D1). D_s is the largest for which a query in the interior of a
    long clip sees at most as many tokens, relative to the trained context L n, as in the paper (1.14); but at least 1.
    With the paper's numbers that is the paper's D_s, n/8.

    Args:
        trained_frames: latent frames of the training clips, at least 2.
        height: rows of tokens in one latent frame, at least 1.
        width: columns of tokens in one latent frame, at least 1.

    Returns:
        The setting.

    Raises:
        SolveError: an argument is not of that kind.
    """
    trained_frames = _integer("solve.tsa trained_frames", trained_frames, 2)
    tokens = _integer("solve.tsa height", height, 1) * _integer("solve.tsa width", width, 1)
    paper = PAPER_TSA
    budget = Fraction(
        _seen(paper.d1, paper.d2, paper.ds, PAPER_TOKENS),
        PAPER_TRAINED_FRAMES * PAPER_TOKENS,
    )
    d1 = max(1, round(Fraction(paper.d1 * trained_frames, PAPER_TRAINED_FRAMES)))
    d2 = max(d1 + 1, round(Fraction(paper.d2 * trained_frames, PAPER_TRAINED_FRAMES)))
    # _seen is linear in ds with slope 4 (d2 - d1).
    left = budget * trained_frames * tokens - _seen(d1, d2, 0, tokens)
    return TSA(d1, d2, max(1, int(left // (4 * (d2 - d1)))))
