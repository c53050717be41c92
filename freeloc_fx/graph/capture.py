"""What was captured, as passes read it beside the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.compat import copy_source

from .records import record, stand_in, write, write_stand_in

__all__ = ["CallFacts", "Capture", "Pass", "copied"]


@dataclass(frozen=True)
class CallFacts:
    """What a call of a model says about its latents.

    Args:
        size: latent frames, height and width, where the model is told them as integers; else None.
        shapes: of the five-dimensional tensors among the call's arguments.
        grid: token frames, rows and columns that the latents have in the patches that the model's configuration or
            patch embedding names; None where neither does.
        ranks: processes of torch.distributed, over which somebody may have shared out the tokens.
    """

    size: tuple[int, int, int] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    grid: tuple[int, int, int] | None = None
    ranks: int = 1


@dataclass(frozen=True)
class Capture:
    """The circumstances of one captured graph.

    Args:
        inputs: value of each placeholder of the graph.
        layers: module path of each transformer block ("blocks.3") -> layer index.
        device: where the attention runs.
        prefix: path of the module that was captured, where it is not the whole model.
        call: what the call that was captured says about its latents.
    """

    inputs: Mapping[fx.Node, Any]
    layers: Mapping[str, int]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    prefix: str = ""
    call: CallFacts = field(default_factory=CallFacts)

    def layer_of(self, path: str, ordinal: int) -> int:
        """Layer index of a module path.

        Args:
            path: module path of a site, "blocks.3.attn1".
            ordinal: the place of the site's block among those of the graph that hold an attention, which is the answer
                where the path lies in no known list of blocks.

        Returns:
            The layer index, from 0.
        """
        found = self._layer(path)
        return ordinal if found is None else found

    def is_in_layer(self, path: str) -> bool:
        """Whether a module path lies in a known list of blocks.

        Args:
            path: of a module in what was captured.
        """
        return self._layer(f"{self.prefix}.{path}" if self.prefix else path) is not None

    def _layer(self, path: str) -> int | None:
        names = path.split(".")
        found = (self.layers.get(".".join(names[:length])) for length in range(len(names), 0, -1))
        return next((layer for layer in found if layer is not None), None)


def copied(graph: fx.Graph, capture: Capture) -> tuple[fx.Graph, Capture]:
    """An analysed graph and its circumstances once more, to be rewritten in another way.

    Args:
        graph: stays as it is.
        capture: its circumstances.

    Returns:
        A graph of other nodes with the same records, and its circumstances.
    """
    made = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    made.output(made.graph_copy(graph, nodes))
    for old, new in nodes.items():
        copy_source(old, new)
        site = record(new)
        if site is not None:
            mask = None if site.mask is None else nodes[site.mask]
            write(new, mask=mask)
        if (made_for := stand_in(new)) is not None:
            write_stand_in(new, made_for.moved(nodes))
    inputs = {nodes[node]: value for node, value in capture.inputs.items()}
    return made, replace(capture, inputs=inputs)


Pass = Callable[[fx.Graph, Capture], int]
"""A pass with all that it needs bound: it changes the graph or its records, and returns how many sites it matched."""
