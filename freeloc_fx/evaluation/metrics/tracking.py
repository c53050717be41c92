"""Find a prompt's shapes in every frame of a tiny-wan clip: what `ground_truth` scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from freeloc_fx.generation.tiny_wan.scenes import (
    AREA,
    CAMERAS,
    SHAPES,
    SIZE,
    SPEEDS,
    Scene,
    Shape,
    parse_prompt,
)
from freeloc_fx.generation.tiny_wan.scenes import signed_distance as _distance

from .blobs import SEEN, XX, YY, box, centroid, edges, label, main_blob, opened, read_size
from .reading import TRAINED, expectation

__all__ = ["LAG", "Analysis", "Track", "analyse"]


_LONGEST_HIDING = 48  # frames: a shape that stays away longer than this was lost, not hidden


_LONGEST_ABSENCE = 96.0  # px of way: a shape that wandered out of the frame and went farther than this was lost


_COVERED = 0.5  # share of a lost shape that would be open to view, below which it may be hidden


_CORE = 6  # pixels inside a shape that its colour can be told from


LAG = 4  # frames between the two ends of a displacement: 1.6 px at the slow speed, above the noise of a centroid


@dataclass(frozen=True)
class Track:
    """One shape over time; the arrays have one value a video frame.

    Args:
        centre: float (frames, 2), x and y in px.
        area: measured area as a share of `size`.
        visible: expected visible share of `size`, NaN where the shape is lost.
        kind: index into SHAPES of the kind that fits best.
        clear: whether the shape is seen whole, with no other near.
        sharpness: slope of the outline beside an ideal one's, NaN where it cannot be measured.
        error: mean squared error beside the ideal shape, NaN where it cannot be measured.
        hidden: whether it may be behind another or outside the frame, by where it was seen before and after.
        second: area of what has its colour elsewhere, as a share of `size`.
        colour: float (frames, 3), mean RGB of its inside, NaN where too little is seen of it.
        size: area in px that the prompt tells, or that it has in the first trained length.
        told: index into SHAPES of the kind that the prompt tells, or that it has in the first trained length; -1 where
            it is not seen there.
    """

    centre: np.ndarray
    area: np.ndarray
    visible: np.ndarray
    kind: np.ndarray
    clear: np.ndarray
    sharpness: np.ndarray
    error: np.ndarray
    hidden: np.ndarray
    second: np.ndarray
    colour: np.ndarray
    size: float
    told: int


@dataclass(frozen=True)
class Analysis:
    """What was found in a clip.

    Args:
        scene: what the prompt asks for.
        tracks: one for each of the scene's shapes.
        foreign: float (frames,), share of pixels in shapes that were not asked for.
        strangers: float (colours, frames), the same in px, for each palette colour that no shape has.
        scroll: measured speed of each wave of the texture, px per frame (frames - lag,), with the true one.
    """

    scene: Scene
    tracks: tuple[Track, ...]
    foreign: np.ndarray
    strangers: np.ndarray
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

    expected = expectation(video, scene)
    dark, bright = (np.array(c, np.float32) for c in expected.tones)
    middle = (dark + bright) / 2
    palette = [*expected.colours, *expected.foreign]
    labels, alphas = label(video, middle, palette)
    count = len(scene.shapes)
    leaves = scene.verb == "wander"
    longest = round(_LONGEST_ABSENCE / SPEEDS[scene.speed]) if leaves else _LONGEST_HIDING
    blobs = [main_blob(labels == index) for index in range(count)]
    stray = labels >= count

    def track(index: int, size: float | None) -> Track:
        """Of the thing that has this colour, at the size that is told."""
        mine, blob = labels == index, blobs[index]
        others = (labels >= 0) & (labels < count) & ~mine
        area = read_size(blob[:TRAINED], others[:TRAINED]) if size is None else size
        return _track(
            video, blob, others, alphas[index], (dark, bright), palette[index], area, leaves, longest, mine & ~blob
        )

    for index, blob in enumerate(blobs):
        stray |= (labels == index) & ~blob
    order = tuple(range(count))
    if any("colour" in shape.open for shape in scene.shapes):
        order = _match(scene, [track(index, None) for index in range(count)])
    tracks = []
    for shape, index in zip(scene.shapes, order, strict=True):
        found = track(index, None if "size" in shape.open else AREA * shape.scale**2)
        told = _read_kind(found) if "kind" in shape.open else SHAPES.index(shape.kind)
        tracks.append(replace(found, told=told))
    # The rim where two colours mix can look like a third; it is 1 to 3 px wide, so an opening by 5x5 removes it.
    strays = opened(stray)
    strangers = [(strays & (labels == count + n)).sum((1, 2)) for n in range(len(expected.foreign))]
    scroll = _scroll(video, labels, scene, dark, bright)
    by_colour = np.array(strangers, float).reshape(-1, len(video))
    return Analysis(scene, tuple(tracks), strays.mean((1, 2)), by_colour, scroll)


def _kinds(track: Track) -> np.ndarray:
    """How often it shows each of SHAPES in the first trained length."""
    visible = np.nan_to_num(track.visible[:TRAINED])
    seen = track.clear[:TRAINED] if track.clear[:TRAINED].any() else visible > 0.7
    return np.bincount(track.kind[:TRAINED][seen], minlength=len(SHAPES))


def _read_kind(track: Track) -> int:
    """The kind that it has most often in the first trained length; -1 where it is not seen there."""
    counts = _kinds(track)
    return int(counts.argmax()) if counts.any() else -1


def _match(scene: Scene, tracks: Sequence[Track]) -> tuple[int, ...]:
    """For each shape of the prompt the thing that it is: where a colour is open, kind and size tell things apart."""

    def cost(shape: Shape, track: Track) -> float:
        counts = _kinds(track)
        total = 0.0
        if "kind" not in shape.open and counts.any():
            total += 1 - counts[SHAPES.index(shape.kind)] / counts.sum()
        if "size" not in shape.open:
            total += abs(math.log(max(track.size, 1.0) / (AREA * shape.scale**2)))
        return total

    free = [i for i, shape in enumerate(scene.shapes) if "colour" in shape.open]
    best = min(
        itertools.permutations(free),
        key=lambda order: sum(cost(scene.shapes[i], tracks[j]) for i, j in zip(free, order, strict=True)),
    )
    chosen = dict(zip(free, best, strict=True))
    return tuple(chosen.get(i, i) for i in range(len(scene.shapes)))


def _cover(kind: str, centre: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Coverage 0..1 of each pixel by an ideal shape: (frames, SIZE, SIZE)."""
    s = np.broadcast_to(np.asarray(scale, np.float32), len(centre))[:, None, None]
    x, y = centre.T.astype(np.float32)[:, :, None, None]
    return np.clip(0.5 - s * _distance(kind, (XX - x) / s, (YY - y) / s), 0, 1)


def _contrast(alpha: np.ndarray) -> np.ndarray:
    """Alpha with the background's texture (within 0.2 of 0) flattened to 0."""
    return np.clip((alpha - 0.2) / 0.8, 0, 1)


def _track(
    video: np.ndarray, blob: np.ndarray, others: np.ndarray, alpha: np.ndarray, tones: tuple, colour: tuple,
    size: float, leaves: bool, longest: int, elsewhere: np.ndarray,
) -> Track:  # fmt: skip
    """Of one shape: `size` is its expected area in px, `leaves` whether it may leave the frame, `longest` for how many
    frames it may stay away, `elsewhere` what has its colour outside of its blob."""
    frames = len(video)
    usual = math.sqrt(size / AREA)
    area = blob.sum((1, 2)) / size
    seen = area >= SEEN
    around = box(blob, 4) > 0
    clear = seen & ~edges(blob) & ~(around & others).any((1, 2))

    centre = centroid(_contrast(alpha) * (box(blob, 2) > 0))
    kind = np.zeros(frames, int)
    visible = np.where(clear, 1.0, np.nan)
    if clear.any():
        # Compared at the blob's own size: what kind it is must not depend on how large it is.
        scale = usual * np.clip(np.sqrt(area[clear]), 0.5, 1.6)
        overlaps = []
        for name in SHAPES:
            ideal = _cover(name, centre[clear], scale) > 0.5
            overlaps.append((ideal & blob[clear]).sum((1, 2)) / np.maximum((ideal | blob[clear]).sum((1, 2)), 1))
        kind[clear] = np.argmax(overlaps, 0)
        centre[clear] = _unsnap(centre[clear], kind[clear], usual)
    partly = seen & ~clear
    # What cannot be measured on a partly hidden shape is taken from the frames that show it whole.
    typical = usual * float(np.clip(np.sqrt(np.mean(area[clear])), 0.8, 1.25)) if clear.any() else usual
    if partly.any():
        evidence = 2 * _contrast(alpha[partly]) * (box(blob[partly], 1) > 0) - 1
        evidence[(box(others[partly], 1) > 0) & ~blob[partly]] = 0  # could be behind it: neither for nor against
        centre[partly], kind[partly] = _fit(evidence, typical)
        for index, name in enumerate(SHAPES):
            if (rows := partly & (kind == index)).any():
                visible[rows] = ((_cover(name, centre[rows], typical) > 0.5) & ~others[rows]).sum((1, 2)) / size
    # Outlines are compared where no other shape's rim is near, and at the mean size: a frame's own size is a whole
    # number of pixels, which would put a square's ideal outline between pixels, where it looks sharper than it is.
    surroundings = around & (box(others, 3) == 0)
    sharpness, error = np.full(frames, np.nan), np.full(frames, np.nan)
    for index, name in enumerate(SHAPES):
        rows = (np.nan_to_num(visible) > 0.7) & (kind == index)
        if rows.any():
            ideal = _slope(_cover(name, centre[rows], typical), surroundings[rows])
            # Where hardly any outline is in view (a shape behind another, or at the edge) a ratio would say nothing.
            enough = ideal > 0.25 * ideal.max()
            slope = _slope(alpha[rows], surroundings[rows])
            sharpness[rows] = np.divide(slope, ideal, out=np.full(slope.shape, np.nan), where=enough)
            error[rows] = _shape_error(video[rows], name, centre[rows], surroundings[rows], tones, colour, usual)
    inside = blob & (box(blob, 1) == 9)
    enough = inside.sum((1, 2))
    mean = np.einsum("tyxc,tyx->tc", video, inside.astype(np.float32)) / np.maximum(enough, 1)[:, None]
    mean[enough < _CORE] = np.nan
    second = opened(elsewhere).sum((1, 2)) / size
    hidden = _may_be_hidden(visible, centre, others, edges(blob) & leaves, usual, longest)
    excused = _excuse_hidden(visible, longest)
    return Track(centre, area, excused, kind, clear, sharpness, error, hidden, second, mean, size, 0)


def _unsnap(measured: np.ndarray, kind: np.ndarray, scale: float) -> np.ndarray:
    """The centres whose ideal shapes have these centroids once flattened: flattening pulls edges to whole pixels."""
    centre = measured.copy()
    for index, name in enumerate(SHAPES):
        rows = kind == index
        if rows.any():
            for _ in range(2):
                centre[rows] += measured[rows] - centroid(_contrast(_cover(name, centre[rows], scale)))
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
    video: np.ndarray, kind: str, centre: np.ndarray, surroundings: np.ndarray, tones: tuple, colour: tuple,
    scale: float,
) -> np.ndarray:  # fmt: skip
    """Mean squared error of each frame against the ideal shape, within 3 px of it.

    Beneath the rim lies the background in whichever mixture of its two tones fits the pixel best.
    """
    cover = _cover(kind, centre, scale)
    x, y = (part[:, None, None] / scale for part in centre.T)
    near = surroundings & (_distance(kind, XX / scale - x, YY / scale - y) * scale < 3)
    dark, bright = tones
    rest = video - cover[..., None] * np.array(colour, np.float32) - (1 - cover[..., None]) * dark
    span = bright - dark
    light = np.clip((rest @ span) / (span @ span), 0, 1 - cover)
    squared = ((rest - light[..., None] * span) ** 2).mean(-1)
    return (squared * near).sum((1, 2)) / np.maximum(near.sum((1, 2)), 1)


def _excuse_hidden(visible: np.ndarray, longest: int) -> np.ndarray:
    """Set a run of lost (NaN) frames to 0 visible if the shape was behind another when it went or came back."""
    visible = visible.copy()
    lost = np.isnan(visible)
    turns = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(int)))
    for start, stop in turns.reshape(-1, 2):
        beside = [visible[i] for i in (start - 1, stop) if 0 <= i < len(visible)]
        if stop - start <= longest and any(v < 0.85 for v in beside):
            visible[start:stop] = 0.0
    return visible


def _may_be_hidden(
    visible: np.ndarray, centre: np.ndarray, others: np.ndarray, cut: np.ndarray, scale: float, longest: int
) -> np.ndarray:
    """Whether a lost shape, on a straight way from where it was last seen to where it is seen again, would be covered
    for the most part by others or outside the frame. One that was near another when it went is not yet behind it.

    cut: where the frame cuts it; a wanderer that was cut when it went and when it came back was outside meanwhile, on
    a way that the walls bend. All False for shapes that bounce.
    """
    hidden = np.zeros(len(visible), bool)
    lost = np.isnan(visible)
    seen = np.flatnonzero(np.nan_to_num(visible) > 0.2)
    if not lost.any() or not len(seen):
        return hidden
    rows = np.flatnonzero(lost)
    # A hint at where it goes matters more than the shape: a disc of its area, others widened by what a bounce bends.
    way = np.stack([np.interp(rows, seen, centre[seen, axis]) for axis in (0, 1)], -1)
    disc = _cover("circle", way, scale)
    open_to_view = (disc * (box(others[rows], 3) == 0)).sum((1, 2)) / (AREA * scale**2)
    hidden[rows] = open_to_view < _COVERED
    turns = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(int)))
    for start, stop in turns.reshape(-1, 2):
        ends = [i for i in (start - 1, stop) if 0 <= i < len(visible)]
        if any(cut[i] for i in ends) and all(cut[i] or visible[i] < 0.85 for i in ends):
            hidden[start:stop] = True
        hidden[start:stop] &= stop - start <= longest
    return hidden


def _scroll(
    video: np.ndarray, labels: np.ndarray, scene: Scene, dark: np.ndarray, bright: np.ndarray
) -> tuple[tuple[np.ndarray, float], ...]:
    """Measured speed of each of the texture's waves (px/frame, length frames - lag), with the true one."""
    if {"texture", "camera"} & scene.open:
        return ()
    waves = {"grid": ((1.0, 0.0), (0.0, 1.0)), "stripes": ((0.75, 0.75),), "checkers": ((1.0, 1.0), (1.0, -1.0))}
    free = box(labels >= 0, 2) == 0
    span = bright - dark
    light = np.clip((video - dark) @ span / (span @ span), 0, 1)
    mean = (light * free).sum((1, 2)) / np.maximum(free.sum((1, 2)), 1)
    light = (light - mean[:, None, None]) * free
    lag = min(LAG, len(video) - 1)
    found = []
    for kx, ky in waves[scene.texture]:
        k = 2 * math.pi / 16
        wave = (light * np.exp(-1j * k * (kx * XX + ky * YY))).sum((1, 2))
        length = k * math.hypot(kx, ky)
        vx, vy = CAMERAS[scene.camera]
        true = k * (kx * vx + ky * vy) / length
        found.append((np.angle(wave[lag:] * np.conj(wave[:-lag])) / (lag * length), true))
    return tuple(found)
