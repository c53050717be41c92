"""The Dynamo backend: takes a captured graph through the stages and hands the result to the next compiler."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from freeloc_fx.attention.observed import Recorder
from freeloc_fx.attention.registry import Specs
from freeloc_fx.attention.running import Checked
from freeloc_fx.compat import copy_source, is_inductor, is_region_call
from freeloc_fx.errors import TimelineError
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import AttentionSite, sites, values_read
from freeloc_fx.graph.shapes import value_of
from freeloc_fx.graph.sharding import Adopted
from freeloc_fx.graph.table_inputs import with_tables
from freeloc_fx.method.timeline import TextForm
from freeloc_fx.planning.plan import Plan
from freeloc_fx.planning.profile import Profile

from . import pipeline
from .capture.facts import facts, noted
from .inner import Compiler
from .listing import Listing, block_lines, block_of
from .newest import Newest
from .positions import ByPositions, KnownPositions
from .repeat import Artefacts, compile_repeated
from .runner import PassRun, Runner
from .stages import Stages, check_compiler

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


def _copied(gm: fx.GraphModule) -> tuple[fx.GraphModule, Any]:
    """A captured graph once more, with what it names, and what its output node returns."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(gm.graph, copies)
    graph.output(output)
    for old, new in copies.items():
        copy_source(old, new)
    return fx.GraphModule(gm, graph), output


class Backend:
    """A torch.compile backend for one model and profile.

    Args:
        profile: strategies and settings.
        layers: module path of each transformer block -> layer index.
        inner: the next compiler; None to run the rewritten graph as it is.
        attention: "auto" or a lowering's name, or a mapping of one to choices, see `pipeline.Rewriting.read`.
        verify: check shapes and dtypes after each pass, and each long attention against the reference.
        plan_only: end each capture once its plan is made, the graph rewritten and nothing compiled.
        recorder: watch the attentions instead of rewriting them.
        model: what is captured, to tell whose weights a region was given.
        disabled: names of passes that do not run.

    Attributes:
        plans: one for each captured graph and the positions that it was planned for, the newest ones.
        passes: the passes that ran over each captured graph, the newest ones; of all blocks together where the model is
            captured block by block.
        sites: gets the attentions of each graph that is captured for its plan only, where it is a list.
        adopted: what a rank of context parallelism knows of the unsharded model, and the plan that was made of it.
        listings: gets the first rewritten block of each captured graph as text, where it is a list.
        prefix: path of the module that it captures, "" for the whole model; a part may hold no site at all.
        artefacts: compiled pieces.
        how: what the rewriting passes need; what a graph names is of that graph, and goes when it goes.
        checked: what was compared with the reference.
        choices: which lowering was the quickest, where `attention` is "auto" on a CPU.
        positions: values of inputs that position tables, and what else a plan depends on, were read off.
        read: gets those inputs of each graph that is captured for its plan and its attentions.
    """

    def __init__(
        self,
        profile: Profile,
        layers: Mapping[str, int],
        inner: Compiler | None,
        attention: str | Mapping[str, Any] = "auto",
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
        self.plans: Newest[Plan] = Newest()
        self.listings: list[Listing] | None = None
        self.sites: list[AttentionSite] | None = None
        self.adopted: tuple[Plan, Adopted] | None = None
        self.passes: Newest[list[PassRun]] = Newest()
        self.artefacts, self.checked = Artefacts(), Checked()
        self.how = pipeline.Rewriting.read(attention, verify, fused=plan_only or is_inductor(inner))
        self.choices: dict[Hashable, str] = {}
        self.positions = KnownPositions()
        self.read: list[torch.Tensor] = []

    @property
    def model(self) -> nn.Module | None:
        """What is captured, while it lives."""
        return None if self._model is None else self._model()

    def block(self, path: str) -> Backend:
        """A backend that treats one block of the model as this one treats the whole; it shares what this one keeps."""
        made = copy.copy(self)
        made.prefix, made.plans = path, Newest()
        return made

    def for_planning(self) -> Backend:
        """A backend that ends each capture with its plan, and keeps the attentions that it saw on the way."""
        made = copy.copy(self)
        made.plan_only, made.sites, made.plans, made.listings = True, [], Newest(), None
        made.read = []
        return made

    def adopting(self, plan: Plan, adopted: Adopted) -> Backend:
        """A backend for a rank's own share of a call whose unsharded plan is known; it shares what this one keeps."""
        made = copy.copy(self)
        made.adopted = (plan, adopted)
        return made

    def for_texts(self, form: TextForm) -> Backend:
        """This backend for calls with texts over time; it shares what this one keeps.

        Args:
            form: of the texts.
        """
        made = copy.copy(self)
        made.how = replace(self.how, text=form)
        return made

    def with_compiler(self, inner: Compiler | None) -> Backend:
        """This backend with another next compiler and nothing compiled; it goes on with the same plans."""
        made = copy.copy(self)
        made.inner = inner
        made.artefacts, made.checked = Artefacts(), Checked()
        made.how = replace(self.how.anew(), fused=made.plan_only or is_inductor(inner))
        return made

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        made: list[tuple[Plan, Callable[..., Any]]] = []
        run, read = self._captured(gm, example_inputs, made)
        if not read:
            return noted(run)
        kept = _copied(gm)[0]  # Dynamo takes its own apart when it is done

        def again(inputs: Sequence[Any]) -> Callable[..., Any]:
            with torch.no_grad():
                return self._captured(kept, inputs, made)[0]

        return noted(ByPositions(run, example_inputs, read, again, self.positions, made))

    def _captured(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], made: list[tuple[Plan, Callable[..., Any]]]
    ) -> tuple[Callable[..., Any], list[int]]:
        """What runs a captured graph, and by the values of which of its inputs it was planned.

        What was made of the graph for other values stands in `made` beside its plan, and so does this.
        """
        # Dynamo looks at its own graph again after we return, so only a copy may change.
        root, output = _copied(gm)  # holds what regions bring along; gm is Dynamo's
        graph = root.graph
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
        if self.adopted is None:
            plan = pipeline.analyse(runner, root, self.model, self.profile, self.how.text)
        else:
            plan = pipeline.adopt(runner, root, self.model, *self.adopted)
        for other, run in made:
            if plan.same_as(other):
                return run, []
        self.plans.append(plan)
        values = enumerate(zip(placeholders, example_inputs, strict=True))
        read = [place for place, (node, one) in values if values_read(node) and isinstance(one, torch.Tensor)]
        if self.plan_only:
            if self.sites is not None:
                self.sites.extend(site for _, site in sites(graph))
                self.read.extend(example_inputs[place] for place in read)
            elif plan.rewritten:
                self._rewrite(runner, plan, root, self.how)
            if self.prefix:
                return blank(output), []
            raise PlanReady(plan)
        inputs = list(example_inputs)
        acts = self.adopted is not None or self.recorder is not None or self.how.text is not None
        if not plan.rewritten and not acts:
            # Within the trained length the model runs exactly as it was captured, bitwise, whatever the backend.
            pipeline.restore(runner)
            run = fx.GraphModule(root, graph).forward if stamped else gm.forward
        else:
            run = self._acting(runner, plan, root, gm, inputs)
        made.append((plan, run))
        return run, read

    def _acting(
        self, runner: Runner, plan: Plan, root: fx.GraphModule, gm: fx.GraphModule, inputs: list[Any]
    ) -> Callable[..., Any]:
        """What runs an analysed graph in which something is to change."""
        how = replace(self.how, specs=Specs())
        if self.recorder is not None:
            if self.how.text is not None:
                raise TimelineError("timeline: attention is being watched; expected one prompt for the clip meanwhile")
            self.recorder.expect(plan)
            pipeline.observe(runner, plan, self.recorder.name)
            return self._compiled(runner, plan, root, gm, inputs, how.specs)
        if not plan.rewritten and self.adopted is not None:
            pipeline.restore(runner)
            # Its tokens have to be exchanged all the same.
            return self._compiled(runner, plan, root, gm, inputs, how.specs)
        stages = self._rewrite(runner, plan, root, how)
        if len(stages) == 1:
            return self._compiled(*stages[0], gm, inputs, how.specs)
        made = Stages(plan.stage_starts, lambda index, given: self._compiled(*stages[index], gm, given, how.specs))
        made.stage(0, inputs)  # what is wrong with a compiler shows now
        return made

    def _rewrite(
        self, runner: Runner, plan: Plan, root: fx.GraphModule, how: pipeline.Rewriting
    ) -> list[tuple[Runner, Plan, fx.GraphModule]]:
        """The rewritten graph, or one for each stage where strategies that differ by stage are nodes of the graph."""
        if how.lowering(runner.capture.device) != "flex" or len(plan.stage_starts) == 1:
            changed = (site for site in plan.sites if not site.strategy.changes_nothing)
            site = next(changed, plan.sites[0])
            block = block_of(runner.capture, site.path)
            before = [] if self.listings is None else block_lines(runner.graph, block)
            pipeline.rewrite(runner, plan, how, root)
            if self.listings is not None:
                self.listings.append(Listing(block, before, block_lines(runner.graph, block)))
            return [(runner, plan, root)]
        made = []
        for start in plan.stage_starts:
            stage, copy_of = plan.stage(start), runner.copied(root)
            if stage.rewritten or how.text is not None:
                pipeline.rewrite(copy_of[0], stage, how, copy_of[1])
            else:
                pipeline.restore(copy_of[0])
            made.append((copy_of[0], stage, copy_of[1]))
        return made

    def _compiled(
        self, runner: Runner, plan: Plan, root: fx.GraphModule, gm: fx.GraphModule, inputs: list[Any], specs: Specs
    ) -> Callable[..., Any]:
        """What runs a graph that the passes are done with."""
        rewritten = fx.GraphModule(root, runner.graph)
        rewritten.meta = dict(gm.meta)
        rewritten.meta["freeloc_specs"] = specs  # they live as long as the graph that names them
        follows = any(site.strategy.follows_steps for site in plan.sites)
        tables, wrap = with_tables(runner.graph, runner.capture.device, follows)
        check_compiler(runner.graph, runner.capture.device, is_inductor(self.inner))
        if self.inner is None:
            return wrap(rewritten.forward)
        if not is_inductor(self.inner):
            # Somebody's own backend sees the graph as it is.
            return wrap(_holding(self.inner(rewritten, [*inputs, *tables]), specs))
        # Blocks of one kind are one compiled piece for all strategies. A module captured alone is a block already.
        blocks = () if self.prefix else (self.layers or None)
        run = compile_repeated(
            rewritten, [*inputs, *tables], self.inner, self.artefacts, blocks, runner=runner, specs=specs
        )
        return wrap(_holding(run, specs))


def _holding(run: Callable[..., Any], specs: Specs) -> Callable[..., Any]:
    """What a compiler gave, which may keep nothing of its graph, with what that names."""

    def call(*inputs: Any) -> Any:
        return held[0](*inputs)

    held = (run, specs)
    return call
