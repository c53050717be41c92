"""The operator that adds parts of a softmax in rewritten graphs: pointwise, float32, taken apart by a compiler.

freeloc_fx.merge_attention(out, lse, total, norm)
"""

from __future__ import annotations

import torch

__all__ = ["OPERATOR", "merge_attention"]

_LIBRARY = torch.library.Library("freeloc_fx", "FRAGMENT")
_LIBRARY.define("merge_attention(Tensor out, Tensor lse, Tensor? total, Tensor? norm) -> (Tensor, Tensor)")


def _merged(
    out: torch.Tensor, lse: torch.Tensor, total: torch.Tensor | None, norm: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    for version in range(out.shape[2]):
        part, weight = out[:, :, version], lse[:, :, version]
        seen = torch.isneginf(weight).logical_not().unsqueeze(-1)
        part = torch.where(seen, part, 0.0)  # what a kernel leaves where nothing is visible
        if total is None or norm is None:
            total, norm = part.to(torch.promote_types(part.dtype, torch.float32)), weight
            continue
        # share = weight of the new part in the softmax over both: sigmoid(lse - norm), 1 where nothing came before
        share = torch.where(seen, torch.sigmoid(weight - norm).unsqueeze(-1), 0.0)
        total = torch.lerp(total, part.to(total.dtype), share)
        norm = torch.logaddexp(norm, weight)
    assert total is not None and norm is not None
    return total, norm


_LIBRARY.impl("merge_attention", _merged, "CompositeImplicitAutograd")

OPERATOR = torch.ops.freeloc_fx.merge_attention.default
"""The operator as a graph calls it."""


def merge_attention(
    out: torch.Tensor, lse: torch.Tensor, total: torch.Tensor | None = None, norm: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the results of one attention call to the softmax of those before.

    Args:
        out: (batch, heads, versions, tokens, head_dim), the results of all versions; any numbers where a row sees
            nothing.
        lse: float32 (batch, heads, versions, tokens), their log-sum-exp; -inf where a row sees nothing.
        total: float32 (batch, heads, tokens, head_dim), what came before; None for nothing.
        norm: float32 (batch, heads, tokens), its log-sum-exp; None for nothing.

    Returns:
        The new `total` and `norm`.
    """
    result: tuple[torch.Tensor, torch.Tensor] = OPERATOR(out, lse, total, norm)
    return result
