"""Position maps: where the key of latent frame j stands for a query of latent frame i.

A map turns the relative position d = i - j into a remapped relative position P. Everything downstream needs only the
table of P over all pairs of frames (`PositionMap.table`) and, for lowerings that want one rotation for many pairs, its
partition into separable bands (`PositionMap.bands`), or into tiers: bands for which the keys stand at the same places
(`tiers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from freeloc_fx.errors import StrategyError

from .checks import is_whole
from .frame_times import Frames, times

__all__ = ["VRPR", "Band", "Identity", "PositionMap", "distances", "quantised", "tiers", "two_sided"]


@dataclass(frozen=True)
class Band:
    """Pairs of frames on which a map is a difference: P[i, j] = query[i] - key[j] wherever pairs[i, j].

    Args:
        query: remapped position of each query frame, float64 (frames,), in latent frames.
        key: remapped position of each key frame, float64 (frames,), in latent frames.
        pairs: on which pairs it holds, bool (frames, frames), row = query frame, column = key frame.
    """

    query: np.ndarray
    key: np.ndarray
    pairs: np.ndarray


@runtime_checkable
class PositionMap(Protocol):
    """What a strategy says about positions. Implementations are immutable and hashable.

    A map is asked about a number of frames at 0, 1, 2, ..., or about frames at times of their own (`FrameTimes`), which
    may be fractions; `distances` takes both.
    """

    def table(self, frames: Frames) -> np.ndarray:
        """Give the remapped distance P of every pair of frames.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.

        Returns:
            float64 (frames, frames), in latent frames, row = query frame i, column = key frame j.
        """
        ...

    def bands(self, frames: Frames) -> Iterable[Band]:
        """Give the separable bands that partition all pairs of frames.

        Long clips have hundreds of bands, each with a table of all pairs: made one at a time, they need not be held
        together.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Give the settings as JSON-serialisable data, with the map's name under "map"."""
        ...


def distances(frames: Frames) -> np.ndarray:
    """Give the distance d = i - j of every pair of frames.

    Args:
        frames: latent frames of the clip, or the times of frames.

    Returns:
        (frames, frames), in latent frames, row = query frame i, column = key frame j: int64, or float64 where some
        frame is between two whole ones.
    """
    index = times(frames)
    return index[:, None] - index[None, :]


def two_sided(
    query: np.ndarray, key: np.ndarray, offset: float, pairs: np.ndarray, d: np.ndarray | None = None
) -> list[Band]:
    """Give the bands for P[i, j] = query[i] - key[j] + sign(d) * offset on `pairs`.

    Args:
        query: position of each query frame, (frames,), in latent frames.
        key: position of each key frame, (frames,), in latent frames.
        offset: what is added to the distance, in latent frames.
        pairs: the pairs on which it holds, bool (frames, frames), without those at distance 0 unless the offset is 0.
        d: distance of every pair of frames, as `distances` gives it; None for that of a clip's frames.

    Returns:
        One band for the past and one for the future, or one for both where no query frame has pairs on both sides.
        Empty bands are left out.
    """
    d = distances(len(query)) if d is None else d
    past, future = pairs & (d >= 0), pairs & (d < 0)
    query, key = query.astype(np.float64), key.astype(np.float64)
    if offset == 0 or not (past.any(1) & future.any(1)).any():
        bands = [Band(query + np.where(past.any(1), offset, -offset), key, pairs)]
    else:
        bands = [Band(query + offset, key, past), Band(query - offset, key, future)]
    return [band for band in bands if band.pairs.any()]


def quantised(table: np.ndarray, key: np.ndarray, pairs: np.ndarray) -> tuple[Band, ...]:
    """Give the bands of some pairs with the keys at the same places in all of them.

    Exact quantisation needs no more than two of them on either side. With i = aG + r and j = bG + s,

        past:    floor((i-j)/G) + c = (a + c) - b where s <= r, (a + c - 1) - b where s > r
        future: -floor((j-i)/G) - c = (a - c) - b where s >= r, (a - c + 1) - b where s < r

    so that keys at b = floor(j/G) serve every pair: which of four places the query takes is a matter of (r, s).

    Args:
        table: remapped distance P of every pair of frames, float64 (frames, frames).
        key: where each key frame is to stand, (frames,), in latent frames.
        pairs: the pairs on which it is to hold, bool (frames, frames).

    Returns:
        One band for each distance between query[i] and key[i] that occurs, in rising order.
    """
    key = np.asarray(key, np.float64)
    apart = table + key[None, :] - key[:, None]
    return tuple(Band(key + offset, key, pairs & (apart == offset)) for offset in np.unique(apart[pairs]).tolist())


def tiers(positions: PositionMap, frames: Frames) -> list[tuple[Band, ...]]:
    """Give the bands of a map, those together for which the keys stand at the same places.

    Args:
        positions: the map. One with a method `tiers` of its own says itself which bands go together.
        frames: latent frames of the clip, at least 1.

    Returns:
        Tuples of bands whose `key` is equal and whose `query` differs, none of them empty. All bands together partition
        all pairs of frames.
    """
    own = getattr(positions, "tiers", None)
    bands = positions.bands(frames) if own is None else (band for tier in own(frames) for band in tier)
    joined: dict[bytes, dict[bytes, Band]] = {}
    for band in bands:
        query, key = (np.asarray(places, np.float64) for places in (band.query, band.key))
        same = joined.setdefault(key.tobytes(), {})
        before = same.get(query.tobytes())
        pairs = band.pairs if before is None else before.pairs | band.pairs
        same[query.tobytes()] = Band(query, key, pairs)
    return [tuple(same.values()) for same in joined.values()]


@dataclass(frozen=True)
class Identity:
    """P(d) = d: the model's own positions."""

    def table(self, frames: Frames) -> np.ndarray:
        return distances(frames).astype(np.float64)

    def bands(self, frames: Frames) -> list[Band]:
        index = times(frames).astype(np.float64)
        return [Band(index, index, np.ones((len(index), len(index)), bool))]

    def describe(self) -> dict[str, Any]:
        return {"map": "identity"}


@dataclass(frozen=True)
class VRPR:
    """Video-based relative position re-encoding (FreeLOC, CVPR 2026, section "VRPR").

    For d >= 0, and odd in d:

        d <= W1:       P = d
        W1 < d <= W2:  P = floor(d/G1) + W1 - floor(W1/G1)
        d > W2:        P = floor(d/G2) + W1 - floor(W1/G1) + floor(W2/G1) - floor(W2/G2)

    The offsets make P continuous at both boundaries for any G1, G2 (the official code's are continuous for G1 = 2
    only). `quantise="pair"` is that formula on i - j. `quantise="separable"` replaces floor((i-j)/G) by floor(i/G) -
    floor(j/G) as the official code does; it differs by at most 1 and needs fewer rotations.

    Args:
        w1: last distance of the near tier, in latent frames, at least 0.
        w2: last distance of the middle tier, in latent frames, at least w1.
        g1: group size of the middle tier, in latent frames, at least 1.
        g2: group size of the far tier, in latent frames, at least g1.
        quantise: "pair" or "separable", see above.

    Raises:
        StrategyError: those orders do not hold, or a field is of another kind.
    """

    w1: int
    w2: int
    g1: int
    g2: int
    quantise: Literal["pair", "separable"] = "pair"

    def __post_init__(self) -> None:
        for name in ("w1", "w2", "g1", "g2"):
            value = getattr(self, name)
            if not is_whole(value, most=2**53):  # exact in float64, and sums of them are in int64
                what = "an integer of at most 2**53" if is_whole(value) else "an integer"
                raise StrategyError(f"vrpr.{name}: expected {what}, found {value!r}")
        if not 0 <= self.w1 <= self.w2:
            raise StrategyError(f"vrpr: expected 0 <= w1 <= w2, found w1={self.w1}, w2={self.w2}")
        if not 1 <= self.g1 <= self.g2:
            raise StrategyError(f"vrpr: expected 1 <= g1 <= g2, found g1={self.g1}, g2={self.g2}")
        if self.quantise not in ("pair", "separable"):
            raise StrategyError(f"vrpr.quantise: expected 'pair' or 'separable', found {self.quantise!r}")

    @property
    def offsets(self) -> tuple[int, int]:
        """What the middle and the far tier add to the quantised distance, in latent frames."""
        middle = self.w1 - self.w1 // self.g1
        return middle, middle + self.w2 // self.g1 - self.w2 // self.g2

    def of_distance(self, d: np.ndarray | float) -> np.ndarray:
        """Apply the pair formula, whatever `quantise` says.

        Args:
            d: distances in latent frames, of any shape.

        Returns:
            The remapped distances P, of the same shape: int64, or float64 of fractional distances, which stay
            fractions up to w1 and become whole numbers beyond.
        """
        d = np.asarray(d)
        d = d.astype(np.float64 if d.dtype.kind == "f" else np.int64)
        a = np.abs(d)
        middle, far = self.offsets
        p = np.where(a <= self.w1, a, np.where(a <= self.w2, a // self.g1 + middle, a // self.g2 + far))
        return np.sign(d) * p

    def reach(self, frames: Frames) -> int:
        """Give the largest |P| of a clip, in latent frames.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.
        """
        return int(np.abs(self.table(frames)).max())

    def table(self, frames: Frames) -> np.ndarray:
        d = distances(frames)
        if self.quantise == "pair":
            return self.of_distance(d).astype(np.float64)
        table = np.zeros(d.shape)
        for band in self.bands(frames):
            table = np.where(band.pairs, band.query[:, None] - band.key[None, :], table)
        return table

    def bands(self, frames: Frames) -> Iterator[Band]:
        return (band for band in self._bands(frames) if band.pairs.any())

    def _bands(self, frames: Frames) -> Iterator[Band]:
        """Give the bands of all tiers, empty ones among them."""
        index = times(frames)
        d: Any = distances(frames).astype(np.int32 if index.dtype.kind == "i" else np.float64)
        far = np.abs(d)
        yield Band(index.astype(np.float64), index.astype(np.float64), far <= self.w1)
        tiers = (
            ((far > self.w1) & (far <= self.w2), self.g1, self.offsets[0]),
            (far > self.w2, self.g2, self.offsets[1]),
        )
        for tier, group, offset in tiers:
            for sign in (1, -1):
                pairs = tier & (d * sign > 0)
                # Of whole times a group of one quantises nothing; a fraction it does, pair by pair.
                if self.quantise == "separable" or (group == 1 and index.dtype.kind == "i"):
                    position = (index // group).astype(np.float64)
                    yield Band(position + sign * offset, position, pairs)
                    continue
                # For i = a*G + r: floor((i-j)/G) = a - ceil((j-r)/G), so the pair formula is a difference within one
                # residue class r of the query frame; for the future, -floor((j-i)/G) = a - floor((j-r)/G).
                # A residue is a fraction for a frame between two whole ones.
                for r in np.unique(index % group):
                    rows = pairs & (index % group == r)[:, None]
                    key = -((r - index) // group) if sign > 0 else (index - r) // group
                    yield Band((index // group + sign * offset).astype(np.float64), key.astype(np.float64), rows)

    def tiers(self, frames: Frames) -> list[tuple[Band, ...]]:
        """Give near, middle and far tier: in each the keys stand at the same places for every query.

        Args:
            frames: latent frames of the clip, at least 1, or the times of frames.
        """
        index, far, table = times(frames), np.abs(distances(frames)), self.table(frames)
        parts = (
            (far <= self.w1, index),
            ((far > self.w1) & (far <= self.w2), index // self.g1),
            (far > self.w2, index // self.g2),
        )
        return [bands for pairs, key in parts if (bands := quantised(table, key, pairs))]

    def describe(self) -> dict[str, Any]:
        return {"map": "vrpr", **asdict(self)}
