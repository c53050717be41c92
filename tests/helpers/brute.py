"""An oracle written from the formulas alone: pair by pair, float64, from q and k that no RoPE has touched.

Shares no code with freeloc_fx: positions and visibility are written out again, and a key is never turned. The score of
a pair of tokens is Re(q conj(k) exp(i omega P)) summed over channel pairs. Other strategies are given as plain
functions of two frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Rope3D", "attention", "remapped", "sees"]


@dataclass(frozen=True)
class Rope3D:
    """Channel pairs by axis: each entry (first, second); omega: (heads, pairs) radians per step of that axis."""

    t: tuple[tuple[int, int], ...]
    h: tuple[tuple[int, int], ...]
    w: tuple[tuple[int, int], ...]
    omega_t: np.ndarray
    omega_h: np.ndarray
    omega_w: np.ndarray

    def turn(self, x: np.ndarray, axis: str, steps: np.ndarray) -> np.ndarray:
        """Turn x (batch, heads, tokens, head_dim) by `steps` (tokens,) along one axis."""
        x = x.copy()
        for p, (a, b) in enumerate(getattr(self, axis)):
            angle = getattr(self, f"omega_{axis}")[:, p][None, :, None] * steps[None, None, :]
            one, two = x[..., a].copy(), x[..., b].copy()
            x[..., a] = one * np.cos(angle) - two * np.sin(angle)
            x[..., b] = one * np.sin(angle) + two * np.cos(angle)
        return x

    def rotated(self, x: np.ndarray, frames: int, height: int, width: int) -> np.ndarray:
        """What a model's RoPE makes of x: every token turned by its frame, row and column."""
        token = np.arange(frames * height * width)
        x = self.turn(x, "t", token // (height * width))
        x = self.turn(x, "h", token // width % height)
        return self.turn(x, "w", token % width)


def remapped(i: int, j: int, vrpr: Mapping[str, Any] | None) -> int:
    """P: VRPR's formula on d = i - j, odd in d; `vrpr` None leaves d as it is."""
    if vrpr is None:
        return i - j
    if i < j:
        return -remapped(j, i, vrpr)
    d, w1, w2, g1, g2 = i - j, vrpr["w1"], vrpr["w2"], vrpr["g1"], vrpr["g2"]

    def quantised(group: int) -> int:
        return i // group - j // group if vrpr.get("quantise") == "separable" else d // group

    if d <= w1:
        return d
    if d <= w2:
        return quantised(g1) + w1 - w1 // g1
    return quantised(g2) + (w1 - w1 // g1) + (w2 // g1 - w2 // g2)


def sees(i: int, j: int, k: int, l: int, width: int, tsa: Mapping[str, Any] | None) -> bool:  # noqa: E741 - the design
    """M: whether token k of frame i sees token l of frame j; `tsa` None shows everything."""
    if tsa is None or (tsa.get("sink", True) and j == 0) or abs(i - j) < tsa["d1"]:
        return True
    if abs(i - j) >= tsa["d2"]:
        return False
    if tsa.get("spatial") == "2d":
        return max(abs(k // width - l // width), abs(k % width - l % width)) < tsa["ds"]
    return abs(k - l) < tsa["ds"]


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    rope: Rope3D,
    grid: tuple[int, int, int],
    vrpr: Mapping[str, Any] | None = None,
    tsa: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    scale: float | None = None,
    *,
    position: Callable[[int, int], float] | None = None,
    visible: Callable[[int, int], bool] | None = None,
    omega: np.ndarray | None = None,
    decay: Callable[[int, int], float] | None = None,
) -> np.ndarray:
    """softmax(temperature * scale * scores) v over the visible pairs; q, k, v: (batch, heads, tokens, head_dim).

    position, visible, decay: of query frame i and key frame j; position replaces `vrpr`, visible the frames of `tsa`,
    and decay multiplies the scores above 0. omega: (heads, pairs) to use instead of the model's over time.
    """
    frames, height, width = grid
    n = height * width
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    dim = q.shape[-1]
    scale = (1 / math.sqrt(dim) if scale is None else scale) * temperature
    token = np.arange(frames * n)
    for axis, place in (("h", token // width % height), ("w", token % width)):
        q, k = rope.turn(q, axis, place), rope.turn(k, axis, place)
    first, second = [a for a, _ in rope.t], [b for _, b in rope.t]
    still = [c for c in range(dim) if c not in {*first, *second}]
    omega = rope.omega_t if omega is None else omega
    scores = np.full((*q.shape[:2], frames * n, frames * n), -np.inf)
    for i in range(frames):
        for j in range(frames):
            if visible is not None:
                mask = np.full((n, n), visible(i, j))
            else:
                mask = np.array([[sees(i, j, a, b, width, tsa) for b in range(n)] for a in range(n)])
            if not mask.any():
                continue
            qi, kj = q[:, :, i * n : (i + 1) * n], k[:, :, j * n : (j + 1) * n]
            p = remapped(i, j, vrpr) if position is None else position(i, j)
            phase = np.exp(1j * omega * p)[None, :, None]  # (1, heads, 1, pairs)
            zq = (qi[..., first] + 1j * qi[..., second]) * phase
            zk = kj[..., first] + 1j * kj[..., second]
            score = (zq @ zk.conj().swapaxes(-1, -2)).real + qi[..., still] @ kj[..., still].swapaxes(-1, -2)
            score = score * scale
            if decay is not None:
                score = np.where(score > 0, score * decay(i, j), score)
            scores[:, :, i * n : (i + 1) * n, j * n : (j + 1) * n] = np.where(mask, score, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    result: np.ndarray = (weights / weights.sum(-1, keepdims=True)) @ v
    return result
