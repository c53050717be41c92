"""Part the tokens of an image from those of all texts, in models that count the texts' tokens for one text's.

    captured:  context[:, :257 + 512]      context[:, 257 + 512:]     # two texts of 512 tokens behind 257 of an image
    rewritten: context[:, :257]            context[:, 257:]

Wan's image-to-video models attend to an image and a text, which they cut out of one sequence by the number of tokens
that one text has, written into their code.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.compat import fake_mode, set_example_value
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.execute import run_nodes
from freeloc_fx.graph.shapes import shape_of, value_of
from freeloc_fx.method.timeline import TextForm

__all__ = ["split_text_from_image"]


def split_text_from_image(graph: fx.Graph, capture: Capture, *, form: TextForm) -> int:
    """Act on every cut that leaves one text's tokens of a sequence that is longer than all texts.

    Args:
        graph: changed in place.
        capture: not read.
        form: of the texts.

    Returns:
        The number of cuts that were moved.
    """
    moved: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node.target is not operator.getitem:
            continue
        source, index = node.args
        shape = shape_of(source) if isinstance(source, fx.Node) else None
        if shape is None or len(shape) != 3 or shape[1] <= form.tokens or not isinstance(index, tuple):
            continue
        place = shape[1] - form.one
        if len(index) == 2 and index[0] == slice(None) and index[1] in (slice(None, place), slice(place, None)):
            there = shape[1] - form.tokens
            part = slice(None, there) if index[1].start is None else slice(there, None)
            node.args = (source, (index[0], part))
            moved.add(node)
    if moved:
        _propagate(graph, moved)
    return len(moved)


def _propagate(graph: fx.Graph, changed: set[fx.Node]) -> None:
    """Record again what changed nodes give, and what follows from it, up to where a shape is what it was."""
    differs: set[fx.Node] = set()
    with fake_mode(), torch.no_grad():
        values: dict[fx.Node, Any] = {}

        def value(node: fx.Node) -> Any:
            if node not in values:
                like = value_of(node)
                fake = isinstance(like, torch.Tensor)
                size = (like.shape, like.stride()) if fake else ()
                values[node] = torch.empty_strided(*size, dtype=like.dtype, device=like.device) if fake else like
            return values[node]

        for node in graph.nodes:
            if node.op not in ("call_function", "call_method"):
                continue
            if node not in changed and not any(read in differs for read in node.all_input_nodes):
                continue
            before = shape_of(node)
            found = run_nodes([node], {read: value(read) for read in node.all_input_nodes})[node]
            if isinstance(found, torch.Tensor) and tuple(found.shape) == before:
                continue
            values[node] = found
            set_example_value(node, found)
            differs.add(node)
