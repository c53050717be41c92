"""Find the channel pairs that turn with the frame, and the token grid, in what RoPE does at each token."""

from __future__ import annotations

import numpy as np

from freeloc_fx.errors import MatchFailure
from freeloc_fx.method.grid import RopeLayout, TokenGrid

from .measure import STILL, Rotations

__all__ = ["alike", "grid_of", "layout_of", "temporal"]


def temporal(rotations: Rotations, head_dim: int, tolerance: float) -> tuple[RopeLayout, TokenGrid] | MatchFailure:
    """Find which pairs turn with the frame, how fast, and the token grid behind the sequence.

    A frame of tokens is the shortest stretch after which every pair of every token has turned by the same angle as the
    pairs beside it: omega for a temporal pair, 0 for one of height or width, whatever a learned mixture of the axes
    says. Tokens at either end that are not turned at all are text. Angles are known up to whole turns per frame. The
    first frame may stand at another distance than the rest (it is one pixel frame where later latent frames are
    several); omega is the rate of the others.

    Args:
        rotations: what RoPE does at each token.
        head_dim: channels of a head.
        tolerance: largest accepted deviation from a rotation, as in `measure`.

    Returns:
        The layout and the grid, or why the model has no temporal RoPE on this site.
    """
    whole = rotations.phase[0]
    tokens = len(whole)
    moved = np.flatnonzero((np.abs(whole - 1) > STILL).any(1))
    if not len(moved):
        return MatchFailure("no channel is rotated: there is no RoPE")
    before, after = int(moved[0]), tokens - 1 - int(moved[-1])
    # Position (0, 0, 0) of the grid is not turned either, so one token more belongs to the video; a whole row or frame
    # of tokens, where columns or rows are not told apart.
    firsts = dict.fromkeys([max(before - 1, 0), 0, before, *range(before - 2, 0, -1)])
    spans = [(first, last) for last in dict.fromkeys([after, max(after - 1, 0)]) for first in firsts]
    steady = (max(2 * tolerance, 4e-5), max(4 * tolerance, 2e-2))  # large angles are known to 1e-3 in float32
    choices = [(first, last, limit, late) for limit in steady for late in (False, True) for first, last in spans]
    for first, last, limit, late in choices:
        video = whole[first : tokens - last]
        per_frame = _per_frame(video, limit, late)
        if per_frame is not None:
            grid = grid_of(video, per_frame, limit, first, last)
            return layout_of(rotations, head_dim, grid, steady[-1], late)
    return MatchFailure(
        "no channel pair turns steadily with the frame: the model has no temporal RoPE on this site, or its tokens are "
        "no clip of evenly spaced frames, as where tokens are shared out over processes or a history is kept"
    )


def _turns(phase: np.ndarray, stride: int) -> np.ndarray:
    """Give by how much each token is turned beyond the one `stride` before it: (rows - 1, stride, pairs)."""
    return (phase[stride:] * phase[:-stride].conj()).reshape(-1, stride, phase.shape[1])


def _steady(turns: np.ndarray, limit: float, late: bool) -> bool:
    """Tell whether all tokens of a row turn alike and every row as the last; `late`: the first row may be another."""
    rows = turns[1:] if late else turns
    last = turns[-1, 0]
    if len(rows) < 1 or np.abs(rows - last).max() > limit:
        return False
    return not late or bool(np.abs(turns[0] - turns[0, 0]).max() <= limit)


def _per_frame(video: np.ndarray, limit: float, late: bool) -> int | None:
    """Find the tokens of one latent frame; None where nothing turns with the frame."""
    tokens = len(video)
    for n in range(1, tokens // 2 + 1):
        if tokens % n or (late and tokens < 3 * n):
            continue
        # A few tokens dismiss most candidates; the frame's end is where spatial pairs jump back.
        few = np.unique(np.linspace(n if late else 0, tokens - n - 1, 40).astype(int))
        some = video[few + n] * video[few].conj()
        if np.abs(some - some[-1]).max() > 2 * limit:
            continue
        turns = _turns(video, n)
        if _steady(turns, limit, late) and np.abs(video[::n] - video[0]).max() > STILL:
            return n
    return None


def grid_of(video: np.ndarray, per_frame: int, limit: float, first: int, last: int) -> TokenGrid:
    """Find the rows and columns of a frame: a row is the shortest stretch after which every token has turned alike.

    Args:
        video: rotations of the clip's tokens, complex (tokens, pairs).
        per_frame: tokens of a frame.
        limit: up to which two rotations are alike.
        first: text tokens before the clip.
        last: text tokens after the clip.

    Returns:
        The grid.
    """
    frame = video[:per_frame]
    # Tokens of a single line turn alike from each to the next, whichever axis it lies along.
    line = per_frame < 3 or _steady(_turns(frame, 1), limit, False)
    widths = [n for n in range(2, per_frame) if per_frame % n == 0 and _steady(_turns(frame, n), limit, False)]
    width = per_frame if line or not widths else widths[0]
    return TokenGrid(len(video) // per_frame, per_frame // width, width, first, last)


def layout_of(
    rotations: Rotations, head_dim: int, grid: TokenGrid, limit: float, late: bool
) -> tuple[RopeLayout, TokenGrid] | MatchFailure:
    """Find the rates of the temporal pairs of every head, from a few tokens of each frame.

    Args:
        rotations: what RoPE does at each token.
        head_dim: channels of a head.
        grid: the clip's frames.
        limit: largest accepted deviation of a phase.
        late: whether the first frame may stand at another distance than the others.

    Returns:
        The layout with the grid, or why the frames do not turn linearly.
    """
    n = grid.tokens
    inside = np.unique(np.linspace(0, n - 1, min(n, 8)).astype(int))
    places = grid.text_first + (np.arange(grid.frames)[:, None] * n + inside).ravel()
    phase = rotations.phase[:, places] if rotations.others is None else rotations.others(places)
    phase = phase.reshape(len(phase), grid.frames, len(inside), -1)
    # Tokens of a frame agree on how far it is turned from the first (second) one.
    begin = 1 if late else 0
    series = (phase * phase[:, begin : begin + 1].conj()).mean(2)  # (heads, frames, pairs)
    spread = np.abs(phase * phase[:, begin : begin + 1].conj() - series[:, :, None])[:, begin:].max()
    if spread > 2 * limit:
        return MatchFailure(f"tokens of one frame are turned differently from frame to frame (by {spread:.2g})")
    series = series[:, begin:] / np.abs(series[:, begin:])
    chosen = np.flatnonzero((np.abs(series - 1) > STILL).any((0, 1)))
    if not len(chosen):
        return MatchFailure("no channel pair turns steadily with the frame: the model has no temporal RoPE")
    series = series[:, :, chosen]
    index = np.arange(series.shape[1])
    rate = np.angle((series[:, 1:] * series[:, :-1].conj()).mean(1))  # (heads, pairs)
    drift = np.unwrap(np.angle(series * np.exp(-1j * rate[:, None] * index[:, None])), axis=1)
    centred = index - index.mean()
    omega = rate + (drift * centred[:, None]).sum(1) / (centred**2).sum()
    still = (np.abs(series - 1) <= STILL).all(1)
    omega[still] = 0.0
    fitted = np.exp(1j * omega[:, None] * index[:, None]) * np.exp(
        1j * (drift - (omega - rate)[:, None] * index[:, None]).mean(1)[:, None]
    )
    worst = max(rotations.residual, float(np.abs(fitted - series).max()))
    if worst > 2 * limit:
        return MatchFailure(f"temporal angles are not linear in the frame (deviation {worst:.2g})")
    rows = omega if np.abs(omega - omega[0]).max() > 1e-6 else omega[:1]
    return RopeLayout(
        head_dim,
        tuple(int(c) for c in rotations.first[chosen]),
        tuple(int(c) for c in rotations.second[chosen]),
        tuple(tuple(float(w) for w in row) for row in rows),
        worst,
    ), grid


def alike(one: RopeLayout, other: RopeLayout) -> bool:
    """Tell whether two measurements describe the same rotation.

    Args:
        one: the layout of one measurement.
        other: the layout of the other.

    Returns:
        Whether they do: the same channels, and rates that differ by at most 1e-6 radians per latent frame, or 1e-6 of
        themselves where they are above one radian, as float32 cannot tell more.
    """
    same = (one.head_dim, one.first, one.second) == (other.head_dim, other.first, other.second)
    if not same or len(one.omega) != len(other.omega):
        return False
    return bool(np.allclose(one.omega, other.omega, rtol=1e-6, atol=1e-6))
