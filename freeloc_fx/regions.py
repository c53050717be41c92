"""Models that cannot be captured as one graph: each transformer block is captured on its own.

A forward pass that looks at its data (which text tokens are padding?) outside the blocks has no single graph, but an
attention and its RoPE lie whole inside one block. The code between the blocks runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, TorchRuntimeError, Unsupported, UserError

from .backend import Backend
from .errors import CaptureError, FreelocError, TransformError
from .plan import Plan, merge

__all__ = ["NO_SINGLE_GRAPH", "Regions"]

NO_SINGLE_GRAPH = (Unsupported, UserError, TorchRuntimeError)
"""What Dynamo raises where it cannot capture a function whole."""


class Regions:
    """The blocks of one model, each with a compiled call of its own that is in place only while `run` is running."""

    def __init__(self, model: nn.Module, backend: Backend, why: Exception) -> None:
        """
        Raises:
            CaptureError: the model has no list of transformer blocks to capture one by one.
        """
        self.model, self.backend = model, backend
        self.lock = RLock()
        self.blocks: list[tuple[nn.Module, Backend, Callable[..., Any]]] = []
        for path in backend.layers:
            module = model.get_submodule(path)
            part = backend.part(path)
            # Blocks share one code object. A backend object each keeps Dynamo from running the first block's graph,
            # which carries that layer's strategy, for all of them.
            call = torch.compile(module._call_impl, backend=part, fullgraph=True, dynamic=False)
            self.blocks.append((module, part, call))
        if not self.blocks:
            raise CaptureError(
                f"{type(model).__name__} cannot be captured as one graph and has no list of transformer blocks to "
                f"capture one by one: {_first_line(why)}"
            ) from why

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, Plan | None]:
        """The model's result, and the plan of what was captured in this call (None: every block had been seen).

        Raises:
            CaptureError: a block has no single graph either, or no block holds an attention that can be planned.
        """
        before = [len(part.plans) for _, part, _ in self.blocks]
        with self.lock, self._compiled():
            result = self.model._call_impl(*args, **kwargs)
        new = [plan for (_, part, _), n in zip(self.blocks, before, strict=True) for plan in part.plans[n:]]
        return result, merge(new) if new else None

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        for module, _, _ in self.blocks:
            if module._compiled_call_impl is not None:
                raise TransformError(f"a {type(module).__name__} is already compiled; transform the uncompiled model")
        try:
            for module, part, call in self.blocks:
                module._compiled_call_impl = _guarded(part.prefix, call)
            yield
        finally:
            for module, _, _ in self.blocks:
                module._compiled_call_impl = None


def _guarded(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except NO_SINGLE_GRAPH as error:
            raise CaptureError(f"{path} cannot be captured as one graph: {_first_line(error)}") from error
        except BackendCompilerFailed as failure:
            if isinstance(failure.inner_exception, FreelocError):
                raise failure.inner_exception from None
            raise

    return run


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
