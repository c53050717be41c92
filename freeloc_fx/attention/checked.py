"""The operator behind `verify=True` in graphs whose attention is nodes: compares their result, and hands it on.

freeloc_fx.checked_attention(out, q, k, v, "vrpr+tsa@81x30x52#3f2a...", "flex", s, valid)
"""

from __future__ import annotations

import torch

from freeloc_fx.compat import opaque_operator

from . import op, registry
from .running import running

__all__ = ["OPERATOR", "checked_attention"]


@opaque_operator("freeloc_fx::checked_attention")
def checked_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: str,
    lowering: str,
    scale: float | None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compare a long attention's result with the reference, as `long_attention` does.

    Args:
        out: (batch, heads, tokens, head_dim), the result.
        q: (batch, heads, tokens, head_dim), rotated by the model's own RoPE.
        k: as q.
        v: as q.
        spec: the key of a spec that `registry.Specs` holds.
        lowering: what made the result, for messages.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        valid: which keys count, bool (batch, tokens); None for all.

    Returns:
        A copy of `out`, tokens before heads in memory.

    Raises:
        CaptureError: no such spec in this process.
        VerificationError: the result is further from the reference than `agree` allows.
    """
    known = registry.by_key(spec).at(running().step)
    op.compare_with_reference(q, k, v, out, known, scale, None if valid is None else valid[:, None, None], lowering)
    return out.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


@checked_attention.register_fake
def _(out: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    batch, heads, tokens, dim = out.shape
    return out.new_empty(batch, tokens, heads, dim).transpose(1, 2)


OPERATOR = torch.ops.freeloc_fx.checked_attention.default
"""The operator as a graph calls it."""
