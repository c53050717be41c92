"""The Dynamo backend: takes a captured graph through the stages and hands the result to the next compiler."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from freeloc_fx.attention.observed import Recorder
from freeloc_fx.attention.registry import Specs
from freeloc_fx.attention.running import Checked
from freeloc_fx.compat import copy_source, is_inductor, is_region_call
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.shapes import value_of
from freeloc_fx.planning.plan import Plan
from freeloc_fx.planning.profile import Profile

from . import pipeline
from .capture.facts import facts, noted
from .inner import Compiler
from .repeat import Artefacts, compile_repeated
from .runner import PassRun, Runner

__all__ = ["Backend", "PlanReady", "blank"]


class PlanReady(Exception):
    """Ends a capture that was made for its plan only."""

    def __init__(self, plan: Plan) -> None:
        super().__init__("the plan is ready")
        self.plan = plan


def blank(output: Any) -> Callable[..., Any]:
    """Stands in for a captured part whose numbers nobody wants: zeros of the shapes that it would return.

    Args:
        output: what the part's output node returns, a structure of nodes.
    """

    def zeros(node: fx.Node) -> Any:
        value = value_of(node)
        if not isinstance(value, torch.Tensor):
            return value
        shape = [n if isinstance(n, int) else 1 for n in value.shape]
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(shape)

    def run(*inputs: Any) -> Any:
        return fx.node.map_arg(output, zeros)

    return run


class Backend:
    """A torch.compile backend for one model and profile.

    Args:
        profile: strategies and settings.
        layers: module path of each transformer block -> layer index.
        inner: the next compiler; None to run the rewritten graph as it is.
        attention: "auto" or a lowering's name.
        verify: check shapes and dtypes after each pass, and each long attention against the reference.
        plan_only: end each capture once its plan is made, the graph rewritten and nothing compiled.
        recorder: watch the attentions instead of rewriting them.
        model: what is captured, to tell whose weights a region was given.
        disabled: names of passes that do not run.

    Attributes:
        plans: one for each captured graph.
        passes: the passes that ran over each captured graph.
        prefix: path of the module that it captures, "" for the whole model; a part may hold no site at all.
        artefacts: compiled pieces.
        specs: what the graphs name.
        checked: what was compared with the reference.
        choices: which lowering was the quickest, where `attention` is "auto" on a CPU.
    """

    def __init__(
        self,
        profile: Profile,
        layers: Mapping[str, int],
        inner: Compiler | None,
        attention: str = "auto",
        verify: bool = False,
        plan_only: bool = False,
        recorder: Recorder | None = None,
        model: nn.Module | None = None,
        disabled: Collection[str] = (),
    ) -> None:
        self.profile, self.layers, self.inner = profile, layers, inner
        self.attention, self.verify, self.plan_only, self.recorder = attention, verify, plan_only, recorder
        # Dynamo keeps the backend for as long as it keeps the capture; holding the model would keep its weights, too.
        self._model = None if model is None else weakref.ref(model)
        self.disabled = disabled
        self.prefix = ""
        self.plans: list[Plan] = []
        self.passes: list[list[PassRun]] = []
        self.artefacts, self.specs, self.checked = Artefacts(), Specs(), Checked()
        self.choices: dict[Hashable, str] = {}

    @property
    def model(self) -> nn.Module | None:
        """What is captured, while it lives."""
        return None if self._model is None else self._model()

    def block(self, path: str) -> Backend:
        """A backend that treats one block of the model as this one treats the whole; it shares what this one keeps."""
        made = copy.copy(self)
        made.prefix, made.plans = path, []
        return made

    def with_compiler(self, inner: Compiler | None) -> Backend:
        """This backend with another next compiler and nothing compiled; it goes on with the same plans."""
        made = copy.copy(self)
        made.inner = inner
        made.artefacts, made.specs, made.checked = Artefacts(), Specs(), Checked()
        return made

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return noted(self._compiled(gm, example_inputs), self.prefix)

    def _compiled(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        # Dynamo looks at its own graph again after we return, so only a copy may change.
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(gm.graph, copies)
        graph.output(output)
        for old, new in copies.items():
            copy_source(old, new)
        root = fx.GraphModule(gm, graph)  # holds what regions bring along; gm is Dynamo's
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        tensors = [t for t in example_inputs if isinstance(t, torch.Tensor)]
        capture = Capture(
            inputs=dict(zip(placeholders, example_inputs, strict=True)),
            layers=self.layers,
            device=tensors[0].device if tensors else torch.device("cpu"),
            prefix=self.prefix,
            call=facts(),
        )
        stamped = any(map(is_region_call, graph.nodes))
        runner = Runner(graph, capture, verify=self.verify, disabled=self.disabled)
        self.passes.append(runner.runs)
        plan = pipeline.analyse(runner, root, self.model, self.profile)
        self.plans.append(plan)
        if self.plan_only:
            if plan.rewritten:
                pipeline.rewrite(runner, plan, attention=self.attention, verify=self.verify, specs=self.specs)
            if self.prefix:
                return blank(output)
            raise PlanReady(plan)
        if self.recorder is not None:
            self.recorder.expect(plan)
            pipeline.observe(runner, plan, self.recorder.name)
        elif not plan.rewritten:
            # Within the trained length the model runs exactly as it was captured, bitwise, whatever the backend.
            return fx.GraphModule(root, graph).forward if stamped else gm.forward
        else:
            pipeline.rewrite(runner, plan, attention=self.attention, verify=self.verify, specs=self.specs)
        rewritten = fx.GraphModule(root, graph)
        rewritten.meta = dict(gm.meta)
        rewritten.meta["freeloc_specs"] = self.specs  # they live as long as the graph that names them
        if self.inner is None:
            return rewritten.forward
        if not is_inductor(self.inner):
            return self.inner(rewritten, list(example_inputs))  # somebody's own backend sees the graph as it is
        # Blocks of one kind are one compiled piece for all strategies. A module captured alone is a block already.
        blocks = () if self.prefix else (self.layers or None)
        return compile_repeated(
            rewritten,
            list(example_inputs),
            self.inner,
            self.artefacts,
            blocks,
            runner=runner,
            specs=self.specs,
        )
