"""Run a stretch of a graph."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

__all__ = ["run_nodes", "set_aside"]


_log = logging.getLogger("freeloc_fx")


_HALF = (torch.float16, torch.bfloat16)


def run_nodes(
    nodes: Iterable[fx.Node],
    known: Mapping[fx.Node, Any],
    widen: bool = False,
    replace: Mapping[int, int] | None = None,
    keep: Iterable[fx.Node] | None = None,
) -> dict[fx.Node, Any]:
    """Execute nodes in order, given the values of everything they read from outside.

    Args:
        nodes: in execution order.
        known: the values of what they read from outside; nodes among them are not executed.
        widen: casts to half precision become casts to float32.
        replace: integers among the arguments to change, old -> new.
        keep: nodes whose values are wanted; others are dropped once they have been read. None to keep all.

    Returns:
        Node -> value, those that were known among them.
    """
    with ExitStack() as stack:
        # A stretch is run outside of what stood around it: a model that keeps its tables out of autocast says so there.
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        return _run(nodes, known, widen, replace, keep)


def _run(
    nodes: Iterable[fx.Node],
    known: Mapping[fx.Node, Any],
    widen: bool,
    replace: Mapping[int, int] | None,
    keep: Iterable[fx.Node] | None,
) -> dict[fx.Node, Any]:
    values = dict(known)
    nodes = list(nodes)
    last = {} if keep is None else {read: n for n in nodes for read in n.all_input_nodes}
    kept = set(keep or ())
    for node in nodes:
        if node in values:
            continue
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        if replace:
            args, kwargs = (pytree.tree_map_only(int, lambda n: replace.get(n, n), a) for a in (args, kwargs))
        if widen:
            if node.op == "call_method" and node.target in ("half", "bfloat16"):
                values[node] = args[0].float()
                continue  # what it read lives on in the result where it was float32 already
            args = tuple(torch.float32 if _casts((a,)) else a for a in args) if _casts(args) else args
            kwargs = {k: torch.float32 if _casts((v,)) else v for k, v in kwargs.items()}
        if node.op == "call_function":
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
        elif node.op == "call_method":
            assert isinstance(node.target, str)
            values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            raise KeyError(f"{node.name}: a {node.op} node has no value here")
        for read in node.all_input_nodes:
            if last.get(read) is node and read not in kept:
                del values[read]
    return values


def _casts(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(a, torch.dtype) and a in _HALF for a in arguments)


def set_aside(error: Exception, consequence: str) -> None:
    """Note, at level DEBUG, that operations of the user's model could not be run where they were tried.

    Args:
        error: what they raised.
        consequence: what is not known now.
    """
    _log.debug("%s: %s: %s", consequence, type(error).__name__, error)
