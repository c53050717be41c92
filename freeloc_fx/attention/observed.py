"""The operator that runs an attention plainly and hands what it saw to a recorder.

unfused:    scaled_dot_product_attention(query=q, key=k, value=v, scale=s)
rewritten:  freeloc_fx.observe_attention(q, k, v, "recorder", "blocks.3.attn1", s, attn_mask, key_mask, weight)
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch

from freeloc_fx.compat import opaque_operator
from freeloc_fx.errors import CaptureError

from .autocast import take_part_in_autocast

__all__ = ["OPERATOR", "Recorder", "close_recorder", "observe_attention", "open_recorder"]


class Recorder(Protocol):
    """What an observing graph calls."""

    name: str

    def expect(self, plan: Any) -> None:
        """Know the sites of a captured graph, from its plan."""
        ...

    def attend(
        self,
        path: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None,
        attn_mask: torch.Tensor | None,
        key_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The attention's result, (batch, heads, tokens, head_dim)."""
        ...

    def see(
        self,
        path: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None,
        projection: torch.Tensor | None,
    ) -> None:
        """Take note of one call; arguments as of `observe_attention`."""
        ...


_OPEN: weakref.WeakValueDictionary[str, Recorder] = weakref.WeakValueDictionary()
"""A graph can carry a recorder's name only; the recorder lives as long as its owner keeps it."""


def open_recorder(recorder: Recorder) -> None:
    """Let observing graphs find a recorder by its name."""
    _OPEN[recorder.name] = recorder


def close_recorder(recorder: Recorder) -> None:
    """End what `open_recorder` began; nothing where it has ended."""
    if _OPEN.get(recorder.name) is recorder:
        del _OPEN[recorder.name]


@opaque_operator("freeloc_fx::observe_attention")
def observe_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    recorder: str,
    path: str,
    scale: float | None,
    attn_mask: torch.Tensor | None = None,
    key_mask: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run scaled_dot_product_attention and show it to a recorder.

    Args:
        q: (batch, heads, tokens, head_dim), floating point.
        k: as q.
        v: as q.
        recorder: name of an open recorder.
        path: module path of the site.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        attn_mask: the model's own mask, as it passes it.
        key_mask: the padding of single keys behind it, see `text.valid_keys`.
        projection: weight (width, heads * head_dim) of the linear layer that the result goes to, only looked at.

    Returns:
        What scaled_dot_product_attention returns, tokens before heads in memory.

    Raises:
        CaptureError: no recorder of this name is open.
    """
    known = _OPEN.get(recorder)
    if known is None:
        raise CaptureError(f"observing {path}: recorder {recorder!r} is closed")
    known.see(path, q, k, v, scale, projection)
    out = known.attend(path, q, k, v, scale, attn_mask, key_mask)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@observe_attention.register_fake
def _(q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)


OPERATOR = torch.ops.freeloc_fx.observe_attention.default
"""The operator as a graph calls it."""
take_part_in_autocast(OPERATOR)
