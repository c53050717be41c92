"""Rotating anchors beside a local window: the part "anchors".

LVSA (arXiv 2605.31057): every query sees the first frames, key frames at a fixed interval whose grid moves one frame a
denoising step, and a local window, together about as many frames as in training. Chosen here: a window that keeps its
width at the ends of the clip; no widening where it overlaps with anchors, so a query sees at most the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from freeloc_fx.method import checks
from freeloc_fx.method.frame_times import Frames, clip_length, first_of_clip, times
from freeloc_fx.method.parts import Part
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import FULL, NONE

__all__ = ["Anchors"]


_CHECKS = {
    "window": checks.whole(0),
    "first": checks.whole(0),
    "every": checks.whole(1),
    "rotate": checks.whole(0),
}


@dataclass(frozen=True)
class Anchors:
    """A query sees the first `first` frames, the key frames, and the 2 window + 1 frames around its own.

    The key frames are phase, phase + every, ... modulo the number of frames, ceil(frames / every) of them at any phase;
    over all phases every frame is one. The window lies within the clip: at its ends it is shifted, not cut. Frames
    beside the clip are seen by those whose window holds their time; one that lies outside of the clip by itself.

    Anchors(window=1, first=1, every=4) in a clip of 10 latent frames, at denoising steps 0 and 1:

        ###.#...#.    ###..#...#
        ###.#...#.    ###..#...#
        #####...#.    ####.#...#
        #.###...#.    ######...#
        #..###..#.    ##.###...#
        #...###.#.    ##..###..#
        #...#####.    ##...###.#
        #...#.###.    ##...#####
        #...#..###    ##...#.###
        #...#..###    ##...#.###

    Args:
        window: how far the local window reaches to either side, in latent frames, at least 0.
        first: how many first frames all queries see, in latent frames, at least 0.
        every: distance between two key frames, in latent frames, at least 1.
        rotate: how far the key frames move a denoising step, in latent frames, at least 0; 1 is the paper's, 0 keeps
            them. A larger number means fewer different rules (`period`).
        phase: the first of the key frames; `at` sets it for a denoising step.

    Raises:
        StrategyError: they are not integers in range.
    """

    window: int
    first: int
    every: int
    rotate: int = 1
    phase: int = 0

    def __post_init__(self) -> None:
        checks.fields("anchors", self, {**_CHECKS, "phase": checks.whole(0)})

    @property
    def period(self) -> int:
        """Number of denoising steps after which the key frames are the same again."""
        return self.every // math.gcd(self.every, self.rotate)

    def at(self, step: int) -> Anchors:
        return replace(self, phase=step * self.rotate % self.every)

    def anchors(self, frames: int) -> np.ndarray:
        """Give the frames that all queries see: the first frames and the key frames.

        Args:
            frames: latent frames of the clip, at least 1.

        Returns:
            bool (frames,).
        """
        seen = np.arange(frames) < self.first
        seen[(self.phase + self.every * np.arange(-(-frames // self.every))) % frames] = True
        return seen

    def levels(self, frames: Frames) -> np.ndarray:
        index, clip, first = times(frames), clip_length(frames), first_of_clip(frames)
        width = min(2 * self.window + 1, clip)
        start = np.clip(index - self.window, 0, clip - width)[:, None]
        local = (index >= start) & (index < start + width) | (index[:, None] == index)
        seen = np.zeros(len(index), bool)  # the anchors are frames of the clip
        seen[first : first + clip] = self.anchors(clip)
        return np.where(local | seen, FULL, NONE).astype(np.int8)

    def stripe(self, height: int, width: int) -> np.ndarray:
        return np.ones((height * width, height * width), bool)

    def describe(self) -> dict[str, Any]:
        return {"visibility": "anchors", **asdict(self)}


def _anchors(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A query sees a local window, the first frames, and key frames that move with the denoising step.

    Unless set: a window of half the trained length, one first frame, key frames for what is left of it.
    """
    own.setdefault("window", (geometry.trained_frames - 1) // 4)
    own.setdefault("first", 1)
    if "every" not in own:
        left = geometry.trained_frames - own["first"] - 2 * own["window"] - 1
        own["every"] = -(-geometry.frames // max(left, 1))
    return {"visibility": Anchors(**own)}


PART = Part("anchors", _anchors, sets=("visibility",), settings=_CHECKS, value=Anchors, stepped=True)
