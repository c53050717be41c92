"""Capture a call for its plan only: nothing is compiled, and nothing runs but what lies between blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import dynamo_errors, plain_call
from freeloc_fx.compiler.backend import Backend, PlanReady
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.capture import CallFacts
from freeloc_fx.planning.plan import Plan

from .blocks import BlockByBlock
from .facts import calling
from .hooks import HOOKED, check_blocks, outside_hooks, without_caches
from .parallel import unsharded
from .trace_once import Marks
from .whole import call_whole, capture_settings

__all__ = ["plan_of_call"]


def plan_of_call(
    model: nn.Module, copied: nn.Module, backend: Backend, known: CallFacts, given: Mapping[str, Any]
) -> Plan:
    """The plan of a call of a model, as one process that holds all tokens would capture it.

    Args:
        model: whose blocks are captured.
        copied: the model, or a shallow copy of it, whose call is captured where the model is one graph.
        backend: for planning only.
        known: what the call says about its latents.
        given: forward's arguments by name.

    Returns:
        The plan.

    Raises:
        CaptureError: no attention that can be rewritten was found; the message collects the reasons.
        FreelocError: as planning raises it.
    """
    blocks = [(path, model.get_submodule(path)) for path in backend.layers]
    with without_caches(model), unsharded(model), torch.no_grad(), capture_settings(backend), calling(known):
        try:
            if check_blocks(blocks):
                _, found = BlockByBlock(model, backend, HOOKED).run(**given)
            else:
                compiled = torch.compile(plain_call(copied), backend=backend, fullgraph=True, dynamic=False)
                capture = partial(call_whole, Marks(block for _, block in blocks), compiled)
                outside_hooks(copied, capture, (), given)
                found = None
        except PlanReady as ready:
            return ready.plan
        except dynamo_errors("NO_SINGLE_GRAPH") as why:
            _, found = BlockByBlock(model, backend, why).run(**given)
    if found is None:
        raise CaptureError(f"{type(model).__name__}: the forward pass ran without anything to capture")
    return found
