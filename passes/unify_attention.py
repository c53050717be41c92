"""Spell attention calls of other forms as scaled_dot_product_attention over one sequence, as later passes know it.

    before:  flash_attn._flash_attn_forward(q, k, v, 0.0, s, causal=False, ...)[0]          tokens before heads
    after:   scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=s)

    before:  scaled_dot_product_attention(q, k, v, enable_gqa=True)                         fewer heads of keys
    after:   scaled_dot_product_attention(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1))

    before:  scaled_dot_product_attention(q, cat([text, k]), cat([more, v]))                keys longer than queries
    after:   scaled_dot_product_attention(cat([text, q]), cat([text, k]), cat([more, v]))   a joint attention, whose
                                                                                            text rows are dropped

    before:  flash_attn_varlen_func(q, k, v, sinks=s)                                       a learned logit of each head
    after:   scaled_dot_product_attention(cat([q, 0]), cat([k, 0]), cat([v, 0]))            a key whose value is 0; its
                                                                                            score is of `carry_sinks`

The call stays in the graph, read by nobody, until `restore_attention`: what no strategy replaces runs as the model has
it. Keys that are learned (attention sinks) are keys like text's, and are counted for the passes that measure RoPE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.held import Held
from freeloc_fx.graph.inserted import insert, insert_attention
from freeloc_fx.graph.kernels import DIRECT, KernelCall, is_kernel, kernel_call
from freeloc_fx.graph.operations import VIEWS
from freeloc_fx.graph.records import StandIn, write_stand_in
from freeloc_fx.graph.shapes import UNKNOWN, shape_of

__all__ = ["unify_attention"]


def unify_attention(graph: fx.Graph, capture: Capture) -> int:
    """Put a scaled_dot_product_attention of one sequence in place of each attention call that means one.

    Args:
        graph: changed in place; the calls stay, without users.
        capture: its inputs tell where samples begin in packed tokens.

    Returns:
        The number of calls that were spelled anew.
    """
    held = Held(graph, capture.inputs)
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or not (node.target in DIRECT or is_kernel(node)):
            continue
        call = kernel_call(node, held.value)
        if isinstance(call, KernelCall):
            count += _spell(graph, node, call, held)
    return count


def _spell(graph: fx.Graph, node: fx.Node, call: KernelCall, held: Held) -> bool:
    """Insert the attention, unless the call is one already or its sizes do not fit."""
    laid = _laid_out(call, held)
    if laid is None:
        return False
    (batch, heads, rows, dim), (_, groups, columns, _), value = laid.shapes
    beside = (0, 0, (0, 0)) if rows == columns else _beside(call, rows, columns, held)
    fits = groups and heads % groups == 0 and value == (batch, groups, columns, dim)
    fits = fits and laid.shapes[1][::3] == (batch, dim)
    fits = fits and (call.sink is None or (call.mask is None and shape_of(call.sink) == (heads,)))
    plain = node.target in DIRECT and heads == groups and rows == columns
    if plain or not fits or (beside is None and node.target in DIRECT) or not _reaches(call.mask, columns, rows):
        return False
    given = zip((call.query, call.key, call.value), laid.given, strict=True)
    q, k, v = (insert(graph, node, laid.there, x, node, shape) for x, shape in given)
    if heads != groups:
        k, v = (insert(graph, node, _repeated(heads // groups), x, node) for x in (k, v))
    first, last, sinks = beside or (0, 0, (0, 0))
    logits = call.sink if rows == columns or beside is not None else None  # a cross-attention stays one
    if logits is not None:
        last, sinks = last + 1, (sinks[0], sinks[1] + 1)
        k, v = (insert(graph, node, _with_a_zero, x, node) for x in (k, v))
    if first or last:
        q = insert(graph, node, _joined(first, first + rows), (q, k), node)
    options: dict[str, Any] = {} if call.mask is None else {"attn_mask": call.mask}
    options |= {} if call.scale is None else {"scale": call.scale}
    attention = insert_attention(graph, node, q, k, v, options)
    after = node.next
    taken = _first(node) if call.first else node
    beside_them = bool(first or last)

    def own(x: Any) -> Any:  # a node of its own in any case, so that the two can be told apart again
        return laid.back(x.narrow(2, first, rows) if beside_them else x.view(batch, heads, rows, dim))

    result = insert(graph, after, own, attention, node)
    taken.replace_all_uses_with(result)
    reads = tuple(x for x in (q, k, v, call.mask) if x is not None)
    write_stand_in(attention, StandIn(node, taken, result, reads, (first, last), sinks, logits))
    return True


Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Laid:
    """How q, k and v become (batch, heads, tokens, head_dim), and how the result comes back.

    Args:
        there: turns one of them.
        back: turns the result.
        given: shapes of q, k and v as they are.
        shapes: and as they will be.
    """

    there: Callable[[Any], Any]
    back: Callable[[Any], Any]
    given: Sequence[Shape]
    shapes: Sequence[Shape]


def _laid_out(call: KernelCall, held: Held) -> _Laid | None:
    """The way from a call's layout and back; None where sizes are not known, or samples are of unlike length."""
    given = [shape_of(x) or () for x in (call.query, call.key, call.value)]
    if call.lengths is not None:
        starts = [held.value(one) for one in call.lengths]
        counts = [_samples(one) for one in (*starts, starts[1])]
        given = [_counted(shape, one) for shape, one in zip(given, (*starts, starts[1]), strict=True)]
        batch = counts[0]
        if batch is None or set(counts) != {batch} or any(len(shape) != 3 or UNKNOWN in shape for shape in given):
            return None
        shapes = [(batch, heads, tokens // batch, dim) for tokens, heads, dim in given]
        return _Laid(
            lambda x: x.unflatten(0, (batch, -1)).transpose(1, 2),
            lambda x: x.transpose(1, 2).flatten(0, 1).contiguous(),
            given,
            shapes,
        )
    if any(len(shape) != 4 or UNKNOWN in shape for shape in given):
        return None
    if call.layout == "bhsd":
        return _Laid(lambda x: x, lambda x: x, given, given)
    shapes = [(batch, heads, tokens, dim) for batch, tokens, heads, dim in given]
    return _Laid(lambda x: x.transpose(1, 2), lambda x: x.transpose(1, 2).contiguous(), given, shapes)


def _samples(starts: Any) -> int | None:
    """How many samples packed tokens are of, if all are of one length; None where they are not, or it is not known."""
    if not isinstance(starts, torch.Tensor) or starts.ndim != 1 or len(starts) < 2:
        return None
    number, tokens = len(starts) - 1, int(starts[-1])
    even = torch.arange(number + 1, device=starts.device) * (tokens // number)
    return number if tokens % number == 0 and torch.equal(starts.long(), even) else None


def _counted(shape: Shape, starts: Any) -> Shape:
    """A shape of packed tokens whose number is known from where samples begin; none at all where it is another."""
    if not shape or not isinstance(starts, torch.Tensor) or shape[0] not in (UNKNOWN, int(starts[-1])):
        return ()
    return (int(starts[-1]), *shape[1:])


def _repeated(times: int) -> Callable[[Any], Any]:
    return lambda x: x.repeat_interleave(times, 1)


def _with_a_zero(x: Any) -> Any:
    return torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)


def _joined(first: int, stop: int) -> Callable[[Any, Any], Any]:
    """Queries between the keys that are not theirs."""

    def join(q: Any, k: Any) -> Any:
        return torch.cat([k[:, :, :first], q, k[:, :, stop:]], 2)

    return join


def _reaches(mask: fx.Node | None, columns: int, rows: int) -> bool:
    """Whether a mask can be read where rows are added: it says nothing of single queries."""
    shape = None if mask is None else shape_of(mask)
    return mask is None or rows == columns or (shape is not None and (len(shape) < 2 or shape[-2] == 1))


def _first(node: fx.Node) -> fx.Node:
    """The node that takes the first of a call's results, one for all who do."""
    taken = [user for user in node.users if user.args[1] == 0]
    for other in taken[1:]:
        other.replace_all_uses_with(taken[0])
    return taken[0] if taken else node


_SPREAD = {"repeat_interleave", "repeat", "clone", torch.repeat_interleave}


def _pieces(node: fx.Node, rows: int, columns: int) -> tuple[list[fx.Node], list[int], int] | None:
    """What was joined to the keys (or values), how many tokens each part is, and which is as long as the queries; None
    where nothing was joined in the graph, or not one part is."""
    while node.target not in (torch.cat, torch.concat):
        source = node.args[0] if node.args and (node.target in VIEWS or node.target in _SPREAD) else None
        if not isinstance(source, fx.Node):
            return None
        node = source
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    shapes = [shape_of(part) for part in parts] if isinstance(parts, Sequence) else []
    sizes = [shape[axis] for shape in shapes if shape is not None]
    if len(sizes) != len(parts) or sum(sizes) != columns or sizes.count(rows) != 1:
        return None
    return list(parts), sizes, sizes.index(rows)


def _beside(call: KernelCall, rows: int, columns: int, held: Held) -> tuple[int, int, tuple[int, int]] | None:
    """How many keys stand before and after the queries' own, and how many of the first and the last are learned."""
    keys, values = (_pieces(x, rows, columns) for x in (call.key, call.value))
    if keys is None or values is None or keys[1:] != values[1:]:
        return None
    parts, sizes, own = keys
    learned = [place != own and held.learned(part) for place, part in enumerate(parts)]
    before, after = (_run(learned, sizes, places) for places in (range(own), range(len(parts) - 1, own, -1)))
    if sum(size for size, one in zip(sizes, learned, strict=True) if one) != before + after:
        return None
    return sum(sizes[:own]), sum(sizes[own + 1 :]), (before, after)


def _run(learned: list[bool], sizes: list[int], places: range) -> int:
    """Tokens of the learned parts that stand in a row from one end."""
    total = 0
    for place in places:
        if not learned[place]:
            break
        total += sizes[place]
    return total
