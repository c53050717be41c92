"""A transformer block of a graph as text, before and after the rewrite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.paths import module_path

__all__ = ["Listing", "block_lines", "block_of"]


@dataclass
class Listing:
    """One block.

    Args:
        path: module path of the block, "blocks.0".
        before: its operations as captured, one a line.
        after: its operations as rewritten.
    """

    path: str
    before: list[str]
    after: list[str]


def block_of(capture: Capture, path: str) -> str:
    """The block that a site lies in.

    Args:
        capture: knows the model's blocks.
        path: module path of the site.

    Returns:
        Module path of the block; the site's own where no block is known.
    """
    inside = [block for block in capture.layers if path == block or path.startswith(f"{block}.")]
    return max(inside, key=len, default=path)


def block_lines(graph: fx.Graph, block: str) -> list[str]:
    """The operations of one block, one a line.

    Args:
        graph: the whole graph.
        block: module path.
    """
    lines = []
    for node in graph.nodes:
        path = module_path(node)
        if node.op in ("call_function", "call_method") and (path == block or path.startswith(f"{block}.")):
            given = [_spelled(value) for value in node.args]
            given += [f"{name}={_spelled(value)}" for name, value in node.kwargs.items()]
            lines.append(f"{node.name} = {_name(node)}({', '.join(given)})")
    return lines


def _name(node: fx.Node) -> str:
    text = str(node.target)
    if text.startswith("<"):
        text = str(getattr(node.target, "__name__", text))
    return f".{text}" if node.op == "call_method" else text.removesuffix(".default")


def _spelled(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_spelled, _short(value)))})"
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, fx.Node) and value.op == "placeholder":
        # As Dynamo spells weights: "l_self_dict_modules_blocks_modules_0_modules_norm2_parameters_weight_".
        name = value.name.removeprefix("l_self_dict_modules_").removeprefix("l_self_modules_")
        return name.replace("_modules_", ".").replace("_parameters_", ".").replace("_buffers_", ".").rstrip("_")
    return str(value)


def _short(values: Iterable[Any]) -> list[Any]:
    """Without what is left out of a block mask."""
    return [value for value in values if value is not None]
