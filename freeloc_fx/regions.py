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
from .errors import CaptureError, FreelocError
from .hooks import inside, leaf_calls, slot
from .plan import Plan, merge

__all__ = ["NO_SINGLE_GRAPH", "Regions", "first_line"]

NO_SINGLE_GRAPH = (Unsupported, UserError, TorchRuntimeError)
"""What Dynamo raises where it cannot capture a function whole."""


class Regions:
    """The blocks of one model, each with a compiled call of its own that is in place only while `run` is running."""

    def __init__(self, model: nn.Module, backend: Backend, why: Exception | str) -> None:
        """
        why: what keeps the model from being one graph.

        Raises:
            CaptureError: the model has no list of transformer blocks to capture one by one.
        """
        self.model, self.backend = model, backend
        self.lock = RLock()
        # Blocks share one code object. A backend object each keeps Dynamo from running the first block's graph, which
        # carries that layer's strategy, for all of them.
        self.blocks = [(model.get_submodule(path), backend.part(path)) for path in backend.layers]
        self.compiled: dict[tuple[int, bool], Callable[..., Any]] = {}
        if not self.blocks:
            raise CaptureError(
                f"{type(model).__name__} cannot be captured as one graph and has no list of transformer blocks to "
                f"capture one by one: {first_line(why)}"
            ) from (why if isinstance(why, Exception) else None)
        self.leaves = leaf_calls((part.prefix, block) for block, part in self.blocks)

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, Plan | None]:
        """The model's result, and the plan of what was captured in this call (None: every block had been seen).

        Raises:
            CaptureError: a block has no single graph either, or no block holds an attention that can be planned.
        """
        before = [len(part.plans) for _, part in self.blocks]
        with self.lock, self._compiled():
            result = self.model._call_impl(*args, **kwargs)
        new = [plan for (_, part), n in zip(self.blocks, before, strict=True) for plan in part.plans[n:]]
        return result, merge(new) if new else None

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        slots = [(*slot(module), part, index) for index, (module, part) in enumerate(self.blocks)]
        plain = [getattr(owner, name) for owner, name, _, _ in slots]
        try:
            for (owner, name, part, index), function in zip(slots, plain, strict=True):
                block = self.blocks[index][0]
                setattr(owner, name, _guarded(part.prefix, block, self._call(index, owner, name, function, part)))
            with self.leaves:
                yield
        finally:
            for (owner, name, _, _), function in zip(slots, plain, strict=True):
                setattr(owner, name, function)

    def _call(self, index: int, owner: Any, name: str, function: Any, part: Backend) -> Callable[..., Any]:
        """A block's compiled call; one for the module as it is and one for what its outermost hook runs."""
        whole = name == "_compiled_call_impl"
        key = (index, whole)
        if key not in self.compiled:
            inner = owner._call_impl if whole else function
            self.compiled[key] = torch.compile(inner, backend=part, fullgraph=True, dynamic=False)
        return self.compiled[key]


def _guarded(path: str, block: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except NO_SINGLE_GRAPH as error:
            carried = ", ".join(f"{p} ({', '.join(hooks)})" for p, _, hooks in inside(block))
            hooked = f"; hooks inside it: {carried}" if carried else ""
            raise CaptureError(f"{path} cannot be captured as one graph: {first_line(error)}{hooked}") from error
        except BackendCompilerFailed as failure:
            if isinstance(failure.inner_exception, FreelocError):
                raise failure.inner_exception from None
            raise

    return run


def first_line(error: Exception | str) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
