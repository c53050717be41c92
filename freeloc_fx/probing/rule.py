"""From two sensitivities a layer to a strategy a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from freeloc_fx.method.sensitivity import Sensitivity

__all__ = ["APART", "assign", "split", "thresholds"]


APART = 1.5
"""Groups of sensitivities nearer than this factor are one. On tiny-joint two groups a tenth apart were told apart, and
treating them differently made worse videos than treating them alike."""


def split(values: np.ndarray) -> float | None:
    """Find the threshold between two groups of positive values: the cut of their logarithms that explains most variance
    (Otsu).

    Args:
        values: float (n,).

    Returns:
        The threshold. None where the values do not fall into two groups: less than 85% of the variance is explained (an
        even spread gives 75%), or the groups' geometric means differ by less than a factor of APART.
    """
    logs = np.sort(np.log(np.maximum(values, 1e-12)))
    total = float(((logs - logs.mean()) ** 2).sum())
    if len(logs) < 2 or total < 1e-12:
        return None
    best, cut = 0.0, 0
    for i in range(1, len(logs)):
        low, high = logs[:i], logs[i:]
        between = len(low) * (low.mean() - logs.mean()) ** 2 + len(high) * (high.mean() - logs.mean()) ** 2
        if between > best:
            best, cut = float(between), i
    if best < 0.85 * total or logs[cut:].mean() - logs[:cut].mean() < math.log(APART):
        return None
    return float(np.exp((logs[cut - 1] + logs[cut]) / 2))


def thresholds(sensitivities: Mapping[int, Sensitivity]) -> tuple[float | None, float | None]:
    """Find the thresholds of the position and of the context sensitivities over layers.

    Args:
        sensitivities: of each layer.

    Returns:
        What `split` gives for each of the two.
    """
    values = list(sensitivities.values())
    return split(np.array([v.position for v in values])), split(np.array([v.context for v in values]))


def assign(sensitivities: Mapping[int, Sensitivity], temperature: bool = False, text: bool = False) -> dict[int, str]:
    """The paper's rule: layers sensitive to context get VRPR+TSA, the others VRPR.

    "Sensitive" is the upper of two groups of the measured context sensitivities (`split`). Where they do not fall into
    two groups, every layer gets VRPR+TSA: there is no ground for treating any of them differently.

    Args:
        sensitivities: of each layer.
        temperature: layers that keep every pair, those with VRPR alone, get "+temp". TSA shortens the context by
            itself, so a temperature that was matched without it does not belong beside it.
        text: text attends beside the video, so every layer gets "+squeeze" too: text has no position, and meets a long
            clip's frames at places that it never saw, which VRPR between frames does not mend.

    Returns:
        Layer -> strategy.
    """
    layers = sorted(sensitivities)
    threshold = thresholds(sensitivities)[1]
    dense = "vrpr+temp" if temperature else "vrpr"
    chosen = {
        layer: dense if threshold is not None and sensitivities[layer].context <= threshold else "vrpr+tsa"
        for layer in layers
    }
    return {layer: f"{name}+squeeze" for layer, name in chosen.items()} if text else chosen
