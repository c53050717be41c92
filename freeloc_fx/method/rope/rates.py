"""Rates of temporal RoPE beyond whole turns.

From frame to frame a rate shows up to whole turns only, which is enough to move anything by whole frames. What turns by
fractions of a frame (interpolated positions, lowered frequencies) needs the rate itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from freeloc_fx.errors import MatchFailure
from freeloc_fx.method.grid import RopeLayout, TokenGrid

from .measure import STILL, Rotations
from .times import time_of

__all__ = ["SHIFTS", "conventional", "count_by_words", "count_turns", "evenly_spaced", "steps_of_time"]


def conventional(layout: RopeLayout) -> bool:
    """Tell whether rates are certain without counting turns.

    They are where they are at most one radian per frame, and in every head powers of a base, as RoPE is defined (Su et
    al. 2021, arXiv 2104.09864, section 3.2.2); rates that alias look like neither. Slow pairs, which tables in half
    precision show roughly only, do not count: what aliases is not slow in all heads.

    Args:
        layout: as measured, with rates up to whole turns per latent frame.

    Returns:
        Whether they are.
    """
    noise = max(layout.residual, 1e-3)
    for row in np.abs(np.asarray(layout.omega)):
        fast = np.sort(row[row >= 20 * noise])
        steps = np.diff(np.log(fast))
        if row.max() > 1 + noise or (len(steps) > 1 and np.abs(steps - steps.mean()).max() > 0.1 * steps.mean()):
            return False
    return True


def evenly_spaced(values: torch.Tensor) -> bool:
    """Whether real numbers rise or fall by the same step throughout, to 1e-4 of it; values: (n,)."""
    if values.dtype == torch.bool or values.is_complex() or len(values) < 2:
        return False
    steps = values.double().diff()
    return bool(steps[0].abs() > 0 and (steps - steps[0]).abs().max() <= 1e-4 * steps[0].abs())


def steps_of_time(values: torch.Tensor, clip: slice, frames: int, axis: int) -> torch.Tensor | None:
    """Find which coordinates of tokens say when they are, and what one latent frame adds to them.

    Args:
        values: coordinates of every token, real numbers.
        clip: the clip's tokens.
        frames: how many evenly spaced frames they are.
        axis: of `values` that counts tokens.

    Returns:
        As `values` with one entry along `axis`: the difference from one frame to the next, and 0 for coordinates that
        are no times. None where none are, or where `values` are indices.
    """
    if not values.is_floating_point() or frames < 2:
        return None
    series = values.movedim(axis, -1)[..., clip].double().unflatten(-1, (frames, -1))
    rows = series[..., 0]
    steps = rows.diff(dim=-1)
    step = steps[..., -1:]
    slack = 1e-3 * step.abs()
    alike = ((series - rows[..., None]).abs() <= slack[..., None]).all(-1).all(-1, keepdim=True)
    even = (steps - step).abs().le(slack).all(-1, keepdim=True)
    time = (step.abs() > 0) & alike & even
    found = torch.where(time, step, torch.zeros_like(step)).to(values.dtype)
    return found.movedim(-1, axis) if bool(time.any()) else None


SHIFTS = (1 / 1024, 1 / 64, 1 / 8)
"""Fractions of a frame by which `count_turns` moves a clip: the first tells rates of up to 3200 radians per frame
apart, the others make up for tables in half precision."""


def count_turns(
    layout: RopeLayout, grid: TokenGrid, before: Rotations, moved: Callable[[float], Rotations | MatchFailure]
) -> RopeLayout | None:
    """Find the true rates of a layout from what a clip that is moved by a small part of a frame has turned.

    Args:
        layout: as measured, with rates up to whole turns per latent frame.
        grid: the tokens of the sequence.
        before: the rotations of the clip as it is.
        moved: gives the rotations of the clip moved by a number of latent frames.

    Returns:
        The layout with its true rates; None where they disagree with those measured between frames, because not all of
        the clip moved, or something else did.
    """
    # A frame past the first two: the first often stands apart, and large angles are less exact.
    place = np.array([grid.text_first + min(2, grid.frames - 1) * grid.tokens])
    chosen = [before.first.tolist().index(c) for c in layout.first]

    def at(rotations: Rotations) -> np.ndarray:
        phase = rotations.phase[:, place] if rotations.others is None else rotations.others(place)
        return np.asarray(phase[:, 0, chosen])

    start, rate = at(before), None
    for shift in SHIFTS:
        found = moved(shift)
        if isinstance(found, MatchFailure) or found.first.tolist() != before.first.tolist():
            return None
        turn = at(found) * start.conj()
        expected = 0.0 if rate is None else rate * shift
        rate = (np.angle(turn * np.exp(-1j * np.asarray(expected))) + expected) / shift
    omega = np.asarray(layout.omega)
    assert rate is not None
    turns = np.round((rate - omega) / (2 * math.pi))
    if np.abs(omega + 2 * math.pi * turns - rate).max() > 0.5:
        return None
    counted = omega + 2 * math.pi * turns
    if not np.ptp(counted, axis=0).any():
        counted = counted[:1]  # all heads agree
    return replace(layout, omega=tuple(tuple(map(float, row)) for row in counted), whole_turns=True)


def count_by_words(
    layout: RopeLayout, words: tuple[int, int], rotations: Rotations, tolerance: float
) -> RopeLayout | None:
    """Find the true rates of a layout from words or sound beside the clip, which stand closer together than frames.

    Where the rates from word to word are conventional, they tell how many words long a frame is, and that the turns.

    Args:
        layout: as measured, with rates up to whole turns per latent frame.
        words: how many of the first, and of the last, tokens are words or sound.
        rotations: what RoPE does at each token.
        tolerance: largest accepted deviation from a rotation, as in `measure`.

    Returns:
        The layout with its true rates; None where there is no line of words, or it does not tell.
    """
    tokens, chosen = rotations.phase.shape[1], [rotations.first.tolist().index(c) for c in layout.first]
    whole, best = rotations.phase[0][:, chosen], (0, 0)
    for first, stop in ((0, words[0]), (tokens - words[1], tokens)):
        turn = whole[first + 1 : stop] * whole[first : max(stop - 1, first)].conj()
        cuts = np.flatnonzero(np.abs(np.diff(turn, axis=0)).max(1, initial=0.0) > 2e-2) + 1
        for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(turn)], strict=True):
            if b > a and np.abs(turn[a] - 1).max() > STILL:
                best = max(best, (b - a, first + a))
    count, start = best
    if count < 2:
        return None
    places = np.array([start, start + 1, start + count])
    phase = rotations.phase[:, places] if rotations.others is None else rotations.others(places)
    phase = np.asarray(phase)[:, :, chosen]
    rate = np.angle(phase[:, 1] * phase[:, 0].conj())
    rate += np.angle(phase[:, 2] * phase[:, 0].conj() * np.exp(-1j * rate * count)) / count
    own = replace(layout, omega=tuple(tuple(map(float, row)) for row in rate), whole_turns=True)
    omega = np.asarray(layout.omega)
    slow = np.sort(np.abs(rate), axis=None)
    # The slowest pair tells the length of a frame roughly, ever faster ones to a part of their own turn.
    tells = 0 < slow[0] < math.pi / (5 * _WORDS) and np.diff(np.log(slow)).max(initial=0.0) < math.log(100)
    if not tells or not conventional(own) or omega.shape != rate.shape:
        return None
    frame = time_of(np.exp(1j * omega), own, _WORDS, max(4 * tolerance, 2e-2))
    if not frame:
        return None
    counted = omega + 2 * math.pi * np.round((frame * rate - omega) / (2 * math.pi))
    if np.abs(counted - frame * rate).max() > 0.1:
        return None
    return replace(layout, omega=tuple(tuple(map(float, row)) for row in counted), whole_turns=True)


_WORDS = 32
"""Up to three times as many words long is a frame expected to be."""
