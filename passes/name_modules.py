"""Let each node's module go by the path under which the model knows it, however its forward was reached.

before:  sdpa of L['f'].__self__.blocks.1.attn1     somebody wrapped forward in a function that keeps the old one
after:   sdpa of L['self'].blocks.1.attn1
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.fx as fx
from torch import nn

from freeloc_fx.compat import STACK, module_stack, stacked_module
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.paths import CALLED_THROUGH, ROOT, dotted_path, module_at

__all__ = ["name_modules"]


def name_modules(graph: fx.Graph, capture: Capture, *, root: nn.Module, model: nn.Module | None) -> int:
    """Spell the modules on every node's stack as paths of the model; a path that leads to a module of it stays.

    Args:
        graph: its nodes' stacks are changed in place, and those of the regions that it calls.
        capture: tells which module of the model was captured.
        root: holds the regions' graphs.
        model: what was captured, or of which a block was; None where that is not known.

    Returns:
        The number of modules that went by another path.
    """
    top = module_at(model, capture.prefix) if model is not None else None
    paths = {id(module): path for path, module in top.named_modules()} if top is not None else {}
    renamed: dict[str, str] = {}

    def spelled(key: str, path: str) -> str:
        plain, module = path.replace(CALLED_THROUGH, ""), stacked_module(key)
        if module_at(top, dotted_path(plain)) is not None or module not in paths:
            return plain
        renamed[path] = f"{ROOT}.{paths[module]}" if paths[module] else ROOT
        return renamed[path]

    for node in _nodes(graph, root):
        if stack := module_stack(node):
            node.meta[STACK] = {key: (spelled(key, str(path)), *rest) for key, (path, *rest) in stack.items()}
    return len(renamed)


def _nodes(graph: fx.Graph, root: nn.Module) -> Iterator[fx.Node]:
    """Nodes of a graph and of the regions that it calls."""
    yield from graph.nodes
    for module in root.modules():
        if isinstance(module, fx.GraphModule) and module.graph is not graph and module is not root:
            yield from module.graph.nodes
