"""The tokens of a sequence and how temporal RoPE turns a head's channels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from .frame_times import Frames, FrameTimes, times

__all__ = ["Further", "RopeLayout", "TokenGrid"]


@dataclass(frozen=True)
class RopeLayout:
    """How temporal RoPE turns a head's channels.

    Channel pair p of head h is (first[p], second[p]); one latent frame turns it by omega[h][p] radians:
    (x1, x2) -> (x1 cos - x2 sin, x1 sin + x2 cos).

    Args:
        head_dim: channels of a head.
        first: the first channel of each temporal pair.
        second: the second channel of each temporal pair, as many as `first`.
        omega: radians per latent frame, one row a head with one value a pair; a single row where all heads agree.
        residual: largest deviation of a measured rotation from this description, as a complex modulus. It takes no part
            in comparisons.
        whole_turns: whether omega is the rate itself. False where frames only show it up to whole turns, which is
            enough for any turn by a whole number of frames and no other.
    """

    head_dim: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    omega: tuple[tuple[float, ...], ...]
    residual: float = field(default=0.0, compare=False)
    whole_turns: bool = True

    @property
    def pairing(self) -> str:
        """Name of the way in which channels form pairs: "interleaved", "half" or "custom"."""
        steps = {b - a for a, b in zip(self.first, self.second, strict=True)}
        if steps == {1}:
            return "interleaved"
        return "half" if len(steps) == 1 else "custom"

    def of_heads(self, group: slice) -> RopeLayout:
        """Give the layout of some of the heads alone.

        Args:
            group: which heads; they are heads 0, 1, ... of the result.
        """
        return replace(self, omega=self.omega[group]) if len(self.omega) > 1 else self


@dataclass(frozen=True)
class Further:
    """A whole frame of tokens beside the clip's own: a keyframe, a frame of a reference.

    Args:
        time: when it is, in latent frames of the clip, whose first frame is at 0; a fraction between two of them.
        height: rows of its tokens.
        width: columns of its tokens.

    Raises:
        ValueError: the time is no multiple of 1/64, which keeps sums and differences of times exact.
    """

    time: float
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.time * 64 != round(self.time * 64):
            raise ValueError(f"a further frame's time: expected a multiple of 1/64, found {self.time!r}")

    @property
    def tokens(self) -> int:
        """Tokens of the frame."""
        return self.height * self.width


@dataclass(frozen=True)
class TokenGrid:
    """The tokens of a sequence as spans: text, further frames, the clip, further frames, text.

    The clip is in raster order (frames, rows, columns) and its frames are at 0, 1, 2, ..., or at rising times of the
    same mean step. Further frames have times of their own, in any order, and may repeat the clip's. A frame of either
    kind is a place: the lowerings number places in the order of the sequence, and strategies are asked about the times
    of places (`frame_times`). Where a model has frames among words or sound, the grid has all frames next to the clip.

    Args:
        frames: latent frames of the clip.
        height: rows of tokens in one latent frame.
        width: columns of tokens in one latent frame.
        text_first: text tokens before the video.
        text_last: text tokens after the video.
        before: further frames between the text and the clip.
        after: further frames between the clip and the text.
        turned: how many of the text tokens RoPE turns: words or sound, which keep their own positions among
            themselves. How they meet far frames is what `Strategy.text_scale` and `text_last` say of all text.
        uneven: times of the clip's frames where they are not 0, 1, 2, ..., rising from 0 to `frames` - 1, each a
            multiple of 1/64; empty where they are.
    """

    frames: int
    height: int
    width: int
    text_first: int = 0
    text_last: int = 0
    before: tuple[Further, ...] = ()
    after: tuple[Further, ...] = ()
    turned: int = 0
    uneven: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in one latent frame of the clip."""
        return self.height * self.width

    @property
    def clip(self) -> int:
        """Tokens of the clip itself."""
        return self.frames * self.tokens

    @property
    def video(self) -> int:
        """Tokens of all frames, the clip's and the further ones."""
        return self.clip + sum(frame.tokens for frame in self.further)

    @property
    def text(self) -> int:
        """Text tokens of the sequence, before and after the video together."""
        return self.text_first + self.text_last

    @property
    def sequence(self) -> int:
        """All tokens of the sequence, text and video."""
        return self.video + self.text

    @property
    def further(self) -> tuple[Further, ...]:
        """The frames that are not the clip's, in the order of the sequence."""
        return self.before + self.after

    @property
    def places(self) -> int:
        """Number of frames of either kind."""
        return self.frames + len(self.further)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each place."""
        of_clip = (self.tokens,) * self.frames
        return (*(frame.tokens for frame in self.before), *of_clip, *(frame.tokens for frame in self.after))

    @property
    def of_one_size(self) -> bool:
        """Whether every further frame has the rows and columns of the clip's."""
        return all((frame.height, frame.width) == (self.height, self.width) for frame in self.further)

    @property
    def frame_times(self) -> Frames:
        """When the places are, as strategies are asked: a number where they are a clip's even frames alone."""
        if not self.further and not self.uneven:
            return self.frames
        early, late = (tuple(frame.time for frame in some) for some in (self.before, self.after))
        clip = self.uneven or tuple(map(float, range(self.frames)))
        return FrameTimes((*early, *clip, *late), len(self.before), self.frames)

    @property
    def times(self) -> np.ndarray:
        """When each place is, float64 (places,)."""
        return times(self.frame_times).astype(np.float64)

    def spans(self) -> list[tuple[str, int, int]]:
        """Give the spans of the sequence in words, each with its first token and the one after its last."""
        found, at = [], 0
        clip = f"clip: {self.frames} frames of {self.height}x{self.width} at times 0 to {self.frames - 1}"
        clip += ", unevenly" if self.uneven else ""
        text = f"text or sound, {self.turned} tokens of it turned" if self.turned else "text"
        pieces = [(text, self.text_first), *_runs(self.before), (clip, self.clip), *_runs(self.after)]
        for words, tokens in [*pieces, (text, self.text_last)]:
            if tokens:
                found.append((words, at, at + tokens))
            at += tokens
        return found


def _runs(further: tuple[Further, ...]) -> list[tuple[str, int]]:
    """Further frames of one size in words, with their tokens."""
    found = []
    for (height, width), run in groupby(further, lambda frame: (frame.height, frame.width)):
        some = list(run)
        when = ", ".join(f"{frame.time:g}" for frame in some[:6]) + (", ..." if len(some) > 6 else "")
        words = f"{len(some)} further frame{'s' if len(some) > 1 else ''} of {height}x{width} at time"
        found.append((f"{words}{'s' if len(some) > 1 else ''} {when}", len(some) * height * width))
    return found
