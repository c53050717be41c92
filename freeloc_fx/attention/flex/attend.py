"""FlexAttention over turned q and k: the function that the rewritten graph contains.

`attend` calls the public `flex_attention`. The pass `tiered_sparse_attention` lets Dynamo capture it, so that a graph
holds flex_attention nodes with their block masks; `alone.flex` runs it by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from freeloc_fx.attention.text import clip_span

from .merge import merge_attention
from .site import CallForm, SiteForm
from .tables import MASK

__all__ = ["attend", "needed", "operand", "wanted"]

Pairs = Callable[..., torch.Tensor]


class Values(Protocol):
    """Tensors by name."""

    def __getitem__(self, name: str, /) -> torch.Tensor: ...


def operand(which: str, group: int, rotation: int | None) -> str:
    """Name under which `attend` finds q or k.

    Args:
        which: "q", "k" or "v".
        group: number of the group of heads.
        rotation: number of the rotation; None for the tensor as it is.

    Returns:
        The name, "q.0.2" for rotation 2 of the first group.
    """
    return f"{which}.{group}" if rotation is None else f"{which}.{group}.{rotation}"


def attend(form: SiteForm, values: Values) -> torch.Tensor:
    """Run one attention.

    Args:
        form: what it is made of.
        values: by name: q and k as they are (batch, heads of the group, tokens, head_dim) or turned (batch, heads of
            the group, versions, tokens, head_dim), and v, all under `operand`; what `site_tables` gives; and "valid",
            bool (batch, tokens), where the model hides padding keys.

    Returns:
        (batch, heads, tokens, head_dim) in v's dtype, tokens before heads in memory.
    """
    parts = [_group(form, number, values) for number in range(len(form.groups))]
    # One memory layout whatever the lowering: tokens before heads, as the model's next flatten wants it.
    parts = [part.transpose(1, 2) for part in parts]
    return (torch.cat(parts, 2) if len(parts) > 1 else parts[0].contiguous()).transpose(1, 2)


def _group(form: SiteForm, group: int, values: Values) -> torch.Tensor:
    outputs = [_member(form, number, group, values) for number in range(len(form.members))]
    if form.mixture is None:
        return outputs[0]
    grid, span = form.grid, clip_span(form.grid)
    videos = [output[:, :, span] for output in outputs]
    mixed = form.mixture.combine(videos, grid.frames, grid.height, grid.width).to(outputs[0].dtype)
    if grid.clip == grid.sequence:
        return mixed
    # Rows of a mixture beside the clip's come from its first strategy.
    return torch.cat([outputs[0][:, :, : span.start], mixed, outputs[0][:, :, span.stop :]], 2)


def _member(form: SiteForm, member: int, group: int, values: Values) -> torch.Tensor:
    """One strategy on one group of heads."""
    made = form.members[member]
    if not made.merges:
        alone: torch.Tensor = _call(form, member, 0, group, values)
        return alone
    v = values[operand("v", group, None)]
    batch, heads, tokens, dim = v.shape
    total = norm = None
    for number, call in enumerate(made.calls):
        out, lse = _call(form, member, number, group, values)
        shape = (batch, heads, call.versions, tokens)
        total, norm = merge_attention(out.reshape(*shape, dim), lse.reshape(shape), total, norm)
        del out, lse  # before the next call's are made
    assert total is not None
    return total.to(v.dtype)


def _call(form: SiteForm, member: int, number: int, group: int, values: Values) -> Any:
    """One FlexAttention call: its result, and where results merge its log-sum-exp too."""
    made = form.members[member]
    call = made.calls[number]
    v = values[operand("v", group, None)]
    mask = _mask(form, call, f"{member}.{number}", v.shape[1] if call.versions > 1 else 1, values)
    score = _score(values, member) if call.decayed else None
    options: Any = dict(form.kernel_options)
    q, k, v = _operands(call, values[operand("q", group, call.query)], values[operand("k", group, call.key)], v)
    if not made.merges:
        return flex_attention(q, k, v, score_mod=score, block_mask=mask, scale=made.scale, kernel_options=options)
    out, aux = flex_attention(
        q,
        k,
        v,
        score_mod=score,
        block_mask=mask,
        scale=made.scale,
        enable_gqa=call.versions > 1,
        kernel_options=options,
        return_aux=AuxRequest(lse=True),
    )
    return out, aux.lse


def _operands(
    call: CallForm, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Versions as query heads that share one key head; the model's own heads become samples."""
    if call.versions == 1:
        rows, keys = (x if turned is None else x.squeeze(2) for x, turned in ((q, call.query), (k, call.key)))
        return rows, keys, v
    batch, heads, tokens, dim = v.shape
    one = (batch * heads, 1, tokens, dim)
    return q.reshape(batch * heads, call.versions, tokens, dim), k.reshape(one), v.reshape(one)


def _mask(form: SiteForm, call: CallForm, name: str, heads: int, values: Values) -> BlockMask | None:
    """The block mask of a call; `heads` of the model that are samples of the call."""
    if not call.masked:
        return None
    count, index, full_count, full_index = (values[f"{table}.{name}"] for table in MASK)
    segment, word, bit = values["segment"], values["word"], values["bit"]
    several, seen = call.versions > 1, values[f"seen.{name}"].unbind()
    near = values[f"near.{name}"].unbind() if call.striped else ()
    reaches = _reach(form.members[int(name.partition(".")[0])].axes, name.partition(".")[0], values) if near else None
    valid = values["valid"] if call.padded else None

    def visible(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        row, key = segment[i], segment[j]
        bits = [torch.where(word[key] == number, bit[key], 0) for number in range(len(seen))]
        found = _meets([table[h, row] if several else table[row] for table in seen], bits)
        if reaches is not None:
            found = found | (_meets([table[h, row] if several else table[row] for table in near], bits) & reaches(i, j))
        return found if valid is None else found & valid[b // heads, j]

    tokens = form.grid.sequence
    return BlockMask(
        seq_lengths=(tokens, tokens),
        kv_num_blocks=count,
        kv_indices=index,
        full_kv_num_blocks=full_count,
        full_kv_indices=full_index,
        q_num_blocks=None,  # for the backward pass
        q_indices=None,
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=form.block,
        mask_mod=visible,
    )


def _meets(words: list[torch.Tensor], bits: list[torch.Tensor]) -> torch.Tensor:
    """Whether any bit is set in both; the words are of rows, the bits of keys."""
    both = words[0] & bits[0]
    for word, bit in zip(words[1:], bits[1:], strict=True):
        both = both | (word & bit)
    return both != 0


def _reach(axes: int, member: str, values: Values) -> Pairs:
    """What a token sees of another frame along the stripe."""
    place = values["place"]
    if not axes:
        table = values[f"stripe.{member}"]
        return lambda i, j: table[place[i], place[j]]
    bounds = [axis.unbind() for axis in values[f"bounds.{member}"].unbind()]

    def within(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        row, key, found = place[i], place[j], None
        for low, high, at in bounds:
            inside = (at[key] >= low[row]) & (at[key] < high[row])
            found = inside if found is None else found & inside
        assert found is not None
        return found

    return within


def _score(values: Values, member: int) -> Pairs:
    """A strategy's decay of positive scores."""
    factor, segment = values[f"decay.{member}"], values["segment"]

    def decayed(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(score > 0, score * factor[segment[i], segment[j]], score)

    return decayed


def wanted(form: SiteForm) -> list[tuple[str, int]]:
    """The rotations of a site: ("q" or "k", number), each once, in the order in which the calls want them."""
    pairs = [
        (which, number)
        for member in form.members
        for call in member.calls
        for which, number in (("q", call.query), ("k", call.key))
        if number is not None
    ]
    return list(dict.fromkeys(pairs))


def needed(form: SiteForm) -> list[str]:
    """Names of the operands that `attend` reads."""
    found: dict[str, None] = {}
    for group in range(len(form.groups)):
        for member in form.members:
            for call in member.calls:
                for which, number in (("q", call.query), ("k", call.key), ("v", None)):
                    found[operand(which, group, number)] = None
    return list(found)
