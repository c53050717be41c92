"""Rewritten graphs by the stage of denoising that they are for.

A plan may have another strategy in the first denoising steps. Where a strategy is nodes in the graph, that is another
graph: each is rewritten when the model is captured, compiled when its first step comes, and found again ever after.
Nothing is captured twice. What moves within a stage (rotating anchors) is tables, which are inputs.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.attention.flex import merge
from freeloc_fx.attention.running import running
from freeloc_fx.compat import example_value
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.flex_calls import FLEX
from freeloc_fx.graph.records import record

__all__ = ["Stages", "check_compiler"]


def check_compiler(graph: fx.Graph, device: torch.device, inductor: bool) -> None:
    """Refuse a graph that its compiler cannot take, and warn of one that it makes nothing of.

    Args:
        graph: rewritten.
        device: where its attention runs.
        inductor: whether Inductor compiles it; on CUDA no other makes a kernel of FlexAttention.

    Raises:
        CaptureError: Inductor, on CPU, and FlexAttention calls whose results merge.
    """
    calls = [node for node in graph.nodes if node.target is FLEX]
    if device.type == "cuda" and calls and not inductor:
        batch, heads, tokens, _ = example_value(calls[0].all_input_nodes[0]).shape
        held = 4e-9 * batch * heads * tokens**2
        warnings.warn(
            f"attention='flex' without Inductor holds the scores of all pairs of tokens, {held:.3g} GB in one call; "
            "expected backend='inductor' (or one that hands the graph to Inductor), or attention='auto' or 'calls'",
            stacklevel=2,
        )
    merging = any(node.target is merge.OPERATOR for node in graph.nodes)
    if inductor and device.type == "cpu" and merging:
        paths = [site.path for node in graph.nodes if (site := record(node)) is not None and site.kind == "video"]
        raise CaptureError(
            f"attention='flex' on CPU: site {paths[0]} merges FlexAttention calls by their log-sum-exp, which "
            "Inductor cannot return on CPU; use attention='tiles', or backend='aot_eager' or 'eager'"
        )


class Stages:
    """One callable for all stages.

    Args:
        starts: the denoising step with which each begins, rising from 0.
        compile_stage: compiles the stage of a number for the inputs of a call.
    """

    def __init__(self, starts: Sequence[int], compile_stage: Callable[[int, list[Any]], Callable[..., Any]]) -> None:
        self.starts, self.compile_stage = tuple(starts), compile_stage
        self._made: dict[int, Callable[..., Any]] = {}
        self._lock = RLock()

    def stage(self, index: int, inputs: Sequence[Any]) -> Callable[..., Any]:
        """What runs a stage, compiled when it is first asked for.

        Args:
            index: number of the stage, from 0.
            inputs: of a call.
        """
        with self._lock:
            if index not in self._made:
                self._made[index] = self.compile_stage(index, list(inputs))
            return self._made[index]

    def __call__(self, *inputs: Any) -> Any:
        return self.stage(bisect_right(self.starts, running().step) - 1, inputs)(*inputs)
