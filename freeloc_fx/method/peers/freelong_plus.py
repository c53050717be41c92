"""Several window lengths, one band of frequencies each: the part "freelong++".

FreeLong++ (Lu and Yang 2025, arXiv 2507.00162, "Multi-band SpectralFusion"): FreeLong with windows of 1, 2, 4, ...
times the trained length between the local and the global one, longer windows giving lower frequencies. Not taken over:
the paper's SpecMix noise, and its thinning of the keys in long windows, which changes cost and not the idea.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.parts import Part
from freeloc_fx.method.strategy import Geometry, Strategy

from .freelong import SpectralBlend, local

__all__ = ["windows"]


_CHECKS = {"windows": checks.each(checks.whole(1)), "cutoff": checks.number(0), "spatial": checks.number(0)}


def windows(trained_frames: int, frames: int) -> tuple[int, ...]:
    """Give the window lengths: the trained length doubled as long as it is shorter than the clip, and the clip.

    Args:
        trained_frames: latent frames of the training clips, at least 1.
        frames: latent frames of the clip, more than that.

    Returns:
        Falling lengths in latent frames.
    """
    lengths = [trained_frames]
    while lengths[-1] * 2 < frames:
        lengths.append(lengths[-1] * 2)
    return (frames, *reversed(lengths))


def _freelong_plus(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """One band of frequencies of attention within each of several windows, lower ones from longer windows.

    A window w's band ends where that of the next shorter window begins: at 0.25 L / w' for its length w'. The paper
    ties each band's edges to the window lengths. This choice of edges has FreeLong as the case of one window, and the
    band of a window twice as long begins at half the frequency. The setting `cutoff` stands for the 0.25.
    """
    lengths = tuple(own.get("windows", ())) or windows(geometry.trained_frames, geometry.frames)
    if list(lengths) != sorted(set(lengths), reverse=True):
        raise StrategyError(f"freelong++.windows: expected falling lengths, found {list(lengths)}")
    if lengths[0] > geometry.frames:
        raise StrategyError(f"freelong++.windows.0: expected at most the {geometry.frames} frames, found {lengths[0]}")
    shortest, cutoff = lengths[-1], own.get("cutoff", 0.25)
    cutoffs = tuple(cutoff * shortest / length for length in lengths[1:])
    strategies = tuple(Strategy("global") if n == geometry.frames else local(n) for n in lengths)
    return {"mixture": SpectralBlend(strategies, cutoffs, own.get("spatial", 0.25))}


PART = Part("freelong++", _freelong_plus, sets=("mixture",), settings=_CHECKS, mixes=("visibility",))
