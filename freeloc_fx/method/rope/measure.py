"""Read a rotary embedding off its input-output behaviour.

`measure_heads` takes what goes into RoPE and what comes out, and finds which channels are turned together and by how
much at each token. What that says of frames is in `temporal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from freeloc_fx.errors import MatchFailure

__all__ = ["PROBES", "STILL", "Rotations", "measure", "measure_heads", "probes", "without"]


PROBES = 6
"""Random probes; two coefficients per channel are fitted to them, so four are left to expose a wrong pairing."""


STILL = 2e-5
"""Largest change of a phase that counts as none."""


_AT_ONCE = 2**16
"""Tokens whose rotations are fitted together: what the fit holds besides does not grow with the sequence."""


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
    weight = (np.abs(z_in) ** 2).sum(0)
    phase = np.empty((outputs.shape[1], outputs.shape[2], len(first)), dtype=np.complex128)
    misfit = off = 0.0
    for start in range(0, outputs.shape[2], _AT_ONCE):
        here = outputs[:, :, start : start + _AT_ONCE]
        z_out = here[..., first] + 1j * here[..., second].astype(np.float64)
        turn = np.einsum("khp,khtp->htp", z_in.conj(), z_out) / weight[:, None]
        misfit = max(misfit, float(np.abs(z_in[:, :, None] * turn[None] - z_out).max(initial=0.0)))
        off = max(off, float(np.abs(np.abs(turn) - 1).max(initial=0.0)))
        phase[:, start : start + _AT_ONCE] = turn / np.abs(turn)
    residual = max(misfit / float(np.sqrt(weight.mean() / len(x))), off)
    if residual > tolerance:
        return MatchFailure(
            f"the channel pairs are not rotated rigidly (deviation {residual:.2g} > {tolerance:.2g}), as where an "
            "autoregressive model pools the positions of its history"
        )
    unpaired = set(range(x.shape[2])) - {*first.tolist(), *second.tolist()}
    return Rotations(first, second, phase, residual, tuple(sorted(unpaired)))


def measure_heads(
    inputs: torch.Tensor, run: Callable[[int], Iterable[torch.Tensor]], tolerance: float
) -> Rotations | MatchFailure:
    """Measure rotations like `measure`, without holding all outputs at once.

    Every token of the first head is measured, and of the other heads only a sample of tokens unless they turn
    differently.

    Args:
        inputs: (PROBES, heads, head_dim), float32.
        run: gives the output of a probe, by its index, a few heads at a time in their order: float32 (heads, tokens,
            head_dim). It may end before the last head where the others turn alike.
        tolerance: as in `measure`.

    Returns:
        The rotations, or why what was measured is no rotation of pairs of channels.
    """
    x = inputs.numpy()

    def at(tokens: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Give all tokens of the first head, and some of all heads (default a sample over the whole sequence)."""
        whole, some = [], []
        for index in range(len(inputs)):
            seen: list[np.ndarray] = []
            for out in run(index):
                places = np.linspace(0, out.shape[1] - 1, min(out.shape[1], 64)) if tokens is None else tokens
                if not seen:
                    whole.append(out[:1].numpy().copy())
                seen.append(out[:, np.unique(places.astype(int))].numpy().copy())
            some.append(np.concatenate(seen))
        return np.stack(whole), np.stack(some)

    whole, sampled = at(None)
    some = measure(x[:, : sampled.shape[1]], sampled, tolerance)
    if isinstance(some, MatchFailure):
        return some
    one = _phases(x[:, :1], whole, some.first, some.second, tolerance)
    if isinstance(one, MatchFailure):
        return one
    if np.abs(some.phase - some.phase[:1]).max() <= 2 * max(one.residual, some.residual, 1e-6):
        return one

    def others(tokens: np.ndarray) -> np.ndarray:
        """Give the phase of every head at some tokens."""
        outputs = at(tokens)[1]
        found = _phases(x[:, : outputs.shape[1]], outputs, some.first, some.second, tolerance)
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
        turned = phase[0, places][(np.abs(phase[0, places] - 1) > STILL).any(1)]
        steps = turned[1:] * turned[:-1].conj()
        if len(steps) and np.abs(steps - steps[0]).max() > 2e-2:
            return MatchFailure(
                "keys beside the queries' own are turned as no line of text is: frames of a history, or a reference's"
            )
        phase[:, places] = 1
    return replace(rotations, phase=phase)
