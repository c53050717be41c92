"""A function as graph nodes: captured by Dynamo, its graph copied into another one.

    before:  ... q, k -> attention(q, k) -> ...              a call
    after:   ... q, k -> [the nodes of the function] -> ...  with tensors that it reads as its inputs

This is how public functions that a graph can only hold in a private form (flex_attention with its block masks and mask
functions) come into a rewritten graph: Dynamo writes that form, nobody here has to know it.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from freeloc_fx.compat import STACK
from freeloc_fx.errors import CaptureError

__all__ = ["Captured", "CapturedFunctions", "Like", "splice"]

Like = tuple[tuple[int, ...], torch.dtype, torch.device]
"""Shape, dtype and device of an input."""


@dataclass(frozen=True)
class Captured:
    """A function's graph.

    Args:
        name: begins the names of the submodules that it brings along.
        module: its graph, with the functions that it hands to operators as submodules.
        inputs: names of its inputs, in the order of the graph's placeholders.
    """

    name: str
    module: fx.GraphModule
    inputs: tuple[str, ...]


class CapturedFunctions:
    """Functions that have been captured, by what they compute; one for each backend.

    A function that is found again brings the same submodules along, so that equal blocks stay equal.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Captured] = {}
        self._lock = RLock()

    def get(
        self,
        what: Hashable,
        function: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
        inputs: Mapping[str, Like],
    ) -> Captured:
        """The graph of a function.

        Args:
            what: equal for functions that compute the same on inputs of equal shapes.
            function: takes tensors by name, and gives one tensor.
            inputs: what they look like.

        Returns:
            The graph, captured when it is first asked for.

        Raises:
            CaptureError: Dynamo made something else of it than one graph of those inputs.
        """
        key = (what, tuple(inputs.items()))
        with self._lock:
            if key not in self._made:
                self._made[key] = _captured(f"freeloc_{len(self._made)}", function, inputs)
            return self._made[key]


def _captured(
    name: str, function: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], inputs: Mapping[str, Like]
) -> Captured:
    # Dynamo looks at shapes only: one element each, however large the tensors are.
    blanks = {
        key: torch.empty((), dtype=dtype, device=device).expand(shape) for key, (shape, dtype, device) in inputs.items()
    }
    names = {id(blank): key for key, blank in blanks.items()}
    modules: list[fx.GraphModule] = []
    order: list[str | None] = []

    def keep(module: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        modules.append(module)
        returned = next(n for n in module.graph.nodes if n.op == "output").args[0]

        def run(*given: Any) -> Any:
            order.extend(names.get(id(value)) for value in given)
            return tuple(torch.empty(0) for _ in returned)

        return run

    def call(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return function(values)

    # A code object of its own: Dynamo counts what it compiles by code object, and refuses after eight times.
    own = types.FunctionType(call.__code__.replace(), globals(), name, None, call.__closure__)
    with torch.no_grad(), torch.autocast(next(iter(blanks.values())).device.type, enabled=False):
        torch.compile(own, backend=keep, fullgraph=True, dynamic=False)(blanks)
    if len(modules) != 1 or None in order:
        raise CaptureError(
            f"{name}: expected Dynamo to make one graph of the given tensors, found {len(modules)} graphs with the "
            f"inputs {order}; is torch.compile switched off?"
        )
    return Captured(name, modules[0], tuple(key for key in order if key is not None))


def splice(
    graph: fx.Graph, before: fx.Node, captured: Captured, given: Mapping[str, fx.Node], root: nn.Module
) -> fx.Node:
    """Copy a captured function's nodes into a graph.

    Args:
        graph: changed in place.
        before: the node before which they come; the new ones count as made in the same module.
        captured: the function.
        given: a node for each of its inputs.
        root: gets the submodules that it brings along.

    Returns:
        The node of its result.
    """
    copies: dict[fx.Node, fx.Node] = {}
    places = iter(captured.inputs)
    result: Any = None
    with graph.inserting_before(before):
        for node in captured.module.graph.nodes:
            if node.op == "placeholder":
                copies[node] = given[next(places)]
                continue
            if node.op == "output":
                (result,) = node.args[0]
                continue
            if node.op == "get_attr":
                target = f"{captured.name}_{node.target}".replace(".", "_")
                if not hasattr(root, target):
                    setattr(root, target, operator.attrgetter(str(node.target))(captured.module))
                copies[node] = graph.get_attr(target)
                continue
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if STACK in before.meta:
                copies[node].meta[STACK] = before.meta[STACK]
    return copies[result]
