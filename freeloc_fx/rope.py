"""Read a rotary embedding off its input-output behaviour, and apply temporal rotations.

No graph here: `measure_heads` takes what goes into RoPE and what comes out, `temporal` finds the channel pairs that
turn with the frame and the token grid, `rotate` turns those pairs by any number of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from .match import MatchFailure
from .meta import RopeLayout, TokenGrid

__all__ = [
    "PROBES",
    "Rotations",
    "Turner",
    "alike",
    "angles",
    "measure",
    "measure_heads",
    "probes",
    "rotate",
    "temporal",
]

PROBES = 6
"""Random probes; two coefficients per channel are fitted to them, so four are left to expose a wrong pairing."""


_STILL = 2e-5
"""Largest change of a phase that counts as none."""


@dataclass(frozen=True)
class Rotations:
    """Measured rotation of each channel pair at each token.

    first, second: channels of the pairs (pairs,). phase: complex128 (heads, tokens, pairs), modulus 1; of the first
    head only where `others` is given or all heads agree. residual: largest deviation from a pure rotation. unpaired:
    channels that pass through unchanged. others: tokens (indices) -> phase of every head at those tokens; None where
    heads agree.
    """

    first: np.ndarray
    second: np.ndarray
    phase: np.ndarray
    residual: float
    unpaired: tuple[int, ...]
    others: Callable[[np.ndarray], np.ndarray] | None = field(default=None, compare=False)


def probes(channels: int, seed: int = 0) -> torch.Tensor:
    """Random inputs, float32 (PROBES, channels)."""
    return torch.randn(PROBES, channels, generator=torch.Generator().manual_seed(seed))


def measure(inputs: np.ndarray, outputs: np.ndarray, tolerance: float) -> Rotations | MatchFailure:
    """Find the channel pairing and the rotation of each pair at each token.

    Args:
        inputs: (PROBES, heads, head_dim), the same at every token.
        outputs: (PROBES, heads, tokens, head_dim), what RoPE made of them.
        tolerance: largest accepted deviation from a rotation (float32 tables: 1e-4; bfloat16 tables: 3e-2).
    """
    _, heads, tokens, dim = outputs.shape
    sample = np.unique(np.linspace(0, tokens - 1, min(tokens, 24)).astype(int))
    partner = np.full(dim, -1)
    for h in range(heads):
        found = _partners(inputs[:, h].astype(np.float64), outputs[:, h, sample].astype(np.float64), tolerance)
        if isinstance(found, MatchFailure):
            return found
        clash = np.flatnonzero((found >= 0) & (partner >= 0) & (found != partner))
        if len(clash):
            return MatchFailure(f"channel {clash[0]} is turned with another partner in head {h} than in those before")
        partner = np.where(found >= 0, found, partner)
    for c in np.flatnonzero(partner >= 0).tolist():
        # A pair that turns very little shows its sine in one channel only; the other then follows it.
        if partner[partner[c]] == -1:
            partner[partner[c]] = c
        if partner[partner[c]] != c:
            return MatchFailure(f"channels {c} and {partner[c]} are not partners of each other")
    first = np.array([c for c in range(dim) if partner[c] > c], dtype=int)
    second = partner[first] if len(first) else first
    if not len(first):
        return MatchFailure("no channel is rotated: there is no RoPE")
    return _phases(inputs, outputs, first, second, tolerance)


def _partners(x: np.ndarray, y: np.ndarray, tolerance: float) -> np.ndarray | MatchFailure:
    """The channel with which each channel of one head is turned, -1 for none.

    Args:
        x: (probes, head_dim). y: (probes, tokens, head_dim).
    """
    dim = x.shape[1]
    norm = np.sqrt((x**2).sum(0))
    partner = np.full(dim, -1)
    for c in range(dim):
        target = y[:, :, c]
        own = x[:, c : c + 1]
        alone = own * (own * target).sum(0) / (own**2).sum()
        if np.abs(target - alone).max() <= tolerance * norm[c] * 0.02:
            if np.abs(target - own).max() > tolerance * norm[c]:
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
    return partner


def _phases(
    inputs: np.ndarray, outputs: np.ndarray, first: np.ndarray, second: np.ndarray, tolerance: float
) -> Rotations | MatchFailure:
    """The rotation of known pairs at every token; arguments as in `measure`."""
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
    """`measure` without holding all outputs: every token of the first head, and of the others only a sample of tokens
    unless they turn differently.

    Args:
        inputs: (PROBES, heads, head_dim). run: index of a probe -> its output, float32 (heads, tokens, head_dim).
    """
    x = inputs.numpy()

    def at(tokens: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """All tokens of the first head, some of all heads (default a sample over the whole sequence)."""
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
        found = _phases(x, at(tokens)[1], some.first, some.second, tolerance)
        if isinstance(found, MatchFailure):
            raise ValueError(found.reason)
        return found.phase

    return Rotations(one.first, one.second, one.phase, one.residual, one.unpaired, others)


def temporal(rotations: Rotations, head_dim: int, tolerance: float) -> tuple[RopeLayout, TokenGrid] | MatchFailure:
    """Which pairs turn with the frame, how fast, and the text + frames x height x width behind the token sequence.

    A frame of tokens is the shortest stretch after which every pair of every token has turned by the same angle as the
    pairs beside it: omega for a temporal pair, 0 for one of height or width, whatever a learned mixture of the axes
    says. Tokens at either end that are not turned at all are text. Angles are known up to whole turns per frame. The
    first frame may stand at another distance than the rest (it is one pixel frame where later latent frames are
    several); omega is the rate of the others.
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
        "no grid of frames (an autoregressive model with a history)"
    )


def _turns(phase: np.ndarray, stride: int) -> np.ndarray:
    """By how much each token is turned beyond the one `stride` before it: (rows - 1, stride, pairs)."""
    return (phase[stride:] * phase[:-stride].conj()).reshape(-1, stride, phase.shape[1])


def _steady(turns: np.ndarray, limit: float, late: bool) -> bool:
    """Whether all tokens of a row turn alike and every row as the last; `late`: the first row may be another."""
    rows = turns[1:] if late else turns
    last = turns[-1, 0]
    if len(rows) < 1 or np.abs(rows - last).max() > limit:
        return False
    return not late or bool(np.abs(turns[0] - turns[0, 0]).max() <= limit)


def _per_frame(video: np.ndarray, limit: float, late: bool) -> int | None:
    """Tokens of a frame; None where nothing turns with it."""
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
    """Height and width of a frame: a row is the shortest stretch after which every token has turned alike."""
    frame = video[:per_frame]
    # Tokens of a single line turn alike from each to the next, whichever axis it lies along.
    line = per_frame < 3 or _steady(_turns(frame, 1), limit, False)
    widths = [n for n in range(2, per_frame) if per_frame % n == 0 and _steady(_turns(frame, n), limit, False)]
    width = per_frame if line or not widths else widths[0]
    return TokenGrid(len(video) // per_frame, per_frame // width, width, first, last)


def _layout(
    rotations: Rotations, head_dim: int, grid: TokenGrid, limit: float, late: bool
) -> tuple[RopeLayout, TokenGrid] | MatchFailure:
    """Rates of the temporal pairs of every head, from a few tokens of each frame."""
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
    """Whether two measurements describe the same rotation."""
    same = (one.head_dim, one.first, one.second) == (other.head_dim, other.first, other.second)
    if not same or len(one.omega) != len(other.omega):
        return False
    return bool(np.abs(np.asarray(one.omega) - np.asarray(other.omega)).max() <= 1e-6)


def angles(layout: RopeLayout, frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of a turn by `frames` latent frames: float64 (heads or 1, *frames.shape, pairs)."""
    turn = np.asarray(layout.omega)[(slice(None), *([None] * frames.ndim))] * frames[None, ..., None]
    return torch.from_numpy(np.cos(turn)), torch.from_numpy(np.sin(turn))


def rotate(
    x: torch.Tensor, layout: RopeLayout, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Turn the temporal channel pairs of x; the other channels are copied.

    Args:
        x: (..., head_dim). cos, sin: broadcastable to (..., pairs); arithmetic is in their dtype.
        out: where to write, default a new tensor.
    """
    result = x.clone() if out is None else out.copy_(x)
    first, second = _channels(layout.first), _channels(layout.second)
    a, b = x[..., first].to(cos.dtype), x[..., second].to(cos.dtype)
    result[..., first] = (a * cos - b * sin).to(x.dtype)
    result[..., second] = (a * sin + b * cos).to(x.dtype)
    return result


def _channels(index: tuple[int, ...]) -> slice | list[int]:
    """A slice where the channels are evenly spaced (a view), else the list (a gather)."""
    if len(index) == 1:
        return slice(index[0], index[0] + 1)
    step = index[1] - index[0]
    if step > 0 and all(b - a == step for a, b in pairwise(index)):
        return slice(index[0], index[-1] + 1, step)
    return list(index)


def _pairs_adjacent(x: torch.Tensor) -> bool:
    """Whether memory lets channels (0, 1), (2, 3), ... be viewed as complex numbers."""
    *outer, last = x.stride()
    return last == 1 and x.storage_offset() % 2 == 0 and all(s % 2 == 0 for s in outer)


class Turner:
    """`rotate` for many turns of the same tensors: writes the temporal channels only, tables kept.

    Where the temporal pairs are interleaved and adjacent, a turn is one complex multiplication in place of ten
    operations.
    """

    def __init__(self, layout: RopeLayout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        first, second = np.array(layout.first), np.array(layout.second)
        self.complex = bool((second == first + 1).all() and (np.diff(first) == 2).all() and first[0] % 2 == 0)
        self.channels = slice(int(first[0]), int(second[-1]) + 1)
        self._tables: dict[tuple[tuple[int, ...], bytes], torch.Tensor] = {}

    def _phase(self, turn: np.ndarray) -> torch.Tensor:
        key = (turn.shape, turn.tobytes())
        if key not in self._tables:
            cos, sin = angles(self.layout, turn)  # (heads or 1, *turn.shape, pairs)
            phase = torch.complex(cos, sin).to(torch.complex64).movedim(0, -3)
            self._tables[key] = phase.unsqueeze(-2).to(self.device)
        return self._tables[key]

    def __call__(self, x: torch.Tensor, turn: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """Turn x (heads, frames, tokens, head_dim) by `turn` latent frames: (frames,), or (copies, frames) for several
        versions at once.

        Writes the temporal channels of `out` (heads, frames, tokens, head_dim), or (copies, ...), whose other channels
        must already be x's; returns `out`.
        """
        phase = self._phase(turn)
        if self.complex and x.dtype == torch.float32 and _pairs_adjacent(x) and _pairs_adjacent(out):
            source = torch.view_as_complex(x[..., self.channels].unflatten(-1, (-1, 2)))
            torch.mul(source, phase, out=torch.view_as_complex(out[..., self.channels].unflatten(-1, (-1, 2))))
            return out
        first, second = _channels(self.layout.first), _channels(self.layout.second)
        a, b = x[..., first].to(phase.real.dtype), x[..., second].to(phase.real.dtype)
        out[..., first] = (a * phase.real - b * phase.imag).to(x.dtype)
        out[..., second] = (a * phase.imag + b * phase.real).to(x.dtype)
        return out
