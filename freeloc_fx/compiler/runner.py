"""Runs passes over one captured graph: each is timed, dumped, and checked, and the checks name it in their errors."""

from __future__ import annotations

import copy
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx

from freeloc_fx.errors import CaptureError, FreelocError
from freeloc_fx.graph.capture import Capture, Pass, copied

from .dump import dump
from .verify import verify_graph

__all__ = ["PassRun", "Runner", "name_of"]

log = logging.getLogger("freeloc_fx")


@dataclass(frozen=True)
class PassRun:
    """One pass over one graph.

    Args:
        name: of the pass.
        matched: how many sites (or calls, or pieces) it found; None where it was switched off.
        seconds: that it took.
        operations: operation -> (count before, count after), for those whose count changed.
    """

    name: str
    matched: int | None
    seconds: float = 0.0
    operations: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.matched is None:
            return f"{self.name}: switched off"
        changed = [f"{k} {a} -> {b} ({b - a:+d})" for k, (a, b) in sorted(self.operations.items())]
        return (
            f"{self.name}: {self.matched} matched, {self.seconds:.3f} s, operations {', '.join(changed) or 'as before'}"
        )


class Runner:
    """Takes one captured graph through passes.

    Args:
        graph: changed in place.
        capture: what the passes read beside it.
        verify: after each pass also propagate shapes and dtypes again.
        disabled: names of passes that do not run, for debugging.
    """

    def __init__(
        self, graph: fx.Graph, capture: Capture, *, verify: bool = False, disabled: Collection[str] = ()
    ) -> None:
        self.graph, self.capture, self.verify, self.disabled = graph, capture, verify, frozenset(disabled)
        self.runs: list[PassRun] = []
        dump(graph, "capture")

    def copied(self, root: fx.GraphModule) -> tuple[Runner, fx.GraphModule]:
        """A runner of a copy of the graph, whose passes are noted beside this one's.

        Args:
            root: holds what the graph names.

        Returns:
            The runner, and what holds what its graph names.
        """
        made = copy.copy(self)
        made.graph, made.capture = copied(self.graph, self.capture)
        return made, fx.GraphModule(root, made.graph)

    def run(self, passes: Iterable[Pass]) -> int:
        """Run passes in order.

        Args:
            passes: with all that they need bound.

        Returns:
            How many sites they matched, all together.

        Raises:
            VerificationError: a pass left the graph inconsistent; the message names the pass.
            FreelocError: as a pass raised it; a CaptureError that names the pass for any other exception.
        """
        return sum(self._run(step) for step in passes)

    def _run(self, one: Pass) -> int:
        name = name_of(one)
        if name in self.disabled:
            self._note(PassRun(name, None))
            return 0
        before, started = self._operations(), time.perf_counter()
        try:
            matched = one(self.graph, self.capture)
        except FreelocError:
            raise
        except Exception as error:
            raise CaptureError(
                f"pass {name} failed on the captured graph with {type(error).__name__}: {error}; expected a graph that "
                "it can treat. FREELOC_DUMP=folder writes the graph as the pass found it: please report it"
            ) from error
        seconds, after = time.perf_counter() - started, self._operations()
        verify_graph(self.graph, name, self.verify)
        changed = {k: (before[k], after[k]) for k in after.keys() | before.keys() if after[k] != before[k]}
        self._note(PassRun(name, matched, seconds, changed))
        dump(self.graph, name)
        return matched

    def _operations(self) -> Counter[str]:
        return Counter(_operation(node) for node in self.graph.nodes if node.op not in ("placeholder", "output"))

    def _note(self, run: PassRun) -> None:
        self.runs.append(run)
        log.info("%s", run)


def _operation(node: fx.Node) -> str:
    """What a node does, in a word: "linear", "chunk", "freeloc_fx.long_attention.default"."""
    text = str(node.target)
    return str(getattr(node.target, "__name__", text)) if text.startswith("<") else text


def name_of(one: Callable[..., Any]) -> str:
    """A pass's name, however much is bound to it."""
    while isinstance(one, functools.partial):
        one = one.func
    return str(one.__name__)
