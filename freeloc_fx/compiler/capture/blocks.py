"""Models that cannot be captured as one graph: each transformer block is captured on its own.

A forward pass that looks at its data (which text tokens are padding?) outside the blocks has no single graph, but an
attention and its RoPE lie whole inside one block. The code between the blocks runs as it is.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import COMPILED_CALL, dynamo_errors, function_modes, plain_call
from freeloc_fx.compat_diffusers import call_inside_hooks
from freeloc_fx.compiler.backend import Backend
from freeloc_fx.errors import CaptureError, FreelocError
from freeloc_fx.graph.capture import CallFacts
from freeloc_fx.planning.plan import Plan, check_landed, merge

from .facts import check_captured, facts, graphs_run
from .hooks import Leaves, inside
from .swapped import swapped
from .told import holds_lengths, tell, with_lengths, worth_telling

__all__ = ["BlockByBlock", "first_line"]


class BlockByBlock:
    """The blocks of one model, each with a compiled call of its own that is in place only while `run` is running.

    Args:
        model: whose blocks are captured.
        backend: of the whole model.
        why: what keeps the model from being one graph.

    Raises:
        CaptureError: the model has no list of transformer blocks to capture one by one.
    """

    def __init__(self, model: nn.Module, backend: Backend, why: Exception | str) -> None:
        self.model, self.backend = model, backend
        self.reason = first_line(why)
        # Blocks share one code object. A backend object each keeps Dynamo from running the first block's graph, which
        # carries that layer's strategy, for all of them.
        self.blocks = [(model.get_submodule(path), backend.block(path)) for path in backend.layers]
        self.compiled: dict[tuple[int, bool, bool], Callable[..., Any]] = {}
        if not self.blocks:
            raise CaptureError(
                f"{type(model).__name__} cannot be captured as one graph and has no list of transformer blocks to "
                f"capture one by one: {reason(why)}"
            ) from (why if isinstance(why, Exception) else None)
        self.leaves = Leaves((part.prefix, block) for block, part in self.blocks)
        self.thread: int | None = None
        # Blocks that have no single graph but with values in place of some tensors.
        self.told: set[str] = set()
        # Calls that came to a block past its compiled call: of its forward, or from another thread.
        self.past = 0
        self._forwards: dict[int, tuple[Any, Callable[..., Any]]] = {}
        # By call: plans of blocks that were captured and not yet looked at together, since the call had failed.
        self.pending: dict[CallFacts, dict[int, list[Plan]]] = {}

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, Plan | None]:
        """Call the model. One thread at a time; whoever shares the blocks in another thread meets them as they were.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            The model's result, and the plan of what was captured in this call (None: every block had been seen).

        Raises:
            CaptureError: a block has no single graph either, or no block holds an attention that can be planned.
            PlanError: the profile gives a strategy to a block that holds no video self-attention.
        """
        ran, past = graphs_run(), self.past
        pending = self.pending.setdefault(facts(), {})
        before = [part.plans.total for _, part in self.blocks]
        try:
            with self._in_place():
                result = plain_call(self.model)(*args, **kwargs)
        finally:
            for index, (_, part) in enumerate(self.blocks):
                if made := part.plans.since(before[index]):
                    pending.setdefault(index, []).extend(made)
        if not self.backend.plan_only and (self.past > past or not self._seen()):
            check_captured(type(self.model).__name__, ran)
        merged = self._merged(pending) if pending else None
        self.pending.pop(facts(), None)  # not where that raised: the next call like this one raises again
        return result, merged

    def _merged(self, new: Mapping[int, Sequence[Plan]]) -> Plan | None:
        """One plan of the blocks that were captured in a call; what the profile asks of blocks must be met by them.

        A block may leave its attention out in some calls, as in skip-layer guidance: None where all of them have.
        """
        made = [plan for index in sorted(new) for plan in new[index]]
        if not any(plan.sites for plan in made) and self._seen():
            return None
        merged = merge(made)
        if all(part.plans for _, part in self.blocks):
            ever = [plan for _, part in self.blocks for plan in part.plans]
            check_landed(merge([merged, *ever]), self.backend.profile)
        return merged

    def _seen(self) -> bool:
        """Whether any call has come by an attention so far.

        After such a call, one in which no block is called at all is what it seems: a cache that skips them all.
        """
        plans = (plan for part in (self.backend, *(part for _, part in self.blocks)) for plan in part.plans)
        return any(plan.sites for plan in plans)

    def _watched(self, index: int, block: nn.Module) -> Callable[..., Any]:
        """The forward of a block whose whole call is compiled: it notices a call that comes past that."""
        plain = block.forward
        known = self._forwards.get(index)
        if known is None or known[0] != plain:

            def forward(*args: Any, **kwargs: Any) -> Any:
                if not torch.compiler.is_compiling():
                    self.past += 1
                return plain(*args, **kwargs)

            # One function for as long as it leads to the same: Dynamo's guards look at it.
            known = self._forwards[index] = plain, forward
        return known[1]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        with ExitStack() as put:
            put.callback(setattr, self, "thread", self.thread)  # a call within a call
            self.thread = threading.get_ident()
            for index, (block, part) in enumerate(self.blocks):
                owner, name = call_inside_hooks(block)
                if name == COMPILED_CALL:
                    put.enter_context(swapped(block, "forward", self._watched(index, block)))
                inner = plain_call(owner) if name == COMPILED_CALL else getattr(owner, name)
                call = partial(self._call, index, inner, name, part)
                put.enter_context(swapped(owner, name, self._guarded(part.prefix, block, call, owner, name)))
            with self.leaves.in_place():
                yield

    def _call(
        self, index: int, inner: Callable[..., Any], name: str, part: Backend, lengths: bool
    ) -> Callable[..., Any]:
        """A block's compiled call; one for the module as it is and one for what its outermost hook runs.

        Args:
            index: of the block.
            inner: the call as it is without us.
            name: of the call in its owner.
            part: the backend of the block.
            lengths: whether it is called with `Lengths`, and for the model with tensors of them.
        """
        whole = name == COMPILED_CALL
        key = (index, whole, lengths)
        if key not in self.compiled:

            def with_tensors(*args: Any, **kwargs: Any) -> Any:
                given, named = with_lengths(args, kwargs)
                return inner(*given, **named)

            called = with_tensors if lengths else inner
            self.compiled[key] = torch.compile(called, backend=part, fullgraph=True, dynamic=False)
        return self.compiled[key]

    def _guarded(
        self, path: str, block: nn.Module, call: Callable[[bool], Callable[..., Any]], owner: Any, name: str
    ) -> Callable[..., Any]:
        """A compiled call whose errors are ours, for the thread that runs the model only.

        Args:
            path: of the block.
            block: itself.
            call: gives the compiled call, with `Lengths` in its arguments or without.
            owner: what holds the call.
            name: of the call in its owner.
        """
        plain = plain_call(owner) if name == COMPILED_CALL else getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                self.past += 1
                return plain(*args, **kwargs)
            before = graphs_run()
            if path in self.told:
                args, kwargs = tell(args, kwargs)
            try:
                try:
                    output = call(holds_lengths(args, kwargs))(*args, **kwargs)
                except dynamo_errors("NO_SINGLE_GRAPH"):
                    if path in self.told or not worth_telling(args, kwargs):
                        raise
                    told, named = tell(args, kwargs)
                    output = call(holds_lengths(told, named))(*told, **named)
                    self.told.add(path)
                check_captured(path, before)
                return output
            except dynamo_errors("NO_SINGLE_GRAPH") as error:
                carried = ", ".join(f"{p} ({', '.join(hooks)})" for p, _, hooks in inside(block))
                hooked = f"; hooks inside it: {carried}" if carried else ""
                modes = "".join(f"; within {mode}, a TorchFunctionMode" for mode in function_modes())
                raise CaptureError(f"{path} cannot be captured as one graph: {reason(error)}{hooked}{modes}") from error
            except dynamo_errors("BACKEND_FAILED") as failure:
                inner = getattr(failure, "inner_exception", None)
                if isinstance(inner, FreelocError):
                    raise inner from None
                raise

        return run


_CALLED = re.compile(r"Skip calling function `<function ([\w.<>]+)|call to a(?:n unsupported)? .*?`([\w.]+)`")

_BUILTIN = re.compile(r"builtin operator `(\w+)`")
"""What Dynamo says of Python's own functions that it cannot follow, such as `open`."""

_RAISED = re.compile(r"raised exception (\w+\(.*\))")
"""What Dynamo adds where the code that it traces raises something."""


_OPERATOR = re.compile(r"unsupported operator: ([\w.]+)")
"""What Dynamo says of an operator that has no fake kernel."""

_PLACE = re.compile(r'^\s*File "([^"]+)", line (\d+), in (\S+)$', re.MULTILINE)
"""One call of the code that Dynamo was following."""


def reason(error: Exception | str) -> str:
    """What an error of Dynamo's says, with what the traced code raised, or the function or operator that could not be
    looked into and what lifts that; and the place.

    Args:
        error: whose first line says what happened in general.
    """
    said = first_line(error)
    _, _, followed = str(error).partition("from user code:")
    calls = _PLACE.findall(followed)
    place = "" if not calls else f", at {PurePath(calls[-1][0]).name}:{calls[-1][1]} ({calls[-1][2]})"
    for pattern, before in ((_RAISED, ": "), (_OPERATOR, ": operator ")):
        if (match := pattern.search(str(error))) is not None:
            return f"{said}{before}{match[1]}{place}"
    found = _CALLED.search(str(error))
    if found is None:
        builtin = _BUILTIN.search(str(error))
        return said + (f": {builtin[1]}" if builtin else "") + place
    return (
        f"{said}: {found[1] or found[2]}{place}. Where that is an attention of another package, "
        "set_attention_backend('native') leaves it out in diffusers, and elsewhere the switch that chose it; where "
        "somebody's torch.compiler.disable stands around it, without that"
    )


def first_line(error: Exception | str) -> str:
    """What an error says in its first line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
