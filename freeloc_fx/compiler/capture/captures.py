"""A transformed model's captures, taken anew where something has changed that Dynamo's guards do not see."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import plain_call
from freeloc_fx.compiler.backend import Backend

from .blocks import BlockByBlock
from .shared import SharedCalls
from .signature import Signature, difference, signature
from .texts import Scheduled
from .trace_once import Marks

__all__ = ["Captures", "Taken"]

log = logging.getLogger("freeloc_fx")

KEPT = 16
"""States of a model whose captures are kept, so that a hook or a scale that comes and goes is captured once."""


class Taken:
    """What was captured of a model in one state of its code.

    Args:
        model: transformed.
        blocks: its transformer blocks.
        backend: of its own: Dynamo takes what it captured before wherever code object, guards and backend are the same.

    Attributes:
        marks: of its blocks.
        compiled: its call as one graph.
        scheduled: its calls with texts over time.
        shared: its calls under context parallelism.
        by_block: what runs it block by block; None where it is one graph as far as is known.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module], backend: Backend) -> None:
        self.backend = backend
        self.marks = Marks(blocks)
        self.compiled: Callable[..., Any] = torch.compile(
            plain_call(model), backend=backend, fullgraph=True, dynamic=False
        )
        self.scheduled, self.shared = Scheduled(model, backend), SharedCalls(model, backend)
        self.by_block: BlockByBlock | None = None


class Captures:
    """The captures of one transformed model, by the state of its code.

    Args:
        model: transformed.
        backend: of the model.
    """

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        self.model, self.backend = model, backend
        self._taken: OrderedDict[Signature, Taken] = OrderedDict()
        self._last: Signature | None = None
        self._changes = 0

    def now(self, blocks: Mapping[str, nn.Module]) -> Taken:
        """What belongs to the model as it is.

        Args:
            blocks: path -> transformer block, as the model has them now.

        Returns:
            What was captured when it was like this before; else something new, in which nothing is captured yet.
        """
        state = signature(self.model, blocks)
        if state not in self._taken:
            if self._last is not None:
                self._changes += 1
                say = log.warning if self._changes == KEPT else log.info
                say(
                    "%s: captured again, %s has changed (%d times something has)",
                    type(self.model).__name__, difference(self._last, state), self._changes,
                )  # fmt: skip
            self._taken[state] = Taken(self.model, blocks.values(), copy.copy(self.backend))
            while len(self._taken) > KEPT:
                self._taken.popitem(last=False)
        self._taken.move_to_end(state)
        self._last = state
        return self._taken[state]
