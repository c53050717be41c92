"""From two sensitivities a layer to a strategy a layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..profile import Sensitivity

__all__ = ["assign", "split"]


def split(values: np.ndarray) -> float | None:
    """Threshold between two groups of positive values: the cut of their logarithms that explains most variance (Otsu).

    None where less than 85% of the variance is explained: an even spread already gives 75%, so the values then do not
    fall into two groups.
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
    if best < 0.85 * total:
        return None
    return float(np.exp((logs[cut - 1] + logs[cut]) / 2))


def assign(sensitivities: Mapping[int, Sensitivity]) -> dict[int, str]:
    """The paper's rule: layers sensitive to context get VRPR+TSA, the others VRPR.

    "Sensitive" is the upper of two groups of the measured context sensitivities (`split`). Where they do not fall into
    two groups, every layer gets VRPR+TSA: there is no ground for treating any of them differently.
    """
    layers = sorted(sensitivities)
    threshold = split(np.array([sensitivities[layer].context for layer in layers]))
    if threshold is None:
        return dict.fromkeys(layers, "vrpr+tsa")
    return {layer: "vrpr+tsa" if sensitivities[layer].context > threshold else "vrpr" for layer in layers}
