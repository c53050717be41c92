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
    paths = _paths(top, capture)
    renamed: dict[str, str] = {}

    def spelled(key: str, path: str) -> str:
        plain = path.replace(CALLED_THROUGH, "")
        dotted = dotted_path(plain)
        module = module_at(top, dotted)
        known = paths.get(stacked_module(key) if module is None else id(module))
        if known is None or known == dotted or (module is not None and capture.is_in_layer(dotted)):
            return plain
        renamed[path] = f"{ROOT}.{known}" if known else ROOT
        return renamed[path]

    for node in _nodes(graph, root):
        if stack := module_stack(node):
            node.meta[STACK] = {key: (spelled(key, str(path)), *rest) for key, (path, *rest) in stack.items()}
    return len(renamed)


def _paths(top: nn.Module | None, capture: Capture) -> dict[int | None, str]:
    """`id` of each module in what was captured -> its path there, the one in a list of blocks if there are several."""
    found: dict[int | None, str] = {}
    if top is None:
        return found
    for path in capture.layers if not capture.prefix else ():
        block = module_at(top, path)
        for name, module in block.named_modules() if block is not None else ():
            found.setdefault(id(module), f"{path}.{name}" if name else path)
    for path, module in top.named_modules():
        found.setdefault(id(module), path)
    return found


def _nodes(graph: fx.Graph, root: nn.Module) -> Iterator[fx.Node]:
    """Nodes of a graph and of the regions that it calls."""
    yield from graph.nodes
    for module in root.modules():
        if isinstance(module, fx.GraphModule) and module.graph is not graph and module is not root:
            yield from module.graph.nodes
