"""Texts over time: which text each latent frame attends to, and by how much.

A timeline is texts with the video frame at which each begins, its mark. The weight of a text rises linearly over
`blend` video frames from its mark on, and that of the text before falls by as much, so that the weights of a frame sum
to one whatever the marks are::

    marks 0 and 9, blend 8, a VAE that makes one latent frame of 4 (blend 0 gives the step in brackets)

    latent frame       0     1     2     3     4     5
    its video frames   0    1-4   5-8  9-12 13-16 17-20
    first text         1     1     1   0.75  0.25   0      [1 1 1 0 0 0]
    second text        0     0     0   0.25  0.75   1      [0 0 0 1 1 1]

In a softmax over the keys of all texts, the score of each key of text s gets log of the weight of s as a bias, so that
a text of weight 0 is not seen, and the same text twice is that text once. Where text is queries, too, the same table
decides: a text sees itself and its frames.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from freeloc_fx.errors import TimelineError

from .checks import is_number, is_whole

__all__ = [
    "TextForm",
    "TextSchedule",
    "centres",
    "check_clip_alone",
    "check_marks",
    "pair_channels",
    "pair_form",
    "span_weights",
    "video_frames",
]


_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*s")


def video_frames(time: int | str, fps: float | None = None) -> int:
    """Read a time, or a length of time.

    Args:
        time: frames of the video, as an integer or in digits; or seconds, as in "10s" and "2.5s".
        fps: video frames per second, above 0, for seconds; None where there are none.

    Returns:
        Video frames, at least 0; seconds are rounded to the nearest.

    Raises:
        TimelineError: it is none of these, or it is in seconds and there is no `fps`.
    """
    if is_whole(time, 0):
        return time
    if isinstance(time, str):
        if re.fullmatch(r"[0-9]+", time.strip()):
            return int(time)
        if found := _SECONDS.fullmatch(time.strip()):
            if fps is None:
                raise TimelineError(f"timeline: {time!r} is in seconds; expected fps, the video's frames per second")
            if not is_number(fps) or fps <= 0:
                raise TimelineError(f"timeline fps: expected a number above 0, found {fps!r}")
            return round(float(found[1]) * fps)
    raise TimelineError(f"timeline: expected frames as in 160, or seconds as in '10s', found {time!r}")


def check_marks(marks: Sequence[int], frames: int) -> None:
    """Refuse marks that do not rise from 0 within the clip.

    Args:
        marks: the video frame at which each text begins.
        frames: of the video.

    Raises:
        TimelineError: there are none, the first is not 0, one does not come after the one before, or one is not in the
            clip.
    """
    if not marks or marks[0] != 0:
        raise TimelineError(f"timeline: expected a text that begins at 0, found {list(marks) or 'no text'}")
    for before, mark in itertools.pairwise(marks):
        if mark <= before:
            raise TimelineError(f"timeline: expected times that rise, found {mark} after {before} (in frames)")
    if marks[-1] >= frames:
        raise TimelineError(
            f"timeline: expected times inside the clip, at most frame {frames - 1}, found frame {marks[-1]}"
        )


def check_clip_alone(frames: int, further: int) -> None:
    """Refuse a sequence that holds more frames than the clip's own.

    Args:
        frames: of the clip.
        further: frames beside it: keyframes, references.

    Raises:
        TimelineError: there are some.
    """
    if further:
        raise TimelineError(
            f"timeline: the sequence holds {further} further frame{'s' if further > 1 else ''} beside the clip's "
            f"{frames}; expected the clip's frames alone, as nothing says which text a further frame sees"
        )


def centres(frames: int, temporal: int) -> np.ndarray:
    """Where each latent frame is in the video.

    Args:
        frames: of the video, 1 more than a multiple of `temporal`.
        temporal: video frames that one latent frame stands for; the first one stands for a single frame.

    Returns:
        float64 (latent frames,), the middle of its video frames.
    """
    index = np.arange((frames - 1) // temporal + 1, dtype=np.float64)
    return np.where(index == 0, 0.0, (index - 1) * temporal + (temporal + 1) / 2)


def span_weights(marks: Sequence[int], frames: int, temporal: int, blend: int) -> np.ndarray:
    """How much each latent frame sees of each text.

    Args:
        marks: the video frame at which each text begins, rising from 0.
        frames: of the video.
        temporal: video frames that one latent frame stands for.
        blend: video frames from a mark on, over which a text takes the place of the one before; 0 for a step, at the
            boundary of latent frames that is nearest to the mark.

    Returns:
        float64 (latent frames, texts) in [0, 1]; each row sums to one.

    Raises:
        TimelineError: the marks do not fit the clip, see `check_marks`; the blend is no integer of at least 0; or a
            text is seen by no latent frame.
    """
    check_marks(marks, frames)
    if not is_whole(blend, 0):
        raise TimelineError(f"timeline blend: expected an integer of at least 0, found {blend!r}")
    since = centres(frames, temporal)[:, None] - np.asarray(marks, dtype=np.float64) + 0.5
    # How much of the change to text s (and to all after it) is done.
    begun = np.clip(since / blend, 0.0, 1.0) if blend else (since >= 0).astype(np.float64)
    begun[:, 0] = 1.0
    weights: np.ndarray = begun - np.pad(begun[:, 1:], ((0, 0), (0, 1)))
    unseen = np.flatnonzero(~(weights > 0).any(0))
    if len(unseen):
        index = int(unseen[0])
        raise TimelineError(
            f"timeline: no latent frame shows the text that begins at frame {marks[index]}: a latent frame stands for "
            f"{temporal} frames of the {frames}; expected it to begin earlier, or the next one later"
        )
    return weights


class TextForm(NamedTuple):
    """What the graph of a call with texts over time depends on. Where texts begin it does not know.

    Args:
        tokens: of the text axis, all texts together.
        texts: how many there are.
        one: tokens of the text axis of a call with one text for all frames.
        rows: how many rows of the batch have places for their texts each of its own; 0 where all have the same.
    """

    tokens: int
    texts: int
    one: int
    rows: int


@dataclass(frozen=True, eq=False)
class TextSchedule:
    """Texts that lie one after the other on a model's text axis, and what each latent frame sees of them.

    Args:
        weights: float64 (latent frames, texts), each row sums to one.
        starts: first token of each text on the text axis, and the end of the axis.
        one: tokens of the text axis of a call with one text for all frames.
        shown: tokens that are no padding, where a model keeps those of all texts in front of the padding; None where
            each text has its padding behind it.
        negative: as `starts`, of the negative prompt repeated once a text, up to the padding; None where it has the
            places of the texts.
        rows: as `starts`, for each row of a batch, where rows differ; empty where none do.
    """

    weights: np.ndarray
    starts: tuple[int, ...]
    one: int
    shown: int | None = None
    negative: tuple[int, ...] | None = None
    rows: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        frames, texts = self.weights.shape
        if len(self.starts) != texts + 1 or any(b <= a for a, b in itertools.pairwise(self.starts)):
            raise TimelineError(f"timeline: expected a place for each of {texts} texts, found {self.starts}")
        if frames and not np.allclose(self.weights.sum(1), 1.0, rtol=0, atol=1e-9):
            raise TimelineError("timeline: expected weights that sum to one in each latent frame")
        if self.negative is not None and self.negative[-1] == self.shown and self.negative[:-1] != self.starts[:-1]:
            raise TimelineError(
                f"timeline: the texts have {self.shown} tokens together, and so has the negative prompt once for each "
                "of them, so that a call cannot tell which it got; expected a negative prompt of a word more or less"
            )

    @property
    def texts(self) -> int:
        """How many there are."""
        return self.weights.shape[1]

    @property
    def frames(self) -> int:
        """Latent frames of the clip."""
        return self.weights.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of the text axis, all texts together."""
        return self.starts[-1]

    @property
    def form(self) -> TextForm:
        """What a captured graph depends on."""
        return TextForm(self.tokens, self.texts, self.one, len(self.rows))

    def for_rows(self, shown: Sequence[int]) -> TextSchedule:
        """The schedule of a call, whose rows are the texts or the negative prompt.

        Args:
            shown: tokens that are no padding in each row of the batch.

        Returns:
            The schedule; itself where padding is behind each text.

        Raises:
            TimelineError: a row has as many tokens as neither.
        """
        if self.shown is None:
            return self
        rows = []
        for count in shown:
            if count == self.shown:
                rows.append(self.starts)
            elif self.negative is not None and count == self.negative[-1]:
                rows.append((*self.negative[:-1], self.tokens))
            else:
                other = "none" if self.negative is None else f"{self.negative[-1]} of the negative prompt"
                raise TimelineError(
                    f"timeline: expected {self.shown} tokens that are no padding, or {other}, found {list(shown)}; "
                    "pass the pipeline what freeloc_fx.timeline gave as it is"
                )
        if len(set(rows)) > 1:
            return replace(self, rows=tuple(rows))
        return self if rows[0] == self.starts else replace(self, starts=rows[0], shown=shown[0], negative=None)

    def over(self, frames: int) -> np.ndarray:
        """The weights for as many frames of tokens, where a model puts several latent frames into one.

        Args:
            frames: frames of tokens.

        Returns:
            float64 (frames, texts).

        Raises:
            TimelineError: the clip's latent frames are no multiple of them.
        """
        if frames < 1 or self.frames % frames:
            raise TimelineError(
                f"timeline: it was made for {self.frames} latent frames, and the model runs on {frames} frames of "
                "tokens; expected the num_frames that it was made for"
            )
        mean: np.ndarray = self.weights.reshape(frames, self.frames // frames, self.texts).mean(1)
        return mean

    def with_references(self, count: int) -> TextSchedule:
        """The schedule of a clip with frames of references in front of it, which are of no time in the video.

        A reference stands for the whole clip: it sees each text by its share of all frames, and each text's frames see
        it as they see the rest of the clip.

        Args:
            count: frames of references, at least 0.

        Returns:
            The schedule of all frames; itself for none.
        """
        shares = self.weights.mean(0, keepdims=True).repeat(count, 0)
        return replace(self, weights=np.concatenate([shares, self.weights])) if count else self

    def window(self, frames: Sequence[int]) -> TextSchedule:
        """The same texts for some of the latent frames.

        Args:
            frames: indices of latent frames.

        Returns:
            The schedule of a clip of these frames, in which a text may be seen by none.
        """
        return replace(self, weights=self.weights[list(frames)])


_HIDDEN = -1e4
"""Bias of a pair that does not see each other: its share of a softmax is 0 in every floating-point format."""
_UNIT = 64.0
"""What one factor of a bias is, so that the other stays in the range of float16."""


_MULTIPLE = 8
"""Channels of a head are a multiple of this with those of the table, as fast attention kernels want them."""


def pair_form(head_dim: int, texts: int, scale: float | None) -> tuple[int, float]:
    """How many channels `pair_channels` adds to a head, and what products of q and k are multiplied by then.

    Args:
        head_dim: channels of a head.
        texts: how many there are.
        scale: as the model calls its attention; None for 1 / sqrt(head_dim).

    Returns:
        Channels, and the factor, which is that of the head without them.
    """
    more = -(-(head_dim + 2 * texts) // _MULTIPLE) * _MULTIPLE - head_dim
    return more, head_dim**-0.5 if scale is None else scale


def pair_channels(
    weights: np.ndarray, starts: Sequence[int], tokens: int, text_first: bool, scale: float, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The table of (frame, text) as channels of queries and of keys, for an attention over video and text together.

    Every pair of tokens belongs to a frame or a text on each side, and the product of these channels is its bias::

        frame f, frame g    0
        frame f, text s     log of f's weight of s
        text s, frame f     log of f's weight of s
        text s, text t      0 where they are one text, else hidden

    Args:
        weights: float64 (frames, texts).
        starts: first token of each text, and the end of the text axis; a text may be empty.
        tokens: of one frame.
        text_first: the text lies before the video.
        scale: what the attention multiplies products of q and k by, above 0.
        channels: at least twice as many as texts; further ones are 0.

    Returns:
        Of queries and of keys, float32 (all tokens, channels).
    """
    frames, texts = weights.shape
    with np.errstate(divide="ignore"):
        bias = np.maximum(np.log(weights), _HIDDEN) / (scale * _UNIT)
    own = np.searchsorted(np.asarray(starts[1:-1]), np.arange(starts[-1]), side="right")
    one = np.eye(texts)[own]
    video, none = np.repeat(bias, tokens, 0), np.zeros((frames * tokens, texts))
    q_text = np.concatenate([(1 - one) * _HIDDEN / (scale * _UNIT), one * _UNIT], 1)
    k_text = np.concatenate([one * _UNIT, np.zeros_like(one)], 1)
    parts = [(np.concatenate([video, none], 1), q_text), (np.concatenate([none, video], 1), k_text)]
    rest = ((0, 0), (0, channels - 2 * texts))
    queries, keys = (np.pad(np.concatenate(pair[::-1] if text_first else pair), rest) for pair in parts)
    return queries.astype(np.float32), keys.astype(np.float32)
