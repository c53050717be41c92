"""Read a rotary embedding off its input-output behaviour, and apply temporal rotations.

No graph here: `measure` takes what went into RoPE and what came out, `temporal` finds the channel pairs that turn
with the frame and the token grid, `rotate` turns those pairs by any number of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from .match import MatchFailure
from .meta import RopeLayout, TokenGrid

__all__ = ["PROBES", "Rotations", "Turner", "angles", "measure", "measure_heads", "probes", "rotate", "temporal"]

PROBES = 6
"""Random probes; two coefficients per channel are fitted to them, so four are left to expose a wrong pairing."""


_STILL = 2e-5
"""Largest change of a phase that counts as none."""


@dataclass(frozen=True)
class Rotations:
    """Measured rotation of each channel pair at each token.

    first, second: channels of the pairs (pairs,). phase: complex128 (heads, tokens, pairs), modulus 1. residual:
    largest deviation from a pure rotation. unpaired: channels that pass through unchanged.
    """

    first: np.ndarray
    second: np.ndarray
    phase: np.ndarray
    residual: float
    unpaired: tuple[int, ...]


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
    count, _, tokens, dim = outputs.shape
    x = inputs.astype(np.float64)
    sample = np.unique(np.linspace(0, tokens - 1, min(tokens, 24)).astype(int))
    y = outputs[:, 0, sample].astype(np.float64)  # (probes, sample, channels)
    # Which partner explains a channel: least squares on (own, partner) for every candidate partner at once.
    norm = np.sqrt((x[:, 0] ** 2).sum(0))
    partner = np.full(dim, -1)
    for c in range(dim):
        target = y[:, :, c]
        own = x[:, 0, c : c + 1]
        alone = own * (own * target).sum(0) / (own**2).sum()
        if np.abs(target - alone).max() <= tolerance * norm[c] * 0.02:
            if np.abs(target - own).max() > tolerance * norm[c]:
                return MatchFailure(f"channel {c} is scaled, not rotated")
            continue
        errors = np.empty(dim)
        for p in range(dim):
            if p == c:
                errors[p] = np.inf
                continue
            basis = np.stack([x[:, 0, c], x[:, 0, p]], 1)
            solution, *_ = np.linalg.lstsq(basis, target, rcond=None)
            errors[p] = np.abs(basis @ solution - target).max()
        best = int(errors.argmin())
        if errors[best] > tolerance * norm[c]:
            return MatchFailure(
                f"channel {c} is no combination of itself and one partner "
                f"(best partner {best}, error {errors[best]:.2g})"
            )
        partner[c] = best
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
    z_in = x[:, :, first] + 1j * x[:, :, second]  # (probes, heads, pairs)
    z_out = outputs[..., first] + 1j * outputs[..., second].astype(np.float64)
    weight = (np.abs(z_in) ** 2).sum(0)
    phase = np.einsum("khp,khtp->htp", z_in.conj(), z_out) / weight[:, None]
    misfit = np.abs(z_in[:, :, None] * phase[None] - z_out).max(initial=0.0) / np.sqrt(weight.mean() / count)
    residual = max(float(misfit), float(np.abs(np.abs(phase) - 1).max()))
    if residual > tolerance:
        return MatchFailure(f"the channel pairs are not rotated rigidly (deviation {residual:.2g} > {tolerance:.2g})")
    return Rotations(first, second, phase / np.abs(phase), residual, tuple(np.flatnonzero(partner < 0).tolist()))


def measure_heads(
    inputs: torch.Tensor, run: Callable[[int], torch.Tensor], tolerance: float
) -> Rotations | MatchFailure:
    """`measure` without holding all outputs: every token of the first head, and of the others only a sample of tokens
    unless they turn differently.

    Args:
        inputs: (PROBES, heads, head_dim). run: index of a probe -> its output, float32 (heads, tokens, head_dim).
    """
    x = inputs.numpy()
    first, sampled = [], []
    places = None
    for index in range(len(inputs)):
        out = run(index)
        if places is None:
            places = np.unique(np.linspace(0, out.shape[1] - 1, min(out.shape[1], 64)).astype(int))
        first.append(out[:1].numpy().copy())
        sampled.append(out[:, places].numpy().copy())
    one = measure(x[:, :1], np.stack(first), tolerance)
    if isinstance(one, MatchFailure) or len(inputs[0]) == 1:
        return one
    some = measure(x, np.stack(sampled), tolerance)
    if not isinstance(some, MatchFailure) and np.abs(some.phase - some.phase[:1]).max() <= 2 * max(one.residual, 1e-6):
        return one
    return measure(x, np.stack([run(index).numpy() for index in range(len(inputs))]), tolerance)


def temporal(rotations: Rotations, head_dim: int, tolerance: float) -> tuple[RopeLayout, TokenGrid] | MatchFailure:
    """Which pairs turn with the frame, how fast, and the frames x height x width behind the token sequence.

    A temporal pair holds still for a whole frame of tokens, then turns by the same angle at every frame boundary.
    Height and width pairs come back at each frame.
    """
    phase = rotations.phase[0]  # (tokens, pairs); heads share positions
    tokens, pairs = phase.shape
    # Tokens of one frame read the same row of a table, so a pair that holds still does so exactly, rounded or not.
    changed = np.abs(np.diff(phase, axis=0)) > _STILL
    stride = np.zeros(pairs, dtype=int)  # gcd of the positions where a pair turns; 0: never
    for p in range(pairs):
        places = np.flatnonzero(changed[:, p]) + 1
        stride[p] = np.gcd.reduce(places) if len(places) else 0
    linear: dict[int, int] = {}
    for p in range(pairs):
        n = int(stride[p])
        if n and tokens % n == 0 and tokens > n:
            turns = phase[n::n, p] * phase[:-n:n, p].conj()
            if np.abs(turns - turns[0]).max() <= max(2 * tolerance, 4e-5):
                linear[p] = n
    if not linear:
        return MatchFailure(
            "no channel pair turns steadily with the frame: the model has no temporal RoPE on this site"
        )
    # In rounded tables a slow temporal pair may skip frames, and a slow spatial pair may pass for steady: the fastest
    # pair tells the frame.
    fastest = max(linear, key=lambda p: abs(np.angle(phase[linear[p], p] * phase[0, p].conj())))
    per_frame = linear[fastest]
    chosen = [p for p in range(pairs) if p in linear and linear[p] % per_frame == 0]
    frames = tokens // per_frame
    spatial = [p for p in range(pairs) if stride[p] and stride[p] % per_frame]
    width = _width(phase[:per_frame][:, spatial])
    index = np.arange(frames)
    heads = rotations.phase.shape[0]
    omega = np.empty((heads, len(chosen)))
    worst = rotations.residual
    for h in range(heads):
        series = rotations.phase[h, ::per_frame][:, chosen]
        steps = series[1:] * series[:-1].conj()
        rate = np.angle(steps.mean(0))
        drift = np.unwrap(np.angle(series * np.exp(-1j * rate * index[:, None])), axis=0)
        rate = rate + np.polyfit(index, drift, 1)[0]
        omega[h] = rate
        fitted = series[0] * np.exp(1j * rate * index[:, None])
        worst = max(worst, float(np.abs(fitted - series).max()))
    if worst > 4 * tolerance:
        return MatchFailure(f"temporal angles are not linear in the frame (deviation {worst:.2g})")
    rows = omega if np.abs(omega - omega[0]).max() > 1e-6 else omega[:1]
    layout = RopeLayout(
        head_dim,
        tuple(int(c) for c in rotations.first[chosen]),
        tuple(int(c) for c in rotations.second[chosen]),
        tuple(tuple(float(w) for w in row) for row in rows),
        worst,
    )
    return layout, TokenGrid(frames, per_frame // width, width)


def _width(frame: np.ndarray) -> int:
    """Tokens in a row of one frame, from its spatial pairs (tokens, pairs): each is constant along rows or repeats in
    every row."""
    tokens, pairs = frame.shape
    fits, repeats = [], []
    for width in range(2, tokens):
        if not pairs or tokens % width:
            continue
        rows = frame.reshape(-1, width, pairs)
        along = (np.abs(rows - rows[:, :1]) <= _STILL).all((0, 1))
        down = (np.abs(rows - rows[:1]) <= _STILL).all((0, 1))
        if (along | down).all():
            fits.append(width)
            if not along.all():
                repeats.append(width)
    return min(repeats) if repeats else max(fits, default=tokens)


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
        self._tables: dict[bytes, torch.Tensor] = {}

    def _phase(self, turn: np.ndarray) -> torch.Tensor:
        key = turn.tobytes()
        if key not in self._tables:
            cos, sin = angles(self.layout, turn)
            self._tables[key] = torch.complex(cos, sin).to(torch.complex64)[:, :, None].to(self.device)
        return self._tables[key]

    def __call__(self, x: torch.Tensor, turn: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """Turn x (heads, frames, tokens, head_dim) by `turn` (frames,) latent frames.

        Writes the temporal channels of `out`, whose other channels must already be x's; returns `out`.
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
