"""The one operator that a rewrite puts in place of scaled_dot_product_attention, for every lowering but `flex`.

    unfused:  scaled_dot_product_attention(q, k, v, scale=s)
    rewritten: freeloc_fx.long_attention(q, k, v, "vrpr+tsa@81x30x52#3f2a...", "tiles", s, None, False)

It is opaque to the compiler on purpose: a graph with forty long attentions compiles as quickly as without, and each
lowering compiles what it needs once for all layers and denoising steps. With `flex` a rewrite puts nodes there instead
(`passes/reencode_rotary.py`, `passes/tiered_sparse_attention.py`); here it is those nodes by themselves, to compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from freeloc_fx.attention.calls.lowering import calls
from freeloc_fx.attention.flex.alone import flex
from freeloc_fx.attention.tiles.lowering import tiles
from freeloc_fx.compat import opaque_operator
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Mixture

from . import registry
from .agree import check_agreement
from .autocast import take_part_in_autocast
from .heads import heads_at_a_time
from .quickest import quickest
from .reference import reference
from .running import running
from .text import clip_span

__all__ = [
    "LOWERINGS",
    "NUMBERED",
    "OPERATOR",
    "choose",
    "compare_with_reference",
    "long_attention",
    "long_attention_numbered",
    "run",
]


Lowering = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, AttentionSpec, float | None, torch.Tensor | None], torch.Tensor
]


_SCORES = 2**31
"""Bytes that scores of the reference may take, where a result is compared with it."""

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
    """One lowering of any strategy; a mixture runs its strategies side by side and combines their video rows, for as
    many heads at a time as keep memory below twice q, k and v.

    Rows of a mixture beside the clip's come from its first strategy.

    Args:
        name: of the lowering, out of `LOWERINGS`, or "auto" for the quickest here (see `quickest`).
        q: (batch, heads, tokens, head_dim), floating point, rotated by the model's own RoPE.
        k: as q.
        v: as q.
        spec: what the attention computes.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        key_mask: the model's key-padding mask, see `text.valid_keys`.

    Returns:
        (batch, heads, tokens, head_dim) in q's dtype.

    Raises:
        ValueError: there is no such lowering.
    """
    if name == "auto":
        name = quickest(run, q, k, v, spec, scale, key_mask)
    if name not in LOWERINGS:
        raise ValueError(f"lowering: expected auto or one of {', '.join(LOWERINGS)}, found {name!r}")
    mixture = spec.strategy.mixture
    if mixture is None or name == "flex":  # whose graph holds a mixture's strategies side by side
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
    grid, span = spec.grid, clip_span(spec.grid)
    mixed = mixture.combine([part[:, :, span] for part in parts], grid.frames, grid.height, grid.width).to(q.dtype)
    if grid.clip == grid.sequence:
        return mixed
    return torch.cat([parts[0][:, :, : span.start], mixed, parts[0][:, :, span.stop :]], 2)


def choose(attention: str, device: torch.device) -> str:
    """The lowering for `transform(attention=...)`.

    Args:
        attention: "auto" or a name of `LOWERINGS`.
        device: where the attention runs.

    Returns:
        A name of `LOWERINGS`, flex for "auto" on CUDA and tiles on devices that have neither kernel; or "auto" on a
        CPU, where `run` takes tiles, or calls where they are clearly quicker.

    Raises:
        ValueError: an unknown name.
    """
    if attention == "auto":
        return {"cuda": "flex", "cpu": "auto"}.get(device.type, "tiles")
    if attention not in LOWERINGS:
        raise ValueError(f"attention: expected 'auto', {', '.join(map(repr, LOWERINGS))}, found {attention!r}")
    return attention


def compare_with_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    known: AttentionSpec,
    scale: float | None,
    key_mask: torch.Tensor | None,
    lowering: str,
) -> None:
    """Compare the first, middle and last query places (all rows of a mixture) with the reference.

    Once for each spec, lowering, shape, dtype and device that a backend runs.

    Args:
        q: (batch, heads, tokens, head_dim).
        k: as q.
        v: as q.
        out: (batch, heads, tokens, head_dim), what the lowering made of them.
        known: what it was to compute.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        key_mask: the model's key-padding mask, see `text.valid_keys`.
        lowering: its name.

    Raises:
        VerificationError: see `check_agreement`.
    """
    checked, what = running().checked, (known.key, lowering, tuple(q.shape), q.dtype, q.device)
    if what in checked:
        return
    places, end = known.grid.places, np.cumsum((known.grid.text_first, *known.grid.sizes)).tolist()
    rows = sorted({0, places // 2, places - 1})
    if known.strategy.mixture is None:
        # Few heads at a time: one frame's float64 scores of all keys are 19 GB for twelve heads of a 4x video.
        size = max(1, min(q.shape[1], _SCORES // (3 * 8 * q.shape[0] * max(known.grid.sizes) * q.shape[2])))
        parts = []
        for first in range(0, q.shape[1], size):
            heads = slice(first, first + size)
            few = replace(known, rope=known.rope.of_heads(heads))
            parts.append(reference(q[:, heads], k[:, heads], v[:, heads], few, scale, key_mask, rows=rows))
        expected = torch.cat(parts, 1)
        found = torch.cat([out[:, :, end[i] : end[i + 1]] for i in rows], 2)
    else:
        expected, found = run("reference", q, k, v, known, scale, key_mask), out
    about = f"long attention {known.key}: {lowering} differs from the reference on frames {rows}"
    check_agreement(found, expected, q.dtype, about)
    checked.add(what)


def _check_operands(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> None:
    """Refuse what a lowering would read wrongly: the CPU kernel takes pointers and q's dtype for all three."""
    if q.ndim != 4 or q.shape[2] != spec.grid.sequence or k.shape != q.shape or v.shape != q.shape:
        raise CaptureError(
            f"long attention {spec.key}: expected {spec.grid.sequence} tokens, found q {tuple(q.shape)}, "
            f"k {tuple(k.shape)}, v {tuple(v.shape)}, which have to be of one shape (batch, heads, tokens, head_dim)"
        )
    if q.shape[3] != spec.rope.head_dim:
        raise CaptureError(
            f"long attention {spec.key}: expected head_dim {spec.rope.head_dim}, found q {tuple(q.shape)}"
        )
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise CaptureError(
            f"long attention {spec.key}: expected q, k and v of one floating-point dtype, "
            f"found {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if not q.device == k.device == v.device:
        raise CaptureError(
            f"long attention {spec.key}: expected q, k and v on one device, found {q.device}, {k.device}, {v.device}"
        )
    if any(x.layout != torch.strided for x in (q, k, v)):
        raise CaptureError(
            f"long attention {spec.key}: expected dense tensors, found {q.layout}, {k.layout}, {v.layout}"
        )


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    lowering: str,
    scale: float | None,
    key_mask: torch.Tensor | None,
    verify: bool,
) -> torch.Tensor:
    known = spec.at(running().step)
    _check_operands(q, k, v, known)
    if lowering == "auto":
        lowering = quickest(run, q, k, v, known, scale, key_mask)
    out = run(lowering, q, k, v, known, scale, key_mask)
    if verify:
        compare_with_reference(q, k, v, out, known, scale, key_mask, lowering)
    # One memory layout whatever the lowering: tokens before heads, as the model's next flatten wants it.
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _shaped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """For tracing: a result of q's shape in the layout of `_run`'s. Asked, too, where an operand is on "meta"."""
    if not q.device == k.device == v.device:
        raise CaptureError(
            f"long attention: expected q, k and v on one device, found {q.device}, {k.device}, {v.device}"
        )
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)


@opaque_operator("freeloc_fx::long_attention")
def long_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: str,
    lowering: str,
    scale: float | None,
    key_mask: torch.Tensor | None = None,
    verify: bool = False,
) -> torch.Tensor:
    """Run a long attention.

    Under autocast it runs in autocast's dtype, as scaled_dot_product_attention does.

    Args:
        q: (batch, heads, tokens, head_dim), floating point, rotated by the model's own RoPE.
        k: as q, in shape, dtype and device.
        v: as q, in shape, dtype and device.
        spec: the key of a spec that `registry.Specs` holds.
        lowering: a name of `LOWERINGS`, or "auto"; a rewrite never puts "flex" here, and a compiler cannot trace it.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        key_mask: the model's key-padding mask, see `text.valid_keys`.
        verify: compare sampled frames with the reference, the first time that the running backend meets this spec with
            this shape, dtype and device.

    Returns:
        (batch, heads, tokens, head_dim) in q's dtype, tokens before heads in memory.

    Raises:
        CaptureError: no such spec in this process, or operands of another shape, dtype, device or layout.
        ValueError: there is no such lowering.
        VerificationError: with `verify`, the lowering is further from the reference than `agree` allows.
    """
    return _run(q, k, v, registry.by_key(spec), lowering, scale, key_mask, verify)


@opaque_operator("freeloc_fx::long_attention_numbered")
def long_attention_numbered(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: torch.Tensor,
    lowering: str,
    scale: float | None,
    key_mask: torch.Tensor | None = None,
    verify: bool = False,
) -> torch.Tensor:
    """`long_attention` with its spec as data, so that one compiled block runs any strategy.

    Args:
        q: see `long_attention`, like all others but the spec.
        k: see `long_attention`.
        v: see `long_attention`.
        spec: the number of a spec, int64 without axes, from `registry.Specs.number`.
        lowering: see `long_attention`.
        scale: see `long_attention`.
        key_mask: see `long_attention`.
        verify: see `long_attention`.

    Returns:
        As `long_attention`.

    Raises:
        CaptureError: nothing has this number; else as `long_attention`.
        VerificationError: as `long_attention`.
    """
    return _run(q, k, v, registry.by_number(spec), lowering, scale, key_mask, verify)


long_attention.register_fake(_shaped)
long_attention_numbered.register_fake(_shaped)
OPERATOR = torch.ops.freeloc_fx.long_attention.default
"""The operator as a graph calls it, with the spec's key."""
NUMBERED = torch.ops.freeloc_fx.long_attention_numbered.default
"""The operator as a graph calls it, with the spec as data."""
take_part_in_autocast(OPERATOR)
take_part_in_autocast(NUMBERED)
