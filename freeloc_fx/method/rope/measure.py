"""Read a rotary embedding off its input-output behaviour.

`measure_heads` takes what goes into RoPE and what comes out, and finds which channels are turned together and by how
much at each token. `temporal` finds the channel pairs that turn with the frame, and the token grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from freeloc_fx.errors import MatchFailure
from freeloc_fx.method.grid import RopeLayout, TokenGrid

__all__ = ["PROBES", "Rotations", "alike", "measure", "measure_heads", "probes", "temporal", "without"]


PROBES = 6
"""Random probes; two coefficients per channel are fitted to them, so four are left to expose a wrong pairing."""


_STILL = 2e-5
"""Largest change of a phase that counts as none."""


@dataclass(frozen=True)
class Rotations:
    """Measured rotation of each channel pair at each token.

    Args:
        first: the first channel of each pair, int (pairs,).
        second: the second channel of each pair, int (pairs,).
        phase: the rotations as complex numbers of modulus 1, complex128 (heads, tokens, pairs); of the first head only
            where `others` is given or all heads agree.
        residual: largest deviation from a pure rotation, as a complex modulus.
        unpaired: channels that pass through unchanged.
        others: gives the phase of every head at some tokens, by their indices; None where heads agree.
    """

    first: np.ndarray
    second: np.ndarray
    phase: np.ndarray
    residual: float
    unpaired: tuple[int, ...]
    others: Callable[[np.ndarray], np.ndarray] | None = field(default=None, compare=False)


def probes(channels: int, seed: int = 0) -> torch.Tensor:
    """Draw the random inputs whose outputs are measured.

    Args:
        channels: channels of one input.
        seed: seed of the random numbers.

    Returns:
        float32 (PROBES, channels).
    """
    random = torch.Generator().manual_seed(seed)
    return torch.randn(PROBES, channels, generator=random, dtype=torch.float32, device="cpu")


def measure(inputs: np.ndarray, outputs: np.ndarray, tolerance: float) -> Rotations | MatchFailure:
    """Find the channel pairing and the rotation of each pair at each token.

    Args:
        inputs: (PROBES, heads, head_dim), the same at every token.
        outputs: (PROBES, heads, tokens, head_dim), what RoPE made of them.
        tolerance: largest accepted deviation from a rotation (float32 tables: 1e-4; bfloat16 tables: 3e-2).

    Returns:
        The rotations, or why what was measured is no rotation of pairs of channels.
    """
    _, heads, tokens, dim = outputs.shape
    sample = np.unique(np.linspace(0, tokens - 1, min(tokens, 24)).astype(int))
    partner = np.full(dim, -1)
    signs = np.ones((heads, len(sample), dim))
    for h in range(heads):
        one = _partners(inputs[:, h].astype(np.float64), outputs[:, h, sample].astype(np.float64), tolerance)
        if isinstance(one, MatchFailure):
            return one
        found, signs[h] = one
        clash = np.flatnonzero((found >= 0) & (partner >= 0) & (found != partner))
        if len(clash):
            return MatchFailure(f"channel {clash[0]} is turned with another partner in head {h} than in those before")
        partner = np.where(found >= 0, found, partner)
    _pair_half_turns(partner, signs)
    for c in np.flatnonzero(partner >= 0).tolist():
        # A pair that turns very little shows its sine in one channel only; the other then follows it.
        if partner[partner[c]] == -1:
            partner[partner[c]] = c
        if partner[partner[c]] != c:
            return MatchFailure(f"channels {c} and {partner[c]} are not partners of each other")
    lonely = np.flatnonzero((partner < 0) & (signs < 0).any((0, 1)))
    if len(lonely):
        return MatchFailure(f"channel {lonely[0]} changes its sign alone, where pairs of channels are rotated")
    first = np.array([c for c in range(dim) if partner[c] > c], dtype=int)
    second = partner[first] if len(first) else first
    if not len(first):
        return MatchFailure("no channel is rotated: there is no RoPE")
    return _phases(inputs, outputs, first, second, tolerance)


def _pair_half_turns(partner: np.ndarray, signs: np.ndarray) -> None:
    """Give channels that only ever turn by half a turn a partner with the same signs; any such two do.

    A half turn has no sine, so it does not show whose channels belong together, nor does it matter: a turn by whole
    half turns is a change of sign of each.

    Args:
        partner: the partner of each channel, -1 for none; changed in place.
        signs: (heads, tokens, head_dim), -1 where a channel is turned by half a turn, else 1.
    """
    waiting: dict[bytes, int] = {}
    for c in np.flatnonzero((partner < 0) & (signs < 0).any((0, 1))).tolist():
        pattern = signs[:, :, c].tobytes()
        if pattern in waiting:
            other = waiting.pop(pattern)
            partner[c], partner[other] = other, c
        else:
            waiting[pattern] = c


def _partners(x: np.ndarray, y: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray] | MatchFailure:
    """Find the channel with which each channel of one head is turned, -1 for none, and the sign of channels without.

    Args:
        x: the inputs, (probes, head_dim).
        y: the outputs, (probes, tokens, head_dim).
        tolerance: as in `measure`.

    Returns:
        The partners (head_dim,), and (tokens, head_dim) of -1 where a channel is turned by half a turn, else 1.
    """
    dim = x.shape[1]
    signs = np.ones(y.shape[1:])
    norm = np.sqrt((x**2).sum(0))
    partner = np.full(dim, -1)
    for c in range(dim):
        target = y[:, :, c]
        own = x[:, c : c + 1]
        alone = own * (own * target).sum(0) / (own**2).sum()
        if np.abs(target - alone).max() <= tolerance * norm[c] * 0.02:
            signs[:, c] = np.where((own * target).sum(0) < 0, -1, 1)
            if np.abs(target - own * signs[:, c]).max() > tolerance * norm[c]:
                return MatchFailure(f"channel {c} is scaled, not rotated")
            continue
        # Which partner explains the channel: least squares on (own, partner), by projecting `own` out of both.
        rest = target - alone
        others = x - own * (own * x).sum(0) / (own**2).sum()
        weight = np.maximum((others**2).sum(0), 1e-12)
        gain = others.T @ rest / weight[:, None]  # (candidates, tokens)
        errors = np.abs(rest[None] - others.T[:, :, None] * gain[:, None]).max((1, 2))
        errors[c] = np.inf
        best = int(errors.argmin())
        if errors[best] > tolerance * norm[c]:
            return MatchFailure(
                f"channel {c} is no combination of itself and one partner "
                f"(best partner {best}, error {errors[best]:.2g})"
            )
        partner[c] = best
    return partner, signs


def _phases(
    inputs: np.ndarray, outputs: np.ndarray, first: np.ndarray, second: np.ndarray, tolerance: float
) -> Rotations | MatchFailure:
    """Find the rotation of known pairs at every token; arguments as in `measure`."""
    x = inputs.astype(np.float64)
    z_in = x[:, :, first] + 1j * x[:, :, second]  # (probes, heads, pairs)
    z_out = outputs[..., first] + 1j * outputs[..., second].astype(np.float64)
    weight = (np.abs(z_in) ** 2).sum(0)
    phase = np.einsum("khp,khtp->htp", z_in.conj(), z_out) / weight[:, None]
    misfit = np.abs(z_in[:, :, None] * phase[None] - z_out).max(initial=0.0) / np.sqrt(weight.mean() / len(x))
    residual = max(float(misfit), float(np.abs(np.abs(phase) - 1).max()))
    if residual > tolerance:
        return MatchFailure(
            f"the channel pairs are not rotated rigidly (deviation {residual:.2g} > {tolerance:.2g}), as where an "
            "autoregressive model pools the positions of its history"
        )
    unpaired = set(range(x.shape[2])) - {*first.tolist(), *second.tolist()}
    return Rotations(first, second, phase / np.abs(phase), residual, tuple(sorted(unpaired)))


def measure_heads(
    inputs: torch.Tensor, run: Callable[[int], torch.Tensor], tolerance: float
) -> Rotations | MatchFailure:
    """Measure rotations like `measure`, without holding all outputs at once.

    Every token of the first head is measured, and of the other heads only a sample of tokens unless they turn
    differently.

    Args:
        inputs: (PROBES, heads, head_dim), float32.
        run: gives the output of a probe, by its index: float32 (heads, tokens, head_dim).
        tolerance: as in `measure`.

    Returns:
        The rotations, or why what was measured is no rotation of pairs of channels.
    """
    x = inputs.numpy()

    def at(tokens: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Give all tokens of the first head, and some of all heads (default a sample over the whole sequence)."""
        whole, some = [], []
        for index in range(len(inputs)):
            out = run(index)
            places = np.linspace(0, out.shape[1] - 1, min(out.shape[1], 64)) if tokens is None else tokens
            whole.append(out[:1].numpy().copy())
            some.append(out[:, np.unique(places.astype(int))].numpy().copy())
        return np.stack(whole), np.stack(some)

    whole, sampled = at(None)
    some = measure(x, sampled, tolerance)
    if isinstance(some, MatchFailure):
        return some
    one = _phases(x[:, :1], whole, some.first, some.second, tolerance)
    if isinstance(one, MatchFailure):
        return one
    if np.abs(some.phase - some.phase[:1]).max() <= 2 * max(one.residual, some.residual, 1e-6):
        return one

    def others(tokens: np.ndarray) -> np.ndarray:
        """Give the phase of every head at some tokens."""
        found = _phases(x, at(tokens)[1], some.first, some.second, tolerance)
        if isinstance(found, MatchFailure):
            raise ValueError(found.reason)
        return found.phase

    return Rotations(one.first, one.second, one.phase, one.residual, one.unpaired, others)


def without(rotations: Rotations, beside: tuple[int, int]) -> Rotations | MatchFailure:
    """Count tokens at either end as text, however they are turned among themselves.

    Text that is turned has a position of its own for each token, or none for all. Several tokens of one position are
    rows and columns of frames, which a strategy would have to move.

    Args:
        rotations: what RoPE does at each token.
        beside: how many of the first and of the last tokens.

    Returns:
        The rotations with none there, or why they are no text.
    """
    phase = rotations.phase.copy()
    for places in (slice(beside[0]), slice(phase.shape[1] - beside[1], phase.shape[1])):
        turned = phase[0, places][(np.abs(phase[0, places] - 1) > _STILL).any(1)]
        steps = turned[1:] * turned[:-1].conj()
        if len(steps) and np.abs(steps - steps[0]).max() > 2e-2:
            return MatchFailure(
                "keys beside the queries' own are turned as no line of text is: frames of a history, or a reference's"
            )
        phase[:, places] = 1
    return replace(rotations, phase=phase)


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
    moved = np.flatnonzero((np.abs(whole - 1) > _STILL).any(1))
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
            grid = _grid(video, per_frame, limit, first, last)
            return _layout(rotations, head_dim, grid, steady[-1], late)
    return MatchFailure(
        "no channel pair turns steadily with the frame: the model has no temporal RoPE on this site, or its tokens are "
        "not one clip's grid of evenly spaced frames beside unturned text: keyframes, references or a first image "
        "appended with times of their own, tokens shared out over processes, or an autoregressive model's history. "
        "Expected the clip's tokens alone"
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
        if _steady(turns, limit, late) and np.abs(video[::n] - video[0]).max() > _STILL:
            return n
    return None


def _grid(video: np.ndarray, per_frame: int, limit: float, first: int, last: int) -> TokenGrid:
    """Find the rows and columns of a frame: a row is the shortest stretch after which every token has turned alike."""
    frame = video[:per_frame]
    # Tokens of a single line turn alike from each to the next, whichever axis it lies along.
    line = per_frame < 3 or _steady(_turns(frame, 1), limit, False)
    widths = [n for n in range(2, per_frame) if per_frame % n == 0 and _steady(_turns(frame, n), limit, False)]
    width = per_frame if line or not widths else widths[0]
    return TokenGrid(len(video) // per_frame, per_frame // width, width, first, last)


def _layout(
    rotations: Rotations, head_dim: int, grid: TokenGrid, limit: float, late: bool
) -> tuple[RopeLayout, TokenGrid] | MatchFailure:
    """Find the rates of the temporal pairs of every head, from a few tokens of each frame."""
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
    chosen = np.flatnonzero((np.abs(series - 1) > _STILL).any((0, 1)))
    if not len(chosen):
        return MatchFailure("no channel pair turns steadily with the frame: the model has no temporal RoPE")
    series = series[:, :, chosen]
    index = np.arange(series.shape[1])
    rate = np.angle((series[:, 1:] * series[:, :-1].conj()).mean(1))  # (heads, pairs)
    drift = np.unwrap(np.angle(series * np.exp(-1j * rate[:, None] * index[:, None])), axis=1)
    centred = index - index.mean()
    omega = rate + (drift * centred[:, None]).sum(1) / (centred**2).sum()
    still = (np.abs(series - 1) <= _STILL).all(1)
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
        Whether they do: the same channels, and rates that differ by at most 1e-6 radians per latent frame.
    """
    same = (one.head_dim, one.first, one.second) == (other.head_dim, other.first, other.second)
    if not same or len(one.omega) != len(other.omega):
        return False
    return bool(np.abs(np.asarray(one.omega) - np.asarray(other.omega)).max() <= 1e-6)
