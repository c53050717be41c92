"""FlexAttention over turned q and k: the function that the rewritten graph contains.

`attend` calls the public `flex_attention`. The pass `tiered_sparse_attention` lets Dynamo capture it, so that a graph
holds flex_attention nodes with their block masks; `alone.flex` runs it by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from freeloc_fx.attention.text import clip_span

from .merge import merge_attention
from .site import CallForm, SiteForm
from .tables import MASK

__all__ = ["Sum", "Values", "add_call", "attend", "joined", "needed", "operand", "wanted"]

Pairs = Callable[..., torch.Tensor]


class Values(Protocol):
    """Tensors by name."""

    def __getitem__(self, name: str, /) -> torch.Tensor: ...


def operand(which: str, rotation: int | None = None) -> str:
    """Name under which `attend` finds q, k or v.

    Args:
        which: "q", "k" or "v".
        rotation: number of the rotation; None for the tensor as it is.

    Returns:
        The name, "q.2" for rotation 2.
    """
    return which if rotation is None else f"{which}.{rotation}"


Sum = tuple[torch.Tensor | None, torch.Tensor | None]
"""What came of some calls: their softmax's result and its log-sum-exp, or one call's result alone."""


def attend(form: SiteForm, values: Values, run: Callable[..., Sum] | None = None) -> torch.Tensor:
    """Run some heads of one attention.

    Args:
        form: what it is made of.
        values: by name: q and k as they are (batch, heads, tokens, head_dim) or turned (batch, heads, versions, tokens,
            head_dim), and v, all under `operand`; what `site_tables` gives; and "valid", bool (batch, tokens), where
            the model hides padding keys.
        run: makes one call, like `add_call`, which is the default.

    Returns:
        (batch, heads, tokens, head_dim) in v's dtype.
    """
    run = run or add_call
    outputs = []
    for member, made in enumerate(form.members):
        total: torch.Tensor | None = None
        norm: torch.Tensor | None = None
        for number in range(len(made.calls)):
            total, norm = run(form, member, number, values, total, norm)
        assert total is not None
        outputs.append(total.to(values[operand("v")].dtype))
    if form.mixture is None:
        return outputs[0]
    grid, span = form.grid, clip_span(form.grid)
    videos = [output[:, :, span] for output in outputs]
    mixed = form.mixture.combine(videos, grid.frames, grid.height, grid.width).to(outputs[0].dtype)
    if grid.clip == grid.sequence:
        return mixed
    # Rows of a mixture beside the clip's come from its first strategy.
    return torch.cat([outputs[0][:, :, : span.start], mixed, outputs[0][:, :, span.stop :]], 2)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """All heads of an attention from its groups of heads.

    Args:
        parts: results of `attend`, in order.

    Returns:
        (batch, heads, tokens, head_dim), tokens before heads in memory, as the model's next flatten wants it: one
        layout whatever the lowering.
    """
    turned = [part.transpose(1, 2) for part in parts]
    return (torch.cat(turned, 2) if len(turned) > 1 else turned[0].contiguous()).transpose(1, 2)


def add_call(
    form: SiteForm, member: int, number: int, values: Values, total: torch.Tensor | None, norm: torch.Tensor | None
) -> Sum:
    """Make one FlexAttention call of a strategy and add it to those before.

    Args:
        form: what the attention is made of.
        member: number of the strategy.
        number: of its call.
        values: see `attend`.
        total: what came before; None for nothing.
        norm: its log-sum-exp; None for nothing.

    Returns:
        The new `total` and `norm`; a strategy of one call, which merges nothing, gives its result and None.
    """
    out, lse = _called(form, member, number, values)  # what it has turned is gone before the merge
    if lse is None:
        return out, None
    batch, heads, tokens, dim = values[operand("v")].shape
    shape = (batch, heads, form.members[member].calls[number].versions, tokens)
    return merge_attention(out.reshape(*shape, dim), lse.reshape(shape), total, norm)


def _called(form: SiteForm, member: int, number: int, values: Values) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One FlexAttention call: its result, and where results merge its log-sum-exp too."""
    made = form.members[member]
    call = made.calls[number]
    v = values[operand("v")]
    mask = _mask(form, call, f"{member}.{number}", v.shape[1] if call.versions > 1 else 1, values)
    score = _score(values, member) if call.decayed else None
    options: Any = dict(form.kernel_options)
    q, k = values[operand("q", call.query)], values[operand("k", call.key)]
    if form.far:
        k, v = k.contiguous(), v.contiguous()
    q, k, v = _operands(call, q, k, v)
    if not made.merges:
        alone: Any = flex_attention(q, k, v, score_mod=score, block_mask=mask, scale=made.scale, kernel_options=options)
        return alone, None
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
    member = name.partition(".")[0]
    reaches = _reach(form.members[int(member)].axes, member, values) if near else None
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
    for member in form.members:
        for call in member.calls:
            for which, number in (("q", call.query), ("k", call.key), ("v", None)):
                found[operand(which, number)] = None
    return list(found)
