"""The Dynamo backend: takes a captured graph through the stages and hands the result to the next compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx
from torch import nn

from . import pipeline
from .plan import Plan
from .profile import Profile
from .repeat import Artefacts, compile_repeated

if TYPE_CHECKING:
    from .probe.observe import Recorder

__all__ = ["Backend", "PlanReady", "blank", "layer_table"]

Compiler = Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]


class PlanReady(Exception):
    """Ends a capture that was made for its plan only."""

    def __init__(self, plan: Plan) -> None:
        super().__init__("the plan is ready")
        self.plan = plan


def layer_table(model: nn.Module) -> dict[str, int]:
    """Module path of each transformer block -> layer index, over the model's lists of blocks in order.

    A list of blocks is a ModuleList directly on the model whose elements contain an attention module.
    """
    table: dict[str, int] = {}
    for name, child in model.named_children():
        if not isinstance(child, nn.ModuleList) or not len(child):
            continue
        if all(any("attn" in n or "attention" in n for n, _ in block.named_modules()) for block in child):
            for index in range(len(child)):
                table[f"{name}.{index}"] = len(table)
    return table


def compiler(backend: str | Callable[..., Any] | Mapping[str, Any]) -> Compiler | None:
    """What torch.compile would call for `backend`; None for "eager".

    Args:
        backend: a name, a callable (graph module, inputs) -> callable, or a mapping of torch.compile's own keywords
            "backend", "mode" and "options".

    Raises:
        ValueError: an unknown name or keyword; the message lists what there is.
    """
    options: dict[str, Any] = (
        {"backend": backend} if not isinstance(backend, Mapping) else {"backend": "inductor", **backend}
    )
    unknown = options.keys() - {"backend", "mode", "options"}
    if unknown:
        raise ValueError(f"backend: expected the keys 'backend', 'mode', 'options', found {sorted(unknown)}")
    name = options["backend"]
    if name == "eager":
        return None
    if callable(name) and not options.get("mode") and not options.get("options"):
        return name  # type: ignore[no-any-return]
    if isinstance(name, str) and name not in torch._dynamo.list_backends(exclude_tags=()):
        raise ValueError(f"backend: expected 'eager' or one of {torch._dynamo.list_backends()}, found {name!r}")
    wrapper = torch._TorchCompileInductorWrapper if name == "inductor" else None
    if wrapper is not None:
        return wrapper(options.get("mode"), options.get("options"), False)
    return torch._TorchCompileWrapper(name, options.get("mode"), options.get("options"), False)


def blank(output: Any) -> Callable[..., Any]:
    """Stands in for a captured part whose numbers nobody wants: zeros of the shapes that it would return.

    Args:
        output: what the part's output node returns, a structure of nodes.
    """

    def zeros(node: fx.Node) -> Any:
        value = node.meta.get("example_value")
        if not isinstance(value, torch.Tensor):
            return value
        shape = [n if isinstance(n, int) else 1 for n in value.shape]
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(shape)

    def run(*inputs: Any) -> Any:
        return fx.node.map_arg(output, zeros)

    return run


class Backend:
    """A torch.compile backend for one model and profile. `plans` collects one plan for each captured shape.

    prefix: path of the module that it captures, "" for the whole model; a part may hold no site at all. size, shapes:
    what the call that is being captured says about its latents, see `pipeline.PassContext`.
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
        prefix: str = "",
    ) -> None:
        self.profile, self.layers, self.inner = profile, layers, inner
        self.attention, self.verify, self.plan_only, self.recorder = attention, verify, plan_only, recorder
        self.prefix = prefix
        self.plans: list[Plan] = []
        self.size: tuple[int, int, int] | None = None
        self.shapes: tuple[tuple[int, ...], ...] = ()
        self.whole = self
        self.artefacts = Artefacts()

    def part(self, path: str) -> Backend:
        """A backend that treats one module of the model as this one treats the whole."""
        made = Backend(
            self.profile, self.layers, self.inner, self.attention, self.verify, self.plan_only, self.recorder, path
        )
        made.whole, made.artefacts = self, self.artefacts
        return made

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        # Dynamo looks at its own graph again after we return, so only a copy may change.
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(gm.graph, copies)
        graph.output(output)
        for old, new in copies.items():
            if hasattr(old, "_dynamo_source"):
                new._dynamo_source = old._dynamo_source  # type: ignore[attr-defined]
        root = fx.GraphModule(gm, graph)  # holds what regions bring along; gm is Dynamo's
        stamped = pipeline.flatten(graph, root, self.layers) > 0
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        tensors = [t for t in example_inputs if isinstance(t, torch.Tensor)]
        context = pipeline.PassContext(
            profile=self.profile,
            inputs=dict(zip(placeholders, example_inputs, strict=True)),
            layers=self.layers,
            attention=self.attention,
            device=tensors[0].device if tensors else torch.device("cpu"),
            verify=self.verify,
            recorder=self.recorder.name if self.recorder is not None else None,
            prefix=self.prefix,
            size=self.whole.size,
            shapes=self.whole.shapes,
        )
        plan = pipeline.analyse(graph, context)
        self.plans.append(plan)
        if self.plan_only and self.prefix:
            return blank(output)
        if self.plan_only:
            raise PlanReady(plan)
        if self.recorder is not None:
            self.recorder.expect(plan)
            pipeline.observe(graph, context)
        elif not plan.rewritten:
            # Within the trained length the model runs exactly as it was captured, bitwise, whatever the backend.
            return fx.GraphModule(root, graph).forward if stamped else gm.forward
        else:
            pipeline.rewrite(graph, context)
        rewritten = fx.GraphModule(root, graph)
        rewritten.meta = dict(gm.meta)
        if self.inner is None:
            return rewritten.forward
        if not isinstance(self.inner, torch._TorchCompileInductorWrapper):
            return self.inner(rewritten, list(example_inputs))  # somebody's own backend sees the graph as it is
        # Blocks of one kind are one compiled piece for all strategies. A module captured alone is a block already.
        blocks = () if self.prefix else (self.layers or None)
        return compile_repeated(rewritten, list(example_inputs), self.inner, self.artefacts, blocks)
