"""Results of made-up contestants, for the tests of what `freeloc report` makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from freeloc_fx.evaluation.report import COLUMNS, Results

__all__ = ["FOUR", "GOOD", "GROUPS", "SHORT", "TEN", "results", "row"]

SHORT, FOUR, TEN = 81, 321, 801
GROUPS = {"main": ("direct", "riflex", "profile"), "ablation": ("direct", "vrpr", "random")}
GOOD = {
    "direct": 0.3, "vrpr": 0.5, "tsa": 0.5, "vrpr+tsa": 0.6, "random": 0.6, "profile": 0.7, "clip": 0.4, "group": 0.4,
    "riflex": 0.3, "window": 0.6, "direct+temp": 0.5, "vrpr+temp": 0.6, "vrpr-separable": 0.5, "squeeze": 0.5,
    "vrpr+squeeze": 0.6,
}  # fmt: skip


def row(
    name: str, frames: int, seed: int, draw: int = 0, captured: bool = False, **scores: float | None
) -> dict[str, Any]:
    return {
        "contestant": name, "draw": draw, "frames": frames, "seed": seed, "captured": captured,
        "scores": {**dict.fromkeys(COLUMNS, 0.5), **scores},
        "curve": {"at": [20.0, 60.0], "composite": [0.5, 0.4], "quality": [0.5, 0.5], "motion": [None, 0.3]},
    }  # fmt: skip


def results(
    means: Mapping[str, float],
    columns: tuple[str, ...] = ("composite", "quality", "motion", "flow", "sharpness", "identity"),
    seeds: int = 6,
    lengths: tuple[int, ...] = (FOUR, TEN),
    short: float = 0.6,
    noise: float = 0.01,
    **others: Any,
) -> Results:
    """Rows whose columns have these means; a clip's own level (0.1 either way) drops out of differences."""
    random = np.random.default_rng(0)
    level = random.uniform(-0.1, 0.1, seeds)

    def made(name: str, frames: int, seed: int, mean: float, draw: int = 0) -> dict[str, Any]:
        value = mean + level[seed] + random.normal() * noise
        return row(name, frames, seed, draw, **dict.fromkeys(columns, value))

    rows = [made("direct", SHORT, s, short) for s in range(seeds)]
    for frames in lengths:
        for name, mean in means.items():
            draws = 2 if name == "random" else 1
            rows += [made(name, frames, s, mean, d) for s in range(seeds) for d in range(draws)]
    return Results("m", SHORT, rows, GROUPS, layerwise="profile", **others)
