"""Records that analysis passes leave on graph nodes, all under one meta key.

Passes communicate through these records and nothing else: analysis writes them, planning and rewriting read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch.fx as fx

from freeloc_fx.method.grid import RopeLayout, TokenGrid

if TYPE_CHECKING:
    from freeloc_fx.attention.flex.site import Site
    from freeloc_fx.method.sensitivity import Sensitivity

__all__ = [
    "KEY",
    "AttentionSite",
    "Operands",
    "Piece",
    "StandIn",
    "call_part",
    "move",
    "note_values",
    "operands",
    "pieces",
    "record",
    "sites",
    "stand_in",
    "stood_for",
    "values_read",
    "write",
    "write_call",
    "write_operands",
    "write_piece",
    "write_stand_in",
]


KEY = "freeloc"


@dataclass(frozen=True)
class AttentionSite:
    """One softmax attention call in the captured graph.

    Args:
        path: module path, "blocks.3.attn1".
        layer: index among the model's layers.
        kind: "video" (self-attention over tokens with temporal RoPE), "cross", or "other".
        query_shape: (batch, heads, tokens, head_dim).
        key_shape: (batch, heads, tokens, head_dim).
        scale: factor on q k; None for 1 / sqrt(head_dim).
        reason: why a site is not "video"; empty for one that is.
        rope: how temporal RoPE turns q and k; None where it is not known.
        grid: the tokens of its sequence; None where it is not known.
        sensitivity: of its layer, as a probe measured it; None for none.
        mask: the node of the model's key-padding mask; None for none.
        beside: how many of the first, and of the last, tokens are keys that no query stands at.
        sinks: how many of the first, and of the last, of those are learned.
        order: spans of tokens in the order in which RoPE and grid know them, where frames stand among words or sound;
            empty where tokens stand as these know them.
        padded: the number of tokens depends on data (padded text is left out by indexing); the shapes count all that
            there may be.
        texts: its q and k carry channels that say which pairs of video and text see each other.
    """

    path: str
    layer: int
    kind: Literal["video", "cross", "other"]
    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    scale: float | None = None
    reason: str = ""
    rope: RopeLayout | None = None
    grid: TokenGrid | None = None
    sensitivity: Sensitivity | None = None
    mask: fx.Node | None = field(default=None, compare=False)
    beside: tuple[int, int] = (0, 0)
    sinks: tuple[int, int] = (0, 0)
    order: tuple[tuple[int, int], ...] = ()
    padded: bool = False
    texts: bool = False


def record(node: fx.Node) -> AttentionSite | None:
    """The record on a node, or None."""
    found = node.meta.get(KEY)
    assert found is None or isinstance(found, AttentionSite)
    return found


def write(node: fx.Node, site: AttentionSite | None = None, **changes: object) -> None:
    """Put a record on a node, or change fields of the one that is there.

    Args:
        node: of an attention call.
        site: the record; None for the one that is there.
        **changes: fields of `AttentionSite` with their new values.
    """
    current = site if site is not None else record(node)
    assert current is not None, f"{node} carries no record to change"
    node.meta[KEY] = replace(current, **changes)  # type: ignore[arg-type]


def move(node: fx.Node, other: fx.Node) -> None:
    """Put the record of a node on another one, whose tokens are in order.

    Args:
        node: of an attention call.
        other: of the call that stands for it.
    """
    other.meta[KEY] = node.meta.pop(KEY)


def sites(graph: fx.Graph) -> list[tuple[fx.Node, AttentionSite]]:
    """Every node with a record, in execution order."""
    return [(node, site) for node in graph.nodes if (site := record(node)) is not None]


VALUES = "freeloc_values"
"""Meta key of inputs whose values an analysis has looked at."""


def note_values(nodes: Iterable[fx.Node]) -> None:
    """Say that what an analysis has found holds for the present values of these inputs: another call may bring others.

    Args:
        nodes: of any kind; the placeholders of tensors among them are meant.
    """
    for node in nodes:
        if node.op == "placeholder":
            node.meta[VALUES] = True


def values_read(node: fx.Node) -> bool:
    """Whether something that was found holds for the present value of an input only.

    Args:
        node: of a graph that was analysed.
    """
    return bool(node.meta.get(VALUES))


STAND_IN = "freeloc_stand_in"
"""Meta key of an attention that stands for a call of another form."""


STOOD_FOR = "freeloc_stood_for"
"""Meta key of that call."""


@dataclass(frozen=True)
class StandIn:
    """The call that an attention stands for, which nothing reads meanwhile.

    Args:
        call: the call.
        value: its result: itself, or the first of several.
        result: what is read in place of `value`.
        operands: what the attention reads, as long as nobody changed that.
        beside: how many of its first, and of its last, tokens are keys that no query stands at.
        sinks: how many of the first, and of the last, of those are learned.
        logits: a learned logit of each head, (heads,), that the call's softmax counts: the score of the last token,
            whose value is 0; None for none.
    """

    call: fx.Node
    value: fx.Node
    result: fx.Node
    operands: tuple[fx.Node, ...]
    beside: tuple[int, int] = (0, 0)
    sinks: tuple[int, int] = (0, 0)
    logits: fx.Node | None = None

    def moved(self, nodes: Mapping[fx.Node, fx.Node]) -> StandIn:
        """The same of another graph.

        Args:
            nodes: node of this graph -> node of the other.
        """
        return replace(
            self,
            call=nodes[self.call],
            value=nodes[self.value],
            result=nodes[self.result],
            operands=tuple(nodes[node] for node in self.operands),
            logits=None if self.logits is None else nodes[self.logits],
        )


def write_stand_in(node: fx.Node, made: StandIn) -> None:
    """Say what an attention stands for.

    Args:
        node: the attention.
        made: the call and what came in its place.
    """
    node.meta[STAND_IN] = made
    made.call.meta[STOOD_FOR] = True


def stand_in(node: fx.Node) -> StandIn | None:
    """What an attention, or what was put in its place, stands for; None where it is the model's own."""
    found = node.meta.get(STAND_IN)
    assert found is None or isinstance(found, StandIn)
    return found


def stood_for(node: fx.Node) -> bool:
    """Whether another attention stands for a call."""
    return bool(node.meta.get(STOOD_FOR))


OPERANDS = "freeloc_operands"
"""Meta key of what `reencode_rotary` made for an attention."""


@dataclass(frozen=True)
class Operands:
    """Turned q and k of one attention, ready for its FlexAttention calls.

    Args:
        site: which rotations and calls the attention is made of.
        groups: q, k and v of each group of heads, as they are and turned, by the names of `attend.operand`.
        valid: which keys the model's key mask lets count, bool (batch, tokens); None for no mask.
        length: the number of tokens that there are, where it depends on data and `groups` are padded; None elsewhere.
    """

    site: Site
    groups: tuple[dict[str, fx.Node], ...]
    valid: fx.Node | None = None
    length: fx.Node | None = None


def write_operands(node: fx.Node, made: Operands) -> None:
    """Say what an attention call is to read instead of its own q, k and v.

    Args:
        node: the call.
        made: what it is to read.
    """
    node.meta[OPERANDS] = made


def operands(node: fx.Node) -> Operands | None:
    """What an attention call is to read instead of its own q, k and v; None where nobody has said so."""
    found = node.meta.get(OPERANDS)
    assert found is None or isinstance(found, Operands)
    return found


CALL = "freeloc_call"
"""Meta key of the attention call that a node belongs to."""


@dataclass(frozen=True)
class CallPart:
    """What is compiled by itself in a block: one call of an attention that is made in several.

    Args:
        name: of the call, "blocks.3.attn1/0/2" for the third of the first group of heads.
        compiled: whether it is compiled; what only splits q, k and v into groups of heads runs as it is.
    """

    name: str
    compiled: bool


def write_call(node: fx.Node, name: str, *, compiled: bool = True) -> None:
    """Say to which call of an attention a node belongs.

    Args:
        node: a computing node.
        name: of the call.
        compiled: see `CallPart`.
    """
    node.meta[CALL] = CallPart(name, compiled)


def call_part(node: fx.Node) -> CallPart | None:
    """The call of an attention that a node belongs to; None for no node of one."""
    found = node.meta.get(CALL)
    assert found is None or isinstance(found, CallPart)
    return found


PIECE = "freeloc_piece"
"""Meta key of the piece that a node belongs to."""


@dataclass(frozen=True)
class Piece:
    """A run of neighbouring nodes that are compiled, or run, together.

    Args:
        index: the pieces of a graph are counted from 0 in execution order.
        block: module path of the transformer block that it is or is part of, "blocks.3"; "" for what lies between
            blocks.
        compiled: whether it is compiled; what lies between blocks, and what splits heads into groups, runs as it is.
    """

    index: int
    block: str
    compiled: bool


def write_piece(node: fx.Node, piece: Piece) -> None:
    """Say to which piece a node belongs.

    Args:
        node: a computing node.
        piece: the piece.
    """
    node.meta[PIECE] = piece


def pieces(graph: fx.Graph) -> list[tuple[Piece, list[fx.Node]]]:
    """The pieces of a graph with their nodes, in execution order; empty for a graph that was not cut."""
    found: dict[Piece, list[fx.Node]] = {}
    for node in graph.nodes:
        if isinstance(piece := node.meta.get(PIECE), Piece):
            found.setdefault(piece, []).append(node)
    return list(found.items())
