"""The gate in front of a transformed model's own forward."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from .swapped import ABSENT, swapped

__all__ = ["GATE", "Gate", "gate_of"]

GATE = "_freeloc_gate"
"""Attribute of a transformed model that holds its gate."""


class Gate:
    """Sends every call of a model's forward through our own, but for those that our own makes.

    Dynamo steps over a module's compiled call into its forward, so somebody's torch.compile around a transformed model
    would run it untransformed without a word; so would a direct call of forward.

    Args:
        result: the transformed model; its forward is replaced.

    Attributes:
        call: our own, inside of the hooks that PyTorch runs around a call of the model and not around one of forward.
    """

    def __init__(self, result: nn.Module) -> None:
        self.own = vars(result).get("forward", ABSENT)  # of a hook that was there before us
        self.running = False
        self.result = weakref.ref(result)
        self.call: Callable[..., Any] | None = None
        plain = result.forward

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return plain(*args, **kwargs)
            assert self.call is not None, "a gate is made by attach, which sets its call"
            return self.call(*args, **kwargs)

        self.forward = forward
        result.__dict__["forward"] = forward

    @contextmanager
    def open(self) -> Iterator[None]:
        """Context: the model's own forward is in place, as a capture sees it; under later hooks ours lets through."""
        result = self.result()
        with ExitStack() as put:
            if result is not None and vars(result).get("forward") is self.forward:
                put.enter_context(swapped(result, "forward", self.own))
            put.callback(setattr, self, "running", self.running)  # a call within a call
            self.running = True
            yield


def gate_of(result: nn.Module) -> Gate:
    """The gate of a model, made when it is first asked for."""
    known: Gate | None = vars(result).get(GATE)
    if known is None or known.result() is not result:
        if known is not None and vars(result).get("forward") is known.forward:
            del result.__dict__["forward"]  # a shallow copy of a transformed model
        known = result.__dict__[GATE] = Gate(result)
    return known
