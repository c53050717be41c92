"""Find a prompt's shapes in every frame of a tiny-wan clip: what `ground_truth` scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from freeloc_fx.generation.tiny_wan.scenes import AREA, BACKGROUNDS, CAMERAS, COLOURS, SHAPES, SIZE, Scene, parse_prompt
from freeloc_fx.generation.tiny_wan.scenes import signed_distance as _distance

__all__ = ["LAG", "Analysis", "Track", "analyse"]


_TOLERANCE = 0.3  # RGB distance from a colour's mixing line; the two closest palette colours are 0.64 apart


_SEEN = 0.15  # share of AREA below which a blob is too small to be placed


_REACH = 17  # px from the blob's middle that may belong to it; a triangle's corner is 14 px from its centroid


_LONGEST_HIDING = 48  # frames: a shape that stays away longer than this was lost, not hidden


LAG = 4  # frames between the two ends of a displacement: 1.6 px at the slow speed, above the noise of a centroid


_YY, _XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)


@dataclass(frozen=True)
class Track:
    """One shape over time; the arrays have one value a video frame.

    Args:
        centre: float (frames, 2), x and y in px.
        area: measured area as a share of AREA.
        visible: expected visible share of AREA, NaN where the shape is lost.
        kind: index into SHAPES of the kind that fits best.
        clear: whether the shape is seen whole, with no other near.
        sharpness: slope of the outline beside an ideal one's, NaN where it cannot be measured.
        error: mean squared error beside the ideal shape, NaN where it cannot be measured.
    """

    centre: np.ndarray
    area: np.ndarray
    visible: np.ndarray
    kind: np.ndarray
    clear: np.ndarray
    sharpness: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Analysis:
    """What was found in a clip.

    Args:
        scene: what the prompt asks for.
        tracks: one for each of the scene's shapes.
        foreign: float (frames,), share of pixels in shapes that were not asked for.
        scroll: measured speed of each wave of the texture, px per frame (frames - lag,), with the true one.
    """

    scene: Scene
    tracks: tuple[Track, ...]
    foreign: np.ndarray
    scroll: tuple[tuple[np.ndarray, float], ...]


def analyse(video: np.ndarray, prompt: str) -> Analysis:
    """Find a prompt's shapes in every frame.

    Args:
        video: float RGB in [0, 1], (frames, 64, 64, 3), at least 2 frames.
        prompt: in tiny-wan's grammar.

    Returns:
        The tracks of the shapes, foreign shapes and the background's motion.

    Raises:
        ValueError: wrong shape or dtype, values not finite or outside [-0.5, 1.5], or a bad prompt.
    """
    scene = parse_prompt(prompt)
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[1:] != (SIZE, SIZE, 3) or len(video) < 2:
        raise ValueError(f"video has shape {video.shape}; expected (frames >= 2, {SIZE}, {SIZE}, 3)")
    if not np.issubdtype(video.dtype, np.floating):
        raise ValueError(f"video has dtype {video.dtype}; expected floats in [0, 1]")
    if not (np.isfinite(video).all() and video.min() >= -0.5 and video.max() <= 1.5):
        raise ValueError(f"video has values from {video.min()} to {video.max()}; expected finite values in [0, 1]")
    video = np.clip(video, 0, 1).astype(np.float32)

    dark, bright = (np.array(c, np.float32) for c in BACKGROUNDS[scene.background])
    middle = (dark + bright) / 2
    labels, alphas = _label(video, middle)
    names = list(COLOURS)
    asked = [names.index(s.colour) for s in scene.shapes]
    stray = (labels >= 0) & ~np.isin(labels, asked)
    tracks = []
    for shape, index in zip(scene.shapes, asked, strict=True):
        blob = _main_blob(labels == index)
        stray |= (labels == index) & ~blob
        others = np.isin(labels, [i for i in asked if i != index])
        tracks.append(_track(video, blob, others, alphas[index], (dark, bright), COLOURS[shape.colour]))
    # The rim where two colours mix can look like a third; it is 1 to 3 px wide, so an opening by 5x5 removes it.
    opened = _box(_box(stray, 2) == 25, 2) > 0
    return Analysis(scene, tuple(tracks), opened.mean((1, 2)), _scroll(video, labels, scene, dark, bright))


def _label(video: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Palette index of each pixel (-1 background, 6 bright but no palette colour), and how far it is on each line."""
    offset = video - middle
    squared = np.einsum("tyxc,tyxc->tyx", offset, offset)
    alphas, distances = [], []
    for colour in COLOURS.values():
        line = np.array(colour, np.float32) - middle
        length = float(line @ line)
        along = offset @ (line / length)
        near = np.clip(along, 0, 1.1)
        distances.append(squared - length * near * (2 * along - near))
        alphas.append(along)
    closest, alpha = np.argmin(distances, 0), np.array(alphas)
    close = np.min(distances, 0) < _TOLERANCE**2
    reached = np.take_along_axis(alpha, closest[None], 0)[0] > 0.5
    unknown = ~close & (video.max(-1) > 0.5)
    return np.where(close & reached, closest, np.where(unknown, len(COLOURS), -1)), alpha


def _box(mask: np.ndarray, reach: int) -> np.ndarray:
    """Sum over the (2 reach + 1)-wide square around each pixel; outside the frame is 0."""
    total = np.pad(mask.astype(np.int32), ((0, 0), (reach + 1, reach), (reach + 1, reach))).cumsum(1).cumsum(2)
    n = 2 * reach + 1
    return total[:, n:, n:] - total[:, :-n, n:] - total[:, n:, :-n] + total[:, :-n, :-n]


def _centroid(weight: np.ndarray) -> np.ndarray:
    total = np.maximum(weight.sum((1, 2)), 1e-6)
    return np.stack([(weight * _XX).sum((1, 2)) / total, (weight * _YY).sum((1, 2)) / total], -1)


def _main_blob(mask: np.ndarray) -> np.ndarray:
    """The part of a colour's mask around its densest place; it may be cut in two by a shape in front."""
    peak = _box(mask, 8).reshape(len(mask), -1).argmax(1)
    centre = np.stack([peak % SIZE, peak // SIZE], -1) + 0.5
    for _ in range(2):
        x, y = centre.T[:, :, None, None]
        blob: np.ndarray = mask & (np.hypot(_XX - x, _YY - y) < _REACH)
        centre = _centroid(blob)
    return blob


def _cover(kind: str, centre: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Coverage 0..1 of each pixel by an ideal shape: (frames, SIZE, SIZE)."""
    s = np.broadcast_to(np.asarray(scale, np.float32), len(centre))[:, None, None]
    x, y = centre.T.astype(np.float32)[:, :, None, None]
    return np.clip(0.5 - s * _distance(kind, (_XX - x) / s, (_YY - y) / s), 0, 1)


def _contrast(alpha: np.ndarray) -> np.ndarray:
    """Alpha with the background's texture (within 0.2 of 0) flattened to 0."""
    return np.clip((alpha - 0.2) / 0.8, 0, 1)


def _track(
    video: np.ndarray, blob: np.ndarray, others: np.ndarray, alpha: np.ndarray, tones: tuple, colour: tuple
) -> Track:
    frames = len(video)
    area = blob.sum((1, 2)) / AREA
    seen = area >= _SEEN
    around = _box(blob, 4) > 0
    cut = blob[:, 0].any(1) | blob[:, -1].any(1) | blob[:, :, 0].any(1) | blob[:, :, -1].any(1)
    clear = seen & ~cut & ~(around & others).any((1, 2))

    centre = _centroid(_contrast(alpha) * (_box(blob, 2) > 0))
    kind = np.zeros(frames, int)
    visible = np.where(clear, 1.0, np.nan)
    if clear.any():
        # Compared at the blob's own size: what kind it is must not depend on how large it is.
        scale = np.clip(np.sqrt(area[clear]), 0.5, 1.6)
        overlaps = []
        for name in SHAPES:
            ideal = _cover(name, centre[clear], scale) > 0.5
            overlaps.append((ideal & blob[clear]).sum((1, 2)) / np.maximum((ideal | blob[clear]).sum((1, 2)), 1))
        kind[clear] = np.argmax(overlaps, 0)
        centre[clear] = _unsnap(centre[clear], kind[clear])
    partly = seen & ~clear
    # What cannot be measured on a partly hidden shape is taken from the frames that show it whole.
    typical = float(np.clip(np.sqrt(np.mean(area[clear])), 0.8, 1.25)) if clear.any() else 1.0
    if partly.any():
        evidence = 2 * _contrast(alpha[partly]) * (_box(blob[partly], 1) > 0) - 1
        evidence[(_box(others[partly], 1) > 0) & ~blob[partly]] = 0  # could be behind it: neither for nor against
        centre[partly], kind[partly] = _fit(evidence, typical)
        for index, name in enumerate(SHAPES):
            if (rows := partly & (kind == index)).any():
                visible[rows] = ((_cover(name, centre[rows], typical) > 0.5) & ~others[rows]).sum((1, 2)) / AREA
    # Outlines are compared where no other shape's rim is near, and at the mean size: a frame's own size is a whole
    # number of pixels, which would put a square's ideal outline between pixels, where it looks sharper than it is.
    surroundings = around & (_box(others, 3) == 0)
    sharpness, error = np.full(frames, np.nan), np.full(frames, np.nan)
    for index, name in enumerate(SHAPES):
        rows = (np.nan_to_num(visible) > 0.7) & (kind == index)
        if rows.any():
            ideal = _slope(_cover(name, centre[rows], typical), surroundings[rows])
            # Where hardly any outline is in view (a shape behind another, or at the edge) a ratio would say nothing.
            enough = ideal > 0.25 * ideal.max()
            slope = _slope(alpha[rows], surroundings[rows])
            sharpness[rows] = np.divide(slope, ideal, out=np.full(slope.shape, np.nan), where=enough)
            error[rows] = _shape_error(video[rows], name, centre[rows], surroundings[rows], tones, colour)
    return Track(centre, area, _excuse_hidden(visible), kind, clear, sharpness, error)


def _unsnap(measured: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """The centres whose ideal shapes have these centroids once flattened: flattening pulls edges to whole pixels."""
    centre = measured.copy()
    for index, name in enumerate(SHAPES):
        rows = kind == index
        if rows.any():
            for _ in range(2):
                centre[rows] += measured[rows] - _centroid(_contrast(_cover(name, centre[rows])))
    return centre


def _fit(evidence: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Best centre (px) and kind for evidence in [-1, 1]; off the frame is 0, so a cut shape is placed as well."""
    pad, half = 16, SIZE // 2
    spectrum = np.fft.rfft2(np.pad(evidence, ((0, 0), (pad, pad), (pad, pad))))
    size = SIZE + 2 * pad
    rows = np.arange(len(evidence))
    peaks, places = [], []
    for kind in SHAPES:
        template = np.pad(_cover(kind, np.array([[half, half]]), scale), ((0, 0), (pad, pad), (pad, pad)))
        match = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(template)), (size, size))
        iy, ix = np.divmod(match.reshape(len(rows), -1).argmax(1), size)
        peak = match[rows, iy, ix]
        place = []
        for plus, minus, i in (
            (match[rows, iy, (ix + 1) % size], match[rows, iy, ix - 1], ix),
            (match[rows, (iy + 1) % size, ix], match[rows, iy - 1, ix], iy),
        ):
            bend = np.minimum(plus + minus - 2 * peak, -1e-6)
            shift = i + np.clip((minus - plus) / (2 * bend), -0.5, 0.5)
            place.append(np.where(i > size // 2, shift - size, shift) + half)
        peaks.append(peak)
        places.append(np.stack(place, -1))
    best = np.argmax(peaks, 0)
    return np.array(places)[best, rows], best


def _slope(alpha: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Mean gradient of the outline, weighted by the gradient: 1 / width, wherever and however long the outline is."""
    contrast = _contrast(alpha)
    squares = lengths = np.zeros(len(alpha))
    for axis in (1, 2):
        change = np.abs(np.diff(contrast, axis=axis)) * np.delete(around, -1, axis)
        squares, lengths = squares + (change**2).sum((1, 2)), lengths + change.sum((1, 2))
    return squares / np.maximum(lengths, 1e-6)


def _shape_error(
    video: np.ndarray, kind: str, centre: np.ndarray, surroundings: np.ndarray, tones: tuple, colour: tuple
) -> np.ndarray:
    """Mean squared error of each frame against the ideal shape, within 3 px of it.

    Beneath the rim lies the background in whichever mixture of its two tones fits the pixel best.
    """
    cover = _cover(kind, centre)
    near = surroundings & (_distance(kind, _XX - centre[:, 0, None, None], _YY - centre[:, 1, None, None]) < 3)
    dark, bright = tones
    rest = video - cover[..., None] * np.array(colour, np.float32) - (1 - cover[..., None]) * dark
    span = bright - dark
    light = np.clip((rest @ span) / (span @ span), 0, 1 - cover)
    squared = ((rest - light[..., None] * span) ** 2).mean(-1)
    return (squared * near).sum((1, 2)) / np.maximum(near.sum((1, 2)), 1)


def _excuse_hidden(visible: np.ndarray) -> np.ndarray:
    """Set a run of lost (NaN) frames to 0 visible if the shape was behind another when it went or came back."""
    visible = visible.copy()
    lost = np.isnan(visible)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        beside = [visible[i] for i in (start - 1, stop) if 0 <= i < len(visible)]
        if stop - start <= _LONGEST_HIDING and any(v < 0.85 for v in beside):
            visible[start:stop] = 0.0
    return visible


def _scroll(
    video: np.ndarray, labels: np.ndarray, scene: Scene, dark: np.ndarray, bright: np.ndarray
) -> tuple[tuple[np.ndarray, float], ...]:
    """Measured speed of each of the texture's waves (px/frame, length frames - lag), with the true one."""
    waves = {"grid": ((1.0, 0.0), (0.0, 1.0)), "stripes": ((0.75, 0.75),), "checkers": ((1.0, 1.0), (1.0, -1.0))}
    free = _box(labels >= 0, 2) == 0
    span = bright - dark
    light = np.clip((video - dark) @ span / (span @ span), 0, 1)
    mean = (light * free).sum((1, 2)) / np.maximum(free.sum((1, 2)), 1)
    light = (light - mean[:, None, None]) * free
    lag = min(LAG, len(video) - 1)
    found = []
    for kx, ky in waves[scene.texture]:
        k = 2 * math.pi / 16
        wave = (light * np.exp(-1j * k * (kx * _XX + ky * _YY))).sum((1, 2))
        length = k * math.hypot(kx, ky)
        vx, vy = CAMERAS[scene.camera]
        true = k * (kx * vx + ky * vy) / length
        found.append((np.angle(wave[lag:] * np.conj(wave[:-lag])) / (lag * length), true))
    return tuple(found)
