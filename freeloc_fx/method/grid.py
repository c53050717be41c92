"""The tokens of a sequence and how temporal RoPE turns a head's channels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["RopeLayout", "TokenGrid"]


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
class TokenGrid:
    """The tokens of a sequence: text, then video in raster order (frames, rows, columns), then text.

    Args:
        frames: latent frames.
        height: rows of tokens in one latent frame.
        width: columns of tokens in one latent frame.
        text_first: text tokens before the video.
        text_last: text tokens after the video.
    """

    frames: int
    height: int
    width: int
    text_first: int = 0
    text_last: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in one latent frame."""
        return self.height * self.width

    @property
    def video(self) -> int:
        """Video tokens of the sequence."""
        return self.frames * self.tokens

    @property
    def text(self) -> int:
        """Text tokens of the sequence, before and after the video together."""
        return self.text_first + self.text_last

    @property
    def sequence(self) -> int:
        """All tokens of the sequence, text and video."""
        return self.video + self.text
