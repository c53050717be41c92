"""When a frame is, from by how much it is turned in time."""

from __future__ import annotations

import numpy as np

from freeloc_fx.method.grid import RopeLayout

__all__ = ["time_of"]


def time_of(turn: np.ndarray, layout: RopeLayout, frames: int, tolerance: float) -> float | None:
    """Find by how many latent frames something is turned.

    Args:
        turn: complex numbers of modulus 1, (heads or 1, temporal pairs).
        layout: the rates. Known up to whole turns, they show whole frames only.
        frames: of the clip; times from -2 to 3 times as many are looked at.
        tolerance: largest accepted deviation, as a complex modulus.

    Returns:
        The time, a multiple of 1/64; what it is off by, the model keeps. None where nothing fits.
    """
    omega = np.broadcast_to(np.asarray(layout.omega), turn.shape).ravel()
    known = np.abs(omega) > 0
    omega, angle = omega[known], np.angle(turn).ravel()[known]

    def misfit(time: float) -> float:
        return float(np.abs(np.exp(1j * omega * time) - np.exp(1j * angle)).max())

    whole = np.arange(-2 * frames, 3 * frames + 1)
    fits = np.abs(np.exp(1j * omega * whole[:, None]) - np.exp(1j * angle)).max(1)
    # Where rates are known, a time close to a whole one shows as that.
    if fits.min() <= (max(5e-4, 3 * layout.residual) if layout.whole_turns else tolerance):
        return float(whole[fits.argmin()])
    if not layout.whole_turns:
        return None
    for start in _starts(omega, angle, frames):
        time = _refined(start, omega, angle)
        if misfit(time) <= tolerance and -2 * frames <= time <= 3 * frames:
            return round(time * 64) / 64
    return None


def _starts(omega: np.ndarray, angle: np.ndarray, frames: int) -> list[float]:
    """Times that fit the slow pairs best, the best first."""
    slow = np.abs(omega) <= max(1.0, float(np.abs(omega).min()))
    step = 1 / 8 / float(np.abs(omega[slow]).max())
    times = np.arange(-2 * frames, 3 * frames + step, step)
    score = np.cos(omega[slow] * times[:, None] - angle[slow]).mean(1)
    peak = np.flatnonzero((score >= np.roll(score, 1)) & (score >= np.roll(score, -1)))
    return [float(t) for t in times[peak[np.argsort(-score[peak])[:8]]]]


def _refined(time: float, omega: np.ndarray, angle: np.ndarray) -> float:
    """A time that fits ever faster pairs: each shows it to a part of its own turn."""
    order = np.argsort(np.abs(omega))
    for count in range(1, len(order) + 1):
        some = order[:count]
        off = np.angle(np.exp(1j * (angle[some] - omega[some] * time)))
        time += float((off * omega[some]).sum() / (omega[some] ** 2).sum())
    return time
