"""Whether a call of flex_attention is dense: no score function, and a mask that hides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from .shapes import UNKNOWN, shape_of

__all__ = ["FLEX", "dense_flex"]


FLEX = torch.ops.higher_order.flex_attention
"""The operator, as Dynamo puts it into a graph."""


def dense_flex(node: fx.Node, known: Callable[[fx.Node], Any]) -> str:
    """Tell whether a call leaves every score as it is and hides none.

    Args:
        node: a call of flex_attention: q, k, v, score function, block mask, scale and so on.
        known: gives the value of a node that is the same in every call of the model; None where it is not.

    Returns:
        Why it is not dense; empty where it is.
    """
    score, blocks = _body(node, node.args[3]), node.args[4]
    if score is None or not isinstance(blocks, tuple):
        return "its score function cannot be read"
    inputs = [n for n in score.nodes if n.op == "placeholder"]
    if _returned(score) is not inputs[0]:
        return "it has a score function"
    mask = _body(node, blocks[-1])
    result = None if mask is None else _returned(mask)
    if mask is None or result is None or not _is_true(result):
        return "it has a mask function"
    rows, columns, partial, full = blocks[-3], blocks[-2], blocks[2], blocks[4]
    if not isinstance(rows, int) or not isinstance(columns, int):
        return "the blocks of its mask are of no constant size"
    counts = [known(one) for one in (partial, full) if isinstance(one, fx.Node)]
    if not counts or not all(isinstance(one, torch.Tensor) for one in counts):
        return "its block mask is made of the model's inputs, which may differ from call to call"
    shapes = [shape_of(n) for n in node.args[:2] if isinstance(n, fx.Node)]
    query, key = (UNKNOWN if shape is None else shape[2] for shape in shapes)
    if UNKNOWN in (query, key):
        return "its sizes depend on data"
    number = sum(one.long() for one in counts)
    enough = number.shape[-1] == -(-query // rows) and bool((number == -(-key // columns)).all())
    return "" if enough else "its block mask leaves blocks out"


def _body(node: fx.Node, held: Any) -> fx.Graph | None:
    """The graph of a function that a call holds by name."""
    module: Any = node.graph.owning_module
    if not isinstance(held, fx.Node) or held.op != "get_attr" or module is None:
        return None
    for name in str(held.target).split("."):
        module = getattr(module, name, None)
    return module.graph if isinstance(module, fx.GraphModule) else None


def _returned(graph: fx.Graph) -> fx.Node | None:
    (result,) = next(n for n in reversed(graph.nodes) if n.op == "output").args
    while isinstance(result, (tuple, list)):
        result = result[0]
    return result if isinstance(result, fx.Node) else None


def _is_true(result: fx.Node) -> bool:
    """Whether a mask function gives True whatever its arguments hold, as torch's own function for no mask does."""
    return result.target in ("new_ones", torch.ones)
