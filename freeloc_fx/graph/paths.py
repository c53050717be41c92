"""Module paths of nodes, as Dynamo spells them and as `nn.Module.get_submodule` takes them."""

from __future__ import annotations

import re

import torch.fx as fx
from torch import nn

from freeloc_fx.compat import module_stack

__all__ = ["CALLED_THROUGH", "ROOT", "dotted_path", "module_at", "module_path"]

ROOT = "L['self']"
"""The module that was captured, as Dynamo spells it where its forward calls it self."""
_ROOT = re.compile(r"^L\['\w+'\]")
"""The module that was captured, by whatever name its forward calls it."""
_STORES = re.compile(r"(\.|\[')(_modules|_parameters|_buffers|__dict__|_orig_mod)\b('\])?")
"""Where a module keeps what it holds: no names of the model's own."""


def dotted_path(spelled: object) -> str:
    """A module or tensor as Dynamo spells where it comes from, "L['self']._modules['blocks'].3", as "blocks.3"."""
    rest = _STORES.sub("", _ROOT.sub("", str(spelled)))
    return ".".join(re.findall(r"[A-Za-z_]\w*|\d+", rest))


CALLED_THROUGH = ".forward.args[0]"
"""What the path of a module inside a marked block has between the block and the rest, as Dynamo spells it."""


def module_path(node: fx.Node) -> str:
    """The module a node came from, "blocks.3.attn1"; empty where Dynamo recorded none."""
    stack = module_stack(node)
    if not stack:
        return ""
    return dotted_path(list(stack.values())[-1][0])


def module_at(model: nn.Module | None, path: str) -> nn.Module | None:
    """The module of a model at a path, None where there is none.

    Args:
        model: to look in; None where it is not known.
        path: as `module_path` gives it.
    """
    if model is None:
        return None
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
