"""Graphs as text, on request: set FREELOC_DUMP to a folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch.fx as fx

from freeloc_fx.graph.records import record

__all__ = ["dump"]


def dump(graph: fx.Graph, name: str) -> None:
    """Write a graph to $FREELOC_DUMP/NNN_name.txt, numbered on from what lies there; nothing where it is not set.

    Args:
        graph: to write, one node a line, with its record.
        name: of the pass that has just run, or "capture".
    """
    folder = os.environ.get("FREELOC_DUMP")
    if not folder:
        return
    lines = []
    for node in graph.nodes:
        site = record(node)
        lines.append(node.format_node() + (f"  # {site}" if site else "") if node.op != "output" else str(node.args))
    Path(folder).mkdir(parents=True, exist_ok=True)
    taken = [int(n) for file in Path(folder).glob("*_*.txt") if (n := file.name.partition("_")[0]).isdecimal()]
    file = Path(folder) / f"{max(taken, default=-1) + 1:03d}_{name}.txt"
    file.write_text("\n".join(map(str, lines)) + "\n", encoding="utf-8")
