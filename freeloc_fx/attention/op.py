"""The one operator that a rewrite puts in place of scaled_dot_product_attention.

    unfused:  scaled_dot_product_attention(q, k, v, scale=s)
    rewritten: freeloc_fx.long_attention(q, k, v, "vrpr+tsa@81x30x52#3f2a...", "tiles", s)

It is opaque to the compiler on purpose: a graph with forty long attentions compiles as quickly as without, and each
lowering compiles what it needs once for all layers and denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..errors import CaptureError
from ..mixture import Mixture
from . import spec as specs
from .agree import check_agreement
from .calls import calls
from .flex import flex
from .heads import heads_at_a_time
from .reference import reference
from .spec import AttentionSpec
from .text import video_span
from .tiles import tiles

__all__ = ["LOWERINGS", "choose", "long_attention", "long_attention_numbered", "run"]

Lowering = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, AttentionSpec, float | None, torch.Tensor | None], torch.Tensor
]
LOWERINGS: dict[str, Lowering] = {"reference": reference, "tiles": tiles, "calls": calls, "flex": flex}


def run(
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """One lowering of any strategy; a mixture runs its strategies side by side and combines their video rows,
    for as many heads at a time as keep memory below twice q, k and v.

    Arguments and result as in `reference`. Text rows of a mixture come from its first strategy.
    """
    mixture = spec.strategy.mixture
    if mixture is None:
        return LOWERINGS[name](q, k, v, spec, scale, key_mask)
    batch, heads, tokens, dim = q.shape
    # Every strategy's output is held until they are combined; one that runs takes up to twice its q, k and v.
    size = heads_at_a_time(heads, len(mixture.strategies) + 6)
    result = q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    for first in range(0, heads, size):
        group = slice(first, min(first + size, heads))
        known = replace(spec, rope=spec.rope.of_heads(group))
        result[:, group] = _mixed(name, q[:, group], k[:, group], v[:, group], known, mixture, scale, key_mask)
    return result


def _mixed(
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    mixture: Mixture,
    scale: float | None,
    key_mask: torch.Tensor | None,
) -> torch.Tensor:
    """A mixture on one group of heads."""
    parts = [run(name, q, k, v, replace(spec, strategy=s), scale, key_mask) for s in mixture.strategies]
    grid, span = spec.grid, video_span(spec.grid)
    mixed = mixture.combine([part[:, :, span] for part in parts], grid.frames, grid.height, grid.width).to(q.dtype)
    if not grid.text:
        return mixed
    return torch.cat([parts[0][:, :, : span.start], mixed, parts[0][:, :, span.stop :]], 2)


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


def _verify(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    known: AttentionSpec,
    scale: float | None,
    key_mask: torch.Tensor | None,
    lowering: str,
) -> None:
    """Compare the first, middle and last query frames (all rows of a mixture) with the reference, once for each spec
    and lowering.

    Raises:
        VerificationError: see `check_agreement`.
    """
    if (known.key, lowering) in _verified:
        return
    frames, n, first = known.grid.frames, known.grid.tokens, known.grid.text_first
    rows = sorted({0, frames // 2, frames - 1})
    if known.strategy.mixture is None:
        expected = reference(q, k, v, known, scale, key_mask, rows=rows)
        found = torch.cat([out[:, :, first + i * n : first + (i + 1) * n] for i in rows], 2)
    else:
        expected, found = run("reference", q, k, v, known, scale, key_mask), out
    about = f"long attention {known.key}: {lowering} differs from the reference on frames {rows}"
    check_agreement(found, expected, q.dtype, about)
    _verified.add((known.key, lowering))


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: str,
    lowering: str,
    scale: float | None,
    key_mask: torch.Tensor | None,
) -> torch.Tensor:
    lowering, _, verify = lowering.partition("+")
    known = specs.get(spec).at(specs.step())
    if q.shape[2] != known.grid.sequence or k.shape != q.shape:
        raise CaptureError(
            f"long attention {spec}: expected {known.grid.sequence} tokens, "
            f"found q {tuple(q.shape)}, k {tuple(k.shape)}"
        )
    out = run(lowering, q, k, v, known, scale, key_mask)
    if verify:
        _verify(q, k, v, out, known, scale, key_mask, lowering)
    # One memory layout whatever the lowering: tokens before heads, as the model's next flatten wants it.
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _shaped(q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """For tracing: a result of q's shape in the layout of `_run`'s."""
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)


@torch.library.custom_op("freeloc_fx::long_attention", mutates_args=())
def long_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: str,
    lowering: str,
    scale: float | None,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a long attention.

    q, k, v: (batch, heads, tokens, head_dim). spec: an AttentionSpec's key. lowering: a name of LOWERINGS, with
    "+verify" appended to compare it with the reference the first time. key_mask: see `text.valid_keys`. Returns q's
    shape and dtype.

    Raises:
        CaptureError: no such spec in this process, or another number of tokens. VerificationError: see `_verify`.
    """
    return _run(q, k, v, spec, lowering, scale, key_mask)


@torch.library.custom_op("freeloc_fx::long_attention_numbered", mutates_args=())
def long_attention_numbered(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: torch.Tensor,
    lowering: str,
    scale: float | None,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`long_attention` with its spec as data, int64 without axes (`spec.number`): one compiled block runs any strategy.

    Raises:
        CaptureError: nothing has this number; else as `long_attention`.
    """
    return _run(q, k, v, specs.numbered(spec), lowering, scale, key_mask)


long_attention.register_fake(_shaped)
long_attention_numbered.register_fake(_shaped)
