"""Values that no argument of a call has a part in: made of nothing but constants and of what a model's modules hold.

They are the same in every call until somebody writes what a module holds, so whoever computes one notes that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import torch
import torch.fx as fx

from freeloc_fx.compat import source_name

from .execute import run_nodes, set_aside
from .flow import flow
from .records import note_values
from .slices import ancestors

__all__ = ["Held", "of_module"]


class Held:
    """Tells such values of one graph.

    Args:
        graph: as it was captured.
        inputs: value of each placeholder.
    """

    def __init__(self, graph: fx.Graph, inputs: Mapping[fx.Node, Any]) -> None:
        self.graph, self.inputs = graph, inputs
        self._view: nx.DiGraph | None = None

    def value(self, node: fx.Node) -> Any:
        """The value of a node, computed; None where it depends on what a call is given, or cannot be computed.

        Args:
            node: of the graph.
        """
        nodes = self._ancestors(node)
        if not self._all_held(nodes):
            return None
        note_values(nodes)
        known = {n: self.inputs[n] for n in nodes if n in self.inputs}
        try:
            with torch.no_grad():
                return run_nodes(nodes, known)[node]
        except Exception as error:  # any operation of the user's model may stand here; the value is then not known
            set_aside(error, f"{node.name} is not known from what the model holds")
            return None

    def learned(self, node: fx.Node) -> bool:
        """Whether a node is made of what modules hold, and of something that they hold.

        Args:
            node: of the graph.
        """
        nodes = self._ancestors(node)
        return self._all_held(nodes) and any(n.op in ("placeholder", "get_attr") for n in nodes)

    def _ancestors(self, node: fx.Node) -> list[fx.Node]:
        if self._view is None or node not in self._view:
            self._view = flow(self.graph)
        return ancestors(self._view, [node])

    def _all_held(self, nodes: list[fx.Node]) -> bool:
        return all(of_module(n, self.inputs.get(n)) for n in nodes if n.op == "placeholder")


def of_module(node: fx.Node, value: Any) -> bool:
    """Whether a placeholder is a module's parameter or buffer, or a global's, rather than an argument of the call.

    Args:
        node: the placeholder.
        value: what the call has for it.
    """
    if isinstance(value, torch.nn.Parameter):
        return True
    source = source_name(node) or ""
    return source.startswith("G[") or any(f"{kind}['" in source for kind in ("_buffers", "_parameters"))
