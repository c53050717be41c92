"""Offline stand-ins for the models VBench uses. No weights; every name begins with "proxy:" and says what it is.

They rank videos of one kind against one another. Their figures are not VBench's and must not be set beside published
ones. There is none for aesthetic quality: nothing that runs without learned weights measures it honestly.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .clip import require

__all__ = ["ColourLayout", "DisFlow", "FlowMidpoint", "ShapeHistogram", "Sharpness", "area_means"]


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def area_means(frames: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Average frames over a grid of near-equal cells.

    A side shorter than its number of cells keeps its pixels.

    Args:
        frames: (frames, height, width, channels).
        rows: cells over the height.
        columns: cells over the width.

    Returns:
        float32 (frames, rows, columns, channels), of the frames' scale.
    """
    result = np.asarray(frames, np.float32)
    for axis, cells in ((1, rows), (2, columns)):
        size = result.shape[axis]
        cells = min(cells, size)
        edges = np.arange(cells + 1) * size // cells
        shape = [1] * result.ndim
        shape[axis] = cells
        result = np.add.reduceat(result, edges[:-1], axis) / np.diff(edges).astype(np.float32).reshape(shape)
    return result


def _luma(frames: np.ndarray) -> np.ndarray:
    """float32 in [0, 255], without the channel axis."""
    return frames @ _LUMA


class ShapeHistogram:
    """In DINO's place: which colours and which edge directions a frame holds, wherever they are.

    Shares of 4x4x4 colour bins (softly assigned) and magnitude-weighted shares of 8 unsigned gradient directions at
    two scales. Square roots of shares, so that a cosine is the mean Bhattacharyya coefficient and small objects count.

    Args:
        colours: bins of each channel.
        directions: bins of the gradient's direction.
        side: px to which larger frames are reduced.
    """

    name = "proxy: colour and edge histograms"

    def __init__(self, colours: int = 4, directions: int = 8, side: int = 128) -> None:
        self.colours, self.directions, self.side = colours, directions, side

    def features(self, frames: np.ndarray) -> np.ndarray:
        """Turn frames into vectors, see `models.FeatureModel`.

        Args:
            frames: uint8 RGB (frames, height, width, 3).

        Returns:
            float (frames, channels).
        """
        return np.stack([self._one(frame) for frame in frames])

    def _one(self, frame: np.ndarray) -> np.ndarray:
        small = area_means(frame[None], self.side, self.side)[0]
        shares = [self._colour_shares(small)]
        for scale in (1, 2):
            coarse = small if scale == 1 else area_means(small[None], self.side // 2, self.side // 2)[0]
            shares.append(self._edge_shares(_luma(coarse)))
        return np.concatenate([np.sqrt(share) for share in shares])

    def _colour_shares(self, frame: np.ndarray) -> np.ndarray:
        n = self.colours
        place = frame.reshape(-1, 3) / 255 * (n - 1)
        low = np.minimum(place.astype(int), n - 2)
        above = place - low
        shares = np.zeros(n**3)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, above, 1 - above), 1)
            shares += np.bincount((low + corner) @ (n * n, n, 1), weight, n**3)
        return shares / len(place)

    def _edge_shares(self, luma: np.ndarray) -> np.ndarray:
        if min(luma.shape) < 2:
            return np.full(self.directions, 1 / self.directions)
        dy, dx = np.gradient(luma)
        magnitude = np.hypot(dx, dy).ravel()
        place = np.mod(np.arctan2(dy, dx), np.pi).ravel() / np.pi * self.directions
        low = place.astype(int)
        shares = np.zeros(self.directions)
        for i, w in ((0, 1 - (place - low)), (1, place - low)):
            shares += np.bincount((low + i) % self.directions, magnitude * w, self.directions)
        # A little of every direction: a frame without edges has no direction of its own, and noise must not decide.
        shares = shares / luma.size + 0.02
        return np.asarray(shares / shares.sum())


class ColourLayout:
    """In CLIP's place: the colours of a 4x4 grid, which follow the background and hardly a small moving object.

    Args:
        cells: of the grid, a side.
    """

    name = "proxy: low-frequency colour layout"

    def __init__(self, cells: int = 4) -> None:
        self.cells = cells

    def features(self, frames: np.ndarray) -> np.ndarray:
        """Turn frames into vectors, see `models.FeatureModel`.

        Args:
            frames: uint8 RGB (frames, height, width, 3).

        Returns:
            float (frames, channels).
        """
        means = np.concatenate([area_means(f[None], self.cells, self.cells) for f in frames])
        offset = (means.reshape(len(frames), -1) / 255 - 0.5).astype(float)
        # The constant gives a mid-grey frame a direction; colours count from grey, else all frames look alike.
        constant = np.full((len(frames), 1), 0.1 * np.sqrt(offset.shape[1]))
        return np.concatenate([offset, constant], 1)


class DisFlow:
    """In RAFT's place: OpenCV's dense inverse search (Kroeger et al., ECCV 2016), preset medium, on luma.

    bias: textured squares moved by a known 1 to 3 px for each 64 px of frame, over a still texture, measure 0.84-0.93
    of the true top-5% magnitude at 64x64 and 0.97-0.99 at 128x128 (OpenCV 5.0); 0.93 is taken.
    """

    name = "proxy: DIS optical flow (threshold x 0.93)"
    bias = 0.93

    @cached_property
    def _dis(self) -> tuple[Any, Any]:
        cv2 = require("cv2", '"freeloc_fx[metrics]"', "optical flow")
        return cv2, cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Measure how pixels move from one frame to another, see `models.FlowModel`.

        Args:
            first: uint8 RGB (height, width, 3).
            second: as first.

        Returns:
            float32 (height, width, 2): x and y in pixels, first to second.

        Raises:
            DependencyError: OpenCV is missing.
        """
        cv2, dis = self._dis
        height, width = first.shape[:2]
        gray = [cv2.cvtColor(np.ascontiguousarray(f), cv2.COLOR_RGB2GRAY) for f in (first, second)]
        # DIS fails on frames smaller than its patches at its coarsest scale.
        down, right = max(0, 32 - height), max(0, 32 - width)
        if down or right:
            gray = [np.pad(g, ((0, down), (0, right)), mode="edge") for g in gray]
        return np.asarray(dis.calc(gray[0], gray[1], None)[:height, :width])


class FlowMidpoint:
    """In AMT's place: both frames warped half-way along the optical flow, averaged.

    Flows from the middle are taken from those between the frames, Jiang et al. 2018 ("Super SloMo"), equation 4 at
    t = 1/2. Occlusions are not modelled.

    Args:
        flow: a flow model; None for `DisFlow`.
    """

    def __init__(self, flow: Any = None) -> None:
        self._flow = DisFlow() if flow is None else flow
        self.name = f"proxy: midpoint warp along {str(self._flow.name).removeprefix('proxy: ').split(' (')[0]}"

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Make the frame half-way between two, see `models.InterpolationModel`.

        Args:
            first: uint8 RGB (height, width, 3).
            second: as first.

        Returns:
            uint8 RGB (height, width, 3).

        Raises:
            DependencyError: OpenCV is missing.
        """
        cv2 = require("cv2", '"freeloc_fx[metrics]"', "warping")
        ahead, back = self._flow.flow(first, second), self._flow.flow(second, first)
        height, width = first.shape[:2]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
        to_first = (back - ahead) / 4
        warped = [
            cv2.remap(
                np.ascontiguousarray(frame),
                (grid + offset).astype(np.float32),
                None,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for frame, offset in ((first, to_first), (second, -to_first))
        ]
        return ((warped[0].astype(np.uint16) + warped[1] + 1) // 2).astype(np.uint8)


class Sharpness:
    """In MUSIQ's place: (1 - blur) / (1 + (noise / 8)^2), in 0..1.

    blur: Crete et al., SPIE 2007, "The blur effect", 9-pixel box, the worse of the two directions, 0 sharp to 1.
    noise: Donoho and Johnstone 1994, median of the finest diagonal Haar coefficients of luma / 0.6745, in grey levels
    of 255; 8 levels halve the score. A frame without any edge counts as blurred. Says nothing of artefacts or content.
    """

    name = "proxy: sharpness less noise"

    def quality(self, frames: np.ndarray) -> np.ndarray:
        """Judge single frames, see `models.QualityModel`.

        Args:
            frames: uint8 RGB (frames, height, width, 3).

        Returns:
            float (frames,), 0 (worst) to 1 (best).
        """
        return np.array([self._one(_luma(frame)) for frame in frames])

    def _one(self, luma: np.ndarray) -> float:
        blur = max(self._blur(luma), self._blur(luma.T))
        even = luma[: luma.shape[0] // 2 * 2, : luma.shape[1] // 2 * 2]
        diagonal = (even[::2, ::2] - even[1::2, ::2] - even[::2, 1::2] + even[1::2, 1::2]) / 2
        noise = float(np.median(np.abs(diagonal))) / 0.6745 if diagonal.size else 0.0
        return (1 - blur) / (1 + (noise / 8) ** 2)

    @staticmethod
    def _blur(luma: np.ndarray, reach: int = 4) -> float:
        """Share of the vertical variation that survives a box blur of 2 reach + 1 pixels."""
        padded = np.pad(luma.astype(np.float64), ((reach + 1, reach), (0, 0)), mode="edge").cumsum(0)
        smooth = (padded[2 * reach + 1 :] - padded[: -2 * reach - 1]) / (2 * reach + 1)
        before = np.abs(np.diff(luma, axis=0)).astype(np.float64)
        after = np.abs(np.diff(smooth, axis=0))
        total = float(before.sum())
        if total < 1e-3 * before.size or before.size == 0:
            return 1.0
        return float((total - np.maximum(before - after, 0).sum()) / total)
