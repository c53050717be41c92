"""Pixels of a clip sorted by colour, and the blobs that they form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freeloc_fx.generation.tiny_wan.scenes import AREA, SIZE, Colour

__all__ = ["SEEN", "XX", "YY", "box", "centroid", "edges", "label", "main_blob", "opened", "read_size"]


SEEN = 0.15
"""Share of a shape's area below which a blob is too small to be placed."""


_TOLERANCE = 0.3  # RGB distance from a colour's mixing line; the two closest palette colours are 0.64 apart


_REACH = 17  # px from the blob's middle that may belong to it; a triangle's corner is 14 px from its centroid


YY, XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)
"""Of the centre of each pixel, from the upper left corner."""


def label(video: np.ndarray, middle: np.ndarray, palette: Sequence[Colour]) -> tuple[np.ndarray, np.ndarray]:
    """Sort pixels by colour: each belongs to the one whose line of mixtures with the background it is nearest to.

    Args:
        video: float32 RGB in [0, 1], (frames, height, width, 3).
        middle: RGB of the background's mean tone.
        palette: RGB of the colours; one that is NaN gets no pixel.

    Returns:
        Index of each pixel's colour, int (frames, height, width): -1 for the background, the palette's length for what
        is bright but of no palette colour; and how far it is on each colour's line, 0 at the background and 1 at the
        colour, float32 (colours, frames, height, width).
    """
    offset = video - middle
    squared = np.einsum("tyxc,tyxc->tyx", offset, offset)
    alphas, distances = [], []
    for colour in palette:
        line = np.array(colour, np.float32) - middle
        if np.isnan(line).any():  # a thing that the clip never showed
            distances.append(np.full(squared.shape, np.inf, np.float32))
            alphas.append(np.zeros(squared.shape, np.float32))
            continue
        length = float(line @ line)
        along = offset @ (line / length)
        near = np.clip(along, 0, 1.1)
        distances.append(squared - length * near * (2 * along - near))
        alphas.append(along)
    closest, alpha = np.argmin(distances, 0), np.array(alphas)
    close = np.min(distances, 0) < _TOLERANCE**2
    reached = np.take_along_axis(alpha, closest[None], 0)[0] > 0.5
    unknown = ~close & (video.max(-1) > 0.5)
    return np.where(close & reached, closest, np.where(unknown, len(palette), -1)), alpha


def box(mask: np.ndarray, reach: int) -> np.ndarray:
    """Sum over the square around each pixel; outside the frame is 0.

    Args:
        mask: bool (frames, height, width).
        reach: pixels to each side, so that the square is 2 reach + 1 wide.

    Returns:
        int32 (frames, height, width).
    """
    rows, columns = (_within(length, reach) for length in mask.shape[1:])
    return np.asarray((rows @ (mask.astype(np.float32) @ columns)).astype(np.int32))


def _within(length: int, reach: int) -> np.ndarray:
    """Which pixels of a line lie within a reach of which, 1 and 0; sums by it are whole numbers, exact in float32."""
    place = np.arange(length)
    return (abs(place[:, None] - place) <= reach).astype(np.float32)


def opened(mask: np.ndarray) -> np.ndarray:
    """Keep of a mask what is at least five pixels wide.

    Args:
        mask: bool (frames, height, width).

    Returns:
        bool, of the same shape, with the surroundings of what is kept.
    """
    return np.asarray(box(box(mask, 2) == 25, 2) > 0)


def edges(mask: np.ndarray) -> np.ndarray:
    """Tell whether a mask reaches the edge of the frame.

    Args:
        mask: bool (frames, height, width).

    Returns:
        bool (frames,).
    """
    sides = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    return np.asarray(sides)


def centroid(weight: np.ndarray) -> np.ndarray:
    """Average the places of pixels.

    Args:
        weight: of each pixel, (frames, height, width).

    Returns:
        float (frames, 2), x and y in px.
    """
    total = np.maximum(weight.sum((1, 2)), 1e-6)
    return np.stack([(weight * XX).sum((1, 2)) / total, (weight * YY).sum((1, 2)) / total], -1)


def main_blob(mask: np.ndarray) -> np.ndarray:
    """Take the part of a colour's mask around its densest place; it may be cut in two by a shape in front.

    Args:
        mask: bool (frames, height, width).

    Returns:
        bool, of the same shape.
    """
    peak = box(mask, 8).reshape(len(mask), -1).argmax(1)
    centre = np.stack([peak % SIZE, peak // SIZE], -1) + 0.5
    for _ in range(2):
        x, y = centre.T[:, :, None, None]
        blob: np.ndarray = mask & (np.hypot(XX - x, YY - y) < _REACH)
        centre = centroid(blob)
    return blob


def read_size(blob: np.ndarray, others: np.ndarray) -> float:
    """Measure a shape whose size the prompt leaves open in the frames that show it whole.

    Args:
        blob: the shape, bool (frames, height, width).
        others: the other shapes, likewise.

    Returns:
        The area in px.
    """
    area = blob.sum((1, 2))
    whole = (area >= SEEN * AREA / 2) & ~edges(blob) & ~((box(blob, 4) > 0) & others).any((1, 2))
    if whole.any():
        return float(np.median(area[whole]))
    # Never alone: nearly the most that is seen of it at once.
    return max(float(np.quantile(area, 0.95)), SEEN * AREA)
