"""The one operator that a rewrite puts in place of scaled_dot_product_attention.

    unfused:  scaled_dot_product_attention(q, k, v, scale=s)
    rewritten: freeloc_fx.long_attention(q, k, v, "vrpr+tsa@81x30x52#3f2a...", "tiles", s)

It is opaque to the compiler on purpose: a graph with forty long attentions compiles as quickly as without, and each
lowering compiles what it needs once for all layers and denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import CaptureError, VerificationError
from . import spec as specs
from .flex import flex
from .reference import reference
from .spec import AttentionSpec
from .tiles import tiles

__all__ = ["LOWERINGS", "choose", "long_attention"]

Lowering = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionSpec, float | None], torch.Tensor]
LOWERINGS: dict[str, Lowering] = {"reference": reference, "tiles": tiles, "flex": flex}


def choose(attention: str, device: torch.device) -> str:
    """The lowering for `transform(attention=...)`: "auto" is flex on CUDA, tiles elsewhere.

    Raises:
        ValueError: an unknown name.
    """
    if attention == "auto":
        return "flex" if device.type == "cuda" else "tiles"
    if attention not in LOWERINGS:
        raise ValueError(f"attention: expected 'auto', {', '.join(map(repr, LOWERINGS))}, found {attention!r}")
    return attention


_verified: set[tuple[str, str]] = set()


def _verify(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, known: AttentionSpec, scale: float |
None,
            lowering: str) -> None:  # fmt: skip
    """Compare the first, middle and last query frames with the reference, once for each spec and lowering.

    Raises:
        VerificationError: they differ by more than 1e-4 of the reference's norm (3e-2 in half precision).
    """
    if (known.key, lowering) in _verified:
        return
    frames, n = known.grid.frames, known.grid.tokens
    rows = sorted({0, frames // 2, frames - 1})
    expected = reference(q, k, v, known, scale, rows=rows).double()
    found = torch.cat([out[:, :, i * n : (i + 1) * n] for i in rows], 2).double()
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    limit = 1e-4 if q.dtype in (torch.float32, torch.float64) else 3e-2
    if not error <= limit:
        raise VerificationError(
            f"long attention {known.key}: {lowering} differs from the reference on frames {rows}: "
            f"expected a relative error of at most {limit}, found {error:.2g}"
        )
    _verified.add((known.key, lowering))


@torch.library.custom_op("freeloc_fx::long_attention", mutates_args=())
def long_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: str, lowering: str, scale: float | None
) -> torch.Tensor:
    """Run a long attention.

    q, k, v: (batch, heads, tokens, head_dim). spec: an AttentionSpec's key. lowering: a name of LOWERINGS, with
    "+verify" appended to compare it with the reference the first time. Returns q's shape and dtype.
    """
    lowering, _, verify = lowering.partition("+")
    known = specs.get(spec)
    if q.shape[2] != known.grid.sequence or k.shape != q.shape:
        raise CaptureError(
            f"long attention {spec}: expected {known.grid.sequence} tokens, "
            f"found q {tuple(q.shape)}, k {tuple(k.shape)}"
        )
    out = LOWERINGS[lowering](q, k, v, known, scale)
    if verify:
        _verify(q, k, v, out, known, scale, lowering)
    # One memory layout whatever the lowering: tokens before heads, as the model's next flatten wants it.
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@long_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: str, lowering: str, scale: float | None) -> torch.Tensor:
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
