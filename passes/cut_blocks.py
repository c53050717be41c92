"""Cut a graph at its transformer blocks, so that equal blocks are compiled once.

    before:  one run of nodes: embed, blocks.0.norm1, ..., blocks.0.ffn, blocks.1.norm1, ..., proj_out
    after:   each node carries its piece: 0 (between blocks), 1 (blocks.0), 2 (blocks.1), ..., n (between blocks)

A block whose attention is several FlexAttention calls is cut at them as well, where `tiered_sparse_attention` has
said. Given them all at once, Inductor makes all copies of q and k first and adds all results last, so that 3.9 to 4.5
times q, k and v are held, and makes the copies within a kernel that has no registers left for them.

Nothing is moved or changed: the nodes are labelled, and what compiles reads the labels. A graph that cannot be cut (no
blocks in it, sizes that depend on data, a value other than a tensor between two pieces) is left without labels, and a
warning in the log of "freeloc_fx" says why.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping

import torch
import torch.fx as fx

from freeloc_fx.compat import module_stack
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.paths import dotted_path
from freeloc_fx.graph.records import Piece, call_part, write_piece
from freeloc_fx.graph.shapes import depends_on_data, value_of

__all__ = ["cut_blocks"]

log = logging.getLogger("freeloc_fx")


def cut_blocks(graph: fx.Graph, capture: Capture, *, blocks: Collection[str] | None) -> int:
    """Label every computing node with its piece.

    Args:
        graph: gets the labels.
        capture: not read.
        blocks: module paths of the blocks, "blocks.0"; empty for a graph that is a block itself, cut at its calls only;
            None for the elements of lists of modules that hold an attention.

    Returns:
        The number of pieces; 0 where the graph has to be compiled as one.
    """
    places = _places(graph, blocks)
    runs = _runs(graph, places)
    if reason := _why_whole(graph, runs, places, blocks):
        several = any(call_part(node) is not None for node in graph.nodes)
        memory = "; an attention that is made in several calls holds more memory then" if several else ""
        log.warning("compiling the whole graph, not block by block: %s%s", reason, memory)
        return 0
    for index, run in enumerate(runs):
        block = next((places[node] for node in run if node in places), "")
        part = call_part(run[0])
        piece = Piece(index, block, compiled=(bool(block) or not places) and (part is None or part.compiled))
        for node in run:
            write_piece(node, piece)
    return len(runs)


def _why_whole(
    graph: fx.Graph, runs: list[list[fx.Node]], places: Mapping[fx.Node, str], blocks: Collection[str] | None
) -> str:
    """What keeps a graph from being cut; empty for nothing."""
    for node in graph.nodes:
        if depends_on_data(node):
            return f"the size of {node.name} depends on data"
    if not places and (blocks is None or blocks):
        return "it holds no transformer blocks"
    output = next(n for n in graph.nodes if n.op == "output")
    if any(n.op == "get_attr" for n in output.all_input_nodes):
        return "it returns a constant"
    where = {node: index for index, run in enumerate(runs) for node in run}
    for node, index in where.items():
        read_later = any(where.get(user, -1) != index for user in node.users)
        if read_later and not isinstance(value_of(node), torch.Tensor):
            return f"{node.name}, which one piece makes and another reads, is no tensor"
    return ""


def _paths(node: fx.Node) -> Iterator[str]:
    """Paths of the modules that a node came from, outermost first, "blocks.3" then "blocks.3.attn1"."""
    for spelled, *_ in module_stack(node).values():
        yield dotted_path(spelled)


def _places(graph: fx.Graph, blocks: Collection[str] | None) -> dict[fx.Node, str]:
    """The block that each node lies in, for the nodes that lie in one."""
    if blocks is None:
        found: dict[str, bool] = {}
        for node in graph.nodes:
            attends = "attention" in str(getattr(node.target, "__name__", node.target))
            for path in _paths(node):
                match = re.match(r".*?\.\d+(?=\.|$)", path)
                if match:
                    found[match[0]] = found.get(match[0], False) or attends
        blocks = [path for path, attends in found.items() if attends]
    known = set(blocks)
    places = {}
    for node in graph.nodes:
        place = next((p for p in _paths(node) if p in known), None)
        if place is not None and node.op not in ("placeholder", "get_attr", "output"):
            places[node] = place
    return places


def _runs(graph: fx.Graph, places: Mapping[fx.Node, str]) -> list[list[fx.Node]]:
    """The computing nodes in order, cut where the block, or the call of an attention, changes; a node of no known
    module goes with its neighbours."""
    computing = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    following: list[str | None] = [None] * len(computing)
    ahead: str | None = None
    for index in range(len(computing) - 1, -1, -1):
        node = computing[index]
        if node in places or module_stack(node):
            ahead = places.get(node)
        following[index] = ahead
    runs: list[list[fx.Node]] = []
    before: str | None = None
    for node, after in zip(computing, following, strict=True):
        unknown = node not in places and not module_stack(node)
        place = (before if before == after else None) if unknown else places.get(node)
        if not runs or place != before or call_part(node) != call_part(runs[-1][-1]):
            runs.append([])
        runs[-1].append(node)
        before = place
    return runs
