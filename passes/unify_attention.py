"""Spell attention calls of other forms as scaled_dot_product_attention over one sequence, as later passes know it.

    before:  flash_attn._flash_attn_forward(q, k, v, 0.0, s, causal=False, ...)[0]          tokens before heads
    after:   scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=s)

    before:  scaled_dot_product_attention(q, k, v, enable_gqa=True)                         fewer heads of keys
    after:   scaled_dot_product_attention(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1))

    before:  scaled_dot_product_attention(q, cat([text, k]), cat([more, v]))                keys longer than queries
    after:   scaled_dot_product_attention(cat([text, q]), cat([text, k]), cat([more, v]))   a joint attention, whose
                                                                                            text rows are dropped

The call stays in the graph, read by nobody, until `restore_attention`: what no strategy replaces runs as the model has
it. Keys that are learned (attention sinks) are keys like text's, and are counted for the passes that measure RoPE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F

from freeloc_fx.compat import STACK, set_example_value
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.held import Held
from freeloc_fx.graph.inserted import insert
from freeloc_fx.graph.kernels import DIRECT, KernelCall, is_kernel, kernel_call
from freeloc_fx.graph.operations import VIEWS
from freeloc_fx.graph.records import StandIn, write_stand_in
from freeloc_fx.graph.shapes import UNKNOWN, shape_of, value_of

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
    there, back, shapes = laid
    (batch, heads, rows, dim), (_, groups, columns, _), value = shapes
    beside = (0, 0, (0, 0)) if rows == columns else _beside(call, rows, columns, held)
    fits = groups and heads % groups == 0 and value == (batch, groups, columns, dim) and shapes[1][::3] == (batch, dim)
    plain = node.target in DIRECT and heads == groups and rows == columns
    if plain or not fits or (beside is None and node.target in DIRECT) or not _reaches(call.mask, columns, rows):
        return False
    q, k, v = (insert(graph, node, there, x, node) for x in (call.query, call.key, call.value))
    if heads != groups:
        k, v = (insert(graph, node, _repeated(heads // groups), x, node) for x in (k, v))
    first, last, sinks = beside or (0, 0, (0, 0))
    if first or last:
        q = insert(graph, node, _joined(first, columns - last), (q, k), node)
    options: dict[str, Any] = {} if call.mask is None else {"attn_mask": call.mask}
    options |= {} if call.scale is None else {"scale": call.scale}
    with graph.inserting_before(node):
        attention = graph.call_function(F.scaled_dot_product_attention, (q, k, v), options)
    attention.meta = {STACK: node.meta[STACK]} if STACK in node.meta else {}
    set_example_value(attention, value_of(q).new_empty(()).expand(batch, heads, shape_of(q)[2], dim))  # type: ignore[index]
    after = node.next
    value_node = _first(graph, node) if call.first else node
    result = insert(
        graph, after, lambda x: back(x[:, :, first : first + rows] if first or last else x), attention, node
    )
    if result is attention:  # a node of its own, so that the two can be told apart again
        result = insert(graph, after, lambda x: x.view(batch, heads, rows, dim), attention, node)
    value_node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
    reads = tuple(x for x in (q, k, v, call.mask) if x is not None)
    write_stand_in(attention, StandIn(node, value_node, result, reads, sinks))
    return True


Shape = tuple[int, ...]


def _laid_out(
    call: KernelCall, held: Held
) -> tuple[Callable[[Any], Any], Callable[[Any], Any], tuple[Shape, Shape, Shape]] | None:
    """How q, k and v become (batch, heads, tokens, head_dim) and the result comes back, and their shapes then."""
    shapes = [shape_of(x) for x in (call.query, call.key, call.value)]
    if call.sink is not None or any(shape is None or UNKNOWN in shape for shape in shapes):
        return None
    if call.layout != "thd":
        if any(len(shape or ()) != 4 for shape in shapes):
            return None
        if call.layout == "bhsd":
            return (lambda x: x), (lambda x: x), tuple(shapes)  # type: ignore[return-value]
        turned = tuple((b, h, s, d) for b, s, h, d in shapes)  # type: ignore[misc]
        return (lambda x: x.transpose(1, 2)), (lambda x: x.transpose(1, 2).contiguous()), turned  # type: ignore[return-value]
    assert call.lengths is not None
    counts = {_samples(held.value(starts), shape[0]) for starts, shape in zip(call.lengths, shapes, strict=False)}  # type: ignore[index]
    batch = counts.pop() if len(counts) == 1 else None
    if batch is None or any(len(shape or ()) != 3 for shape in shapes):
        return None
    packed = tuple((batch, h, t // batch, d) for t, h, d in shapes)  # type: ignore[misc]
    return (
        lambda x: x.unflatten(0, (batch, -1)).transpose(1, 2),
        lambda x: x.transpose(1, 2).flatten(0, 1).contiguous(),
        packed,  # type: ignore[return-value]
    )


def _samples(starts: Any, tokens: int) -> int | None:
    """How many samples packed tokens are of, if all are of one length; None where they are not, or it is not known."""
    if not isinstance(starts, torch.Tensor) or starts.ndim != 1 or len(starts) < 2:
        return None
    number = len(starts) - 1
    even = torch.arange(number + 1, device=starts.device) * (tokens // number)
    return number if tokens % number == 0 and torch.equal(starts.long(), even) else None


def _repeated(times: int) -> Callable[[Any], Any]:
    return lambda x: x.repeat_interleave(times, 1)


def _joined(first: int, stop: int) -> Callable[[Any, Any], Any]:
    """Queries between the keys that are not theirs."""

    def join(q: Any, k: Any) -> Any:
        return torch.cat([k[:, :, :first], q, k[:, :, stop:]], 2)

    return join


def _reaches(mask: fx.Node | None, columns: int, rows: int) -> bool:
    """Whether a mask can be read where rows are added: it says nothing of single queries."""
    shape = None if mask is None else shape_of(mask)
    return mask is None or rows == columns or (shape is not None and (len(shape) < 2 or shape[-2] == 1))


def _first(graph: fx.Graph, node: fx.Node) -> fx.Node:
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
