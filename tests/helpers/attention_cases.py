"""Random and named attentions as plain numbers, from which the oracle and the lowerings compute the same thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brute
import numpy as np
import torch
from hypothesis import strategies as st

from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.positions import VRPR, Identity
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Strategy
from freeloc_fx.method.visibility import TSA, Everything

__all__ = [
    "NAMED",
    "TSA_RASTER",
    "VRPR_PAIR",
    "Case",
    "Lowering",
    "Places",
    "Tensors",
    "cases",
    "distance",
    "joint",
    "named",
    "tsa_settings",
    "vrpr_settings",
]

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Lowering = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One random attention: raw q, k, v, a RoPE, a grid and a strategy as plain numbers."""

    batch: int
    heads: int
    grid: tuple[int, int, int]
    pairs: tuple[int, int, int]  # temporal, height, width
    half: bool
    per_head: bool
    plain: int  # channels that RoPE leaves alone
    vrpr: dict[str, Any] | None
    tsa: dict[str, Any] | None
    temperature: float
    seed: int = 0

    @property
    def dim(self) -> int:
        return 2 * sum(self.pairs) + self.plain

    @property
    def rope(self) -> brute.Rope3D:
        count = sum(self.pairs)
        places = [(p, p + count) if self.half else (2 * p, 2 * p + 1) for p in range(count)]
        t, h, _ = self.pairs
        by_axis = (tuple(places[:t]), tuple(places[t : t + h]), tuple(places[t + h :]))
        omega = []
        for axis in by_axis:
            row = np.array([100.0 ** (-p / max(len(axis), 1)) for p in range(len(axis))])
            factors = 1 + 0.3 * np.arange(self.heads) * self.per_head
            omega.append(factors[:, None] * row[None])
        return brute.Rope3D(*by_axis, *omega)

    @property
    def strategy(self) -> Strategy:
        return Strategy(
            "case",
            VRPR(**self.vrpr) if self.vrpr else Identity(),
            TSA(**self.tsa) if self.tsa else Everything(),
            self.temperature,
        )

    @property
    def spec(self) -> AttentionSpec:
        rope = self.rope
        rows = rope.omega_t if self.per_head else rope.omega_t[:1]
        layout = RopeLayout(
            self.dim,
            tuple(a for a, _ in rope.t),
            tuple(b for _, b in rope.t),
            tuple(tuple(float(w) for w in row) for row in rows),
        )
        return AttentionSpec(self.strategy, TokenGrid(*self.grid), layout)

    def raw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        shape = (self.batch, self.heads, int(np.prod(self.grid)), self.dim)
        q, k, v = (random.standard_normal(shape).astype(np.float32) for _ in range(3))
        return q, k, v

    def tensors(self, dtype: torch.dtype = torch.float32) -> Tensors:
        """q and k as the model's RoPE hands them to attention."""
        q, k, v = self.raw()
        turned = [self.rope.rotated(x.astype(np.float64), *self.grid) for x in (q, k)]
        a, b, c = (torch.from_numpy(x).float().to(dtype) for x in (*turned, v))
        return a, b, c


@st.composite
def vrpr_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of VRPR."""
    w1, g1 = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    return {
        "w1": w1,
        "w2": w1 + draw(st.integers(0, 8)),
        "g1": g1,
        "g2": g1 + draw(st.integers(0, 4)),
        "quantise": draw(st.sampled_from(["pair", "separable"])),
    }


@st.composite
def tsa_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of TSA."""
    d1 = draw(st.integers(1, 6))
    return {
        "d1": d1,
        "d2": d1 + draw(st.integers(0, 8)),
        "ds": draw(st.integers(1, 8)),
        "sink": draw(st.booleans()),
        "spatial": draw(st.sampled_from(["raster", "2d"])),
    }


@st.composite
def cases(draw: st.DrawFn, frames: int = 30, side: int = 5, vrpr: bool | None = None) -> Case:
    positions, visibility = draw(vrpr_settings()), draw(tsa_settings())
    return Case(
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        grid=(draw(st.integers(2, frames)), draw(st.integers(1, side)), draw(st.integers(1, side))),
        pairs=(draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        half=draw(st.booleans()),
        per_head=draw(st.booleans()),
        plain=draw(st.sampled_from([0, 1, 2])),
        vrpr=positions if (draw(st.booleans()) if vrpr is None else vrpr) else None,
        tsa=visibility if draw(st.booleans()) else None,
        temperature=draw(st.sampled_from([1.0, 0.9, 1.167, 1.363])),
        seed=draw(st.integers(0, 1000)),
    )


VRPR_PAIR = {"w1": 4, "w2": 9, "g1": 2, "g2": 3}
TSA_RASTER = {"d1": 3, "d2": 7, "ds": 4}
NAMED: dict[str, dict[str, Any]] = {
    "direct+temp": {"temperature": 1.363},
    "vrpr": {"vrpr": VRPR_PAIR},
    "vrpr separable": {"vrpr": VRPR_PAIR | {"quantise": "separable"}},
    "tsa": {"tsa": TSA_RASTER},
    "tsa no sink": {"tsa": TSA_RASTER | {"sink": False}},
    "tsa 2d": {"tsa": TSA_RASTER | {"ds": 2, "spatial": "2d"}},
    "tsa 2d no sink": {"tsa": TSA_RASTER | {"ds": 2, "spatial": "2d", "sink": False}},
    "vrpr+tsa+temp": {"vrpr": VRPR_PAIR, "tsa": TSA_RASTER, "temperature": 1.167},
}


def named(name: str, **changes: Any) -> Case:
    start: dict[str, Any] = {
        "batch": 2,
        "heads": 3,
        "grid": (17, 3, 4),
        "pairs": (2, 2, 2),
        "half": False,
        "per_head": True,
        "plain": 0,
        "vrpr": None,
        "tsa": None,
        "temperature": 1.0,
    }
    return Case(**(start | NAMED[name] | changes))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value, at least 1."""
    gap = (found.double() - expected.double()).abs().max()
    return float(gap / expected.double().abs().max().clamp(min=1.0))


Places = tuple[float, int | None]
"""text_scale and text_last of a strategy."""


def joint(case: Case, first: int, last: int, places: Places = (1.0, None)) -> tuple[AttentionSpec, Tensors]:
    """A case with random text tokens around the video."""
    spec = case.spec
    grid = TokenGrid(*case.grid, text_first=first, text_last=last)
    strategy = dataclasses.replace(spec.strategy, text_scale=places[0], text_last=places[1])
    spec = dataclasses.replace(spec, grid=grid, strategy=strategy)
    random = torch.Generator().manual_seed(case.seed)

    def around(x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], x.shape[1], first + last, x.shape[3])
        text = torch.randn(shape, generator=random)
        return torch.cat([text[:, :, :first], x, text[:, :, first:]], 2)

    q, k, v = (around(x) for x in case.tensors())
    return spec, (q, k, v)
