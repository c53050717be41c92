"""Random attentions over a clip with further frames and text around it, and what they should give, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brute
import numpy as np
import torch
from attention_cases import tsa_settings, vrpr_settings
from hypothesis import strategies as st

from freeloc_fx.method.grid import Further, RopeLayout, TokenGrid
from freeloc_fx.method.positions import VRPR, Identity
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Strategy
from freeloc_fx.method.visibility import TSA, Everything

__all__ = ["SpanCase", "span_cases"]


@dataclass(frozen=True)
class SpanCase:
    """A sequence of text, further frames, clip, further frames, text as numbers; further: (time, rows, columns)."""

    clip: tuple[int, int, int]
    before: tuple[tuple[float, int, int], ...] = ()
    after: tuple[tuple[float, int, int], ...] = ()
    text: tuple[int, int] = (0, 0)
    vrpr: dict[str, Any] | None = None
    tsa: dict[str, Any] | None = None
    temperature: float = 1.0
    text_scale: float = 1.0
    text_last: int | None = None
    heads: int = 2
    pairs: int = 2
    still: int = 4  # channels that turn with no frame
    seed: int = 0

    @property
    def omega(self) -> np.ndarray:
        """Radians per latent frame, (heads, pairs)."""
        return np.stack([0.9 ** np.arange(self.pairs) / (1 + head / 3) for head in range(self.heads)])

    @property
    def grid(self) -> TokenGrid:
        before, after = (tuple(Further(*one) for one in some) for some in (self.before, self.after))
        return TokenGrid(*self.clip, *self.text, before, after)

    @property
    def strategy(self) -> Strategy:
        return Strategy(
            "case",
            VRPR(**self.vrpr) if self.vrpr else Identity(),
            TSA(**self.tsa) if self.tsa else Everything(),
            self.temperature,
            text_scale=self.text_scale,
            text_last=self.text_last,
        )

    @property
    def spec(self) -> AttentionSpec:
        first = tuple(range(0, 2 * self.pairs, 2))
        rows = tuple(tuple(float(w) for w in row) for row in self.omega)
        dim = 2 * self.pairs + self.still
        return AttentionSpec(self.strategy, self.grid, RopeLayout(dim, first, tuple(c + 1 for c in first), rows))

    def frames(self) -> list[tuple[float, int, int]]:
        """(time, rows, columns) of every frame, in the order of the sequence."""
        frames, height, width = self.clip
        return [*self.before, *((float(i), height, width) for i in range(frames)), *self.after]

    def raw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        tokens = sum(self.text) + sum(h * w for _, h, w in self.frames())
        shape = (1, self.heads, tokens, 2 * self.pairs + self.still)
        q, k, v = (random.standard_normal(shape) for _ in range(3))
        return q, k, v

    def turned(self, x: np.ndarray, at: Callable[[float], float] = lambda t: t) -> np.ndarray:
        """What a model's RoPE makes of x: tokens of each frame turned by its time, text by nothing."""
        x, first = x.copy(), self.text[0]
        for time, height, width in self.frames():
            rows = slice(first, first + height * width)
            x[:, :, rows] = self.by(x[:, :, rows], at(time))
            first += height * width
        return x

    def by(self, x: np.ndarray, time: float) -> np.ndarray:
        """Tokens turned by a number of latent frames."""
        x = x.copy()
        for head in range(self.heads):
            for pair in range(self.pairs):
                angle = self.omega[head, pair] * time
                a, b = x[:, head, :, 2 * pair].copy(), x[:, head, :, 2 * pair + 1].copy()
                x[:, head, :, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
                x[:, head, :, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
        return x

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = self.raw()
        a, b, c = (torch.from_numpy(x).to(dtype) for x in (self.turned(q), self.turned(k), v))
        return a, b, c

    def sees(self, one: tuple[float, int, int], other: tuple[float, int, int], sink: bool) -> np.ndarray:
        """Which tokens of `other` each token of `one` sees; `sink`: `other` is the clip's first frame."""
        (i, *size), (j, *others) = one, other
        n, m = size[0] * size[1], others[0] * others[1]
        if self.tsa is None or (sink and self.tsa.get("sink", True)) or abs(i - j) < self.tsa["d1"]:
            return np.ones((n, m), bool)
        if abs(i - j) >= self.tsa["d2"]:
            return np.zeros((n, m), bool)
        if (size, others) != (list(self.clip[1:]), list(self.clip[1:])):
            return np.ones((n, m), bool)  # a stripe means nothing between frames of unlike sizes
        rule = {**self.tsa, "sink": False, "d1": -1, "d2": 1}
        return np.array([[brute.sees(0, 0, a, b, self.clip[2], rule) for b in range(m)] for a in range(n)])

    def expected(self) -> np.ndarray:
        """The attention from q and k that no RoPE has touched, pair of frames by pair of frames."""
        q, k, v = self.raw()
        frames, first = self.frames(), self.text[0]
        start = [first + sum(h * w for _, h, w in frames[:n]) for n in range(len(frames))]
        tokens = q.shape[2]
        scores = q @ k.swapaxes(-1, -2)  # text with text
        text = [t for t in range(tokens) if not first <= t < tokens - self.text[1]]
        for n, one in enumerate(frames):
            rows = slice(start[n], start[n] + one[1] * one[2])
            stands = min(one[0] * self.text_scale, math.inf if self.text_last is None else self.text_last)
            scores[:, :, rows, text] = self.by(q[:, :, rows], stands) @ k[:, :, text].swapaxes(-1, -2)
            scores[:, :, text, rows] = q[:, :, text] @ self.by(k[:, :, rows], stands).swapaxes(-1, -2)
            for m, other in enumerate(frames):
                columns = slice(start[m], start[m] + other[1] * other[2])
                apart = brute.remapped(one[0], other[0], self.vrpr)  # type: ignore[arg-type]
                block = self.by(q[:, :, rows], apart) @ k[:, :, columns].swapaxes(-1, -2)
                visible = self.sees(one, other, m == len(self.before))
                scores[:, :, rows, columns] = np.where(visible, block, -np.inf)
        scores = scores * self.temperature / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        result: np.ndarray = (weights / weights.sum(-1, keepdims=True)) @ v
        return result


@st.composite
def span_cases(draw: st.DrawFn, frames: int = 12, side: int = 3, one_size: bool | None = None) -> SpanCase:
    clip = (draw(st.integers(2, frames)), draw(st.integers(1, side)), draw(st.integers(1, side)))
    alike = draw(st.booleans()) if one_size is None else one_size
    sides = st.integers(1, side)
    when = st.one_of(st.integers(-3, frames + 4).map(float), st.integers(-128, 64 * frames).map(lambda n: n / 64))

    def some() -> tuple[tuple[float, int, int], ...]:
        many = draw(st.integers(0, 3))
        return tuple(
            (draw(when), *((clip[1:]) if alike else (draw(sides), draw(sides))))  # type: ignore[misc]
            for _ in range(many)
        )

    vrpr, tsa = draw(vrpr_settings()), draw(tsa_settings())
    return SpanCase(
        clip,
        some(),
        some(),
        (draw(st.integers(0, 3)), draw(st.integers(0, 3))),
        vrpr if draw(st.booleans()) else None,
        tsa if draw(st.booleans()) else None,
        draw(st.sampled_from([1.0, 1.167])),
        draw(st.sampled_from([1.0, 0.5])),
        draw(st.sampled_from([None, 3])),
        seed=draw(st.integers(0, 1000)),
    )
