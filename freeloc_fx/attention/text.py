"""The text tokens of a joint attention: where they stand in a sequence, and which of them are padding."""

from __future__ import annotations

import torch

from freeloc_fx.errors import CaptureError
from freeloc_fx.method.grid import TokenGrid

__all__ = ["clip_span", "split", "valid_keys", "video_span"]


def clip_span(grid: TokenGrid) -> slice:
    """Where the tokens of the clip itself are.

    Args:
        grid: the clip's.

    Returns:
        A slice of the sequence.
    """
    start = grid.text_first + sum(frame.tokens for frame in grid.before)
    return slice(start, start + grid.clip)


def video_span(grid: TokenGrid) -> slice:
    """Where the video tokens of a sequence are, those of further frames among them.

    Args:
        grid: the clip's.

    Returns:
        A slice of the sequence.
    """
    return slice(grid.text_first, grid.text_first + grid.video)


def split(x: torch.Tensor, grid: TokenGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Part a sequence into video and text.

    Args:
        x: (..., sequence, head_dim).
        grid: the clip's.

    Returns:
        Video (..., places, tokens, head_dim), a view, and text (..., text, head_dim), a copy where text is at both
        ends.
    """
    assert grid.of_one_size, "places of unlike sizes have no axis of tokens"
    span = video_span(grid)
    video = x[..., span, :].unflatten(-2, (grid.places, grid.tokens))
    if not grid.text_first or not grid.text_last:
        return video, x[..., : span.start, :] if grid.text_first else x[..., span.stop :, :]
    return video, torch.cat([x[..., : span.start, :], x[..., span.stop :, :]], -2)


def valid_keys(key_mask: torch.Tensor | None, batch: int, grid: TokenGrid) -> torch.Tensor | None:
    """Which text keys a model's key-padding mask lets count.

    Args:
        key_mask: (batch or 1, 1, 1, sequence), the axes of 1 and then the first may be missing; bool (True = visible),
            or additive with 0 and -inf (or the dtype's lowest value, or anything from -1e4 down). None for no mask.
        batch: samples.
        grid: the clip's.

    Returns:
        bool (batch, text), True where a text key counts; None for no mask.

    Raises:
        CaptureError: a mask of another shape, other values, or one that hides video tokens.
    """
    if key_mask is None:
        return None
    given = tuple(key_mask.shape)
    shape = (1, 1, 1, *given) if len(given) == 1 else (*given[:1], *(1,) * (4 - len(given)), *given[1:])
    fits = len(shape) == 4 and shape[1] == shape[2] == 1 and shape[0] in (1, batch) and shape[3] in (1, grid.sequence)
    if not fits:
        raise CaptureError(
            f"key mask: expected a shape that broadcasts to ({batch}, 1, 1, {grid.sequence}), "
            f"found {tuple(key_mask.shape)}"
        )
    rows = key_mask.reshape(shape)[:, 0, 0].expand(batch, grid.sequence)
    if rows.dtype != torch.bool:
        hidden = rows <= -1e4
        if not bool((hidden | (rows == 0)).all()):
            raise CaptureError("key mask: expected additive values of 0 or at most -1e4, found others")
        rows = ~hidden
    span = video_span(grid)
    if not bool(rows[:, span].all()):
        raise CaptureError("key mask: expected every video token to be visible, found masked ones")
    return torch.cat([rows[:, : span.start], rows[:, span.stop :]], 1)
