"""Compile what repeats once: a captured graph is cut at its transformer blocks, and equal pieces share one artefact.

A model's forward is a few operations, then the same block again and again with other weights, then a few operations.
Weights are inputs of a captured graph, and so, as a number, is what a long attention does: blocks of one kind are the
same piece called with other inputs, whatever their strategies. Each distinct piece is compiled the first time it runs,
on the inputs that it then gets. What is between the blocks runs once a step and as it is, like in diffusers'
compile_repeated_blocks. Compile time grows neither with layers nor with strategies; where an attention is FlexAttention
calls in the graph, it grows with strategies: several calls are cut out of their block, each a piece, so that one
call's copies of q and k are gone before the next one's are made.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.attention import op
from freeloc_fx.attention.registry import Specs
from freeloc_fx.compat import STACK, storage_id, uses_cuda_graphs
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import pieces

from .inner import Compiler
from .pipeline import cut
from .runner import Runner

__all__ = ["Artefacts", "compile_repeated"]


log = logging.getLogger("freeloc_fx")


_KEPT = (STACK, "stack_trace")
"""Node metadata that goes into a piece. The rest holds tensors of the capture, which must not outlive it."""


class Artefacts:
    """Compiled pieces by their content, for one model: shared by layers, by captures, and by blocks captured alone.

    compiled: how many distinct pieces have been compiled.
    """

    def __init__(self) -> None:
        self.compiled = 0
        self._made: dict[Hashable, Callable[..., Any]] = {}
        self._lock = RLock()

    def get(self, key: Hashable, compile_piece: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        with self._lock:
            if key not in self._made:
                self._made[key] = compile_piece()
                self.compiled += 1
            return self._made[key]


class _Same:
    """Equal to itself only; keeps the object alive, so that no other takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def compile_repeated(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    inner: Compiler,
    artefacts: Artefacts | None = None,
    blocks: Collection[str] | None = None,
    *,
    runner: Runner | None = None,
    specs: Specs | None = None,
) -> Callable[..., Any]:
    """Compile a captured graph, each distinct transformer block once. Called like `inner`, by a Dynamo backend.

    For inference, under `no_grad`: a piece is compiled when it first runs. A graph that cannot be cut (see
    `freeloc_fx.passes.cut_blocks`), or whose compiler records CUDA graphs, goes to `inner` whole, and a warning in the
    log of "freeloc_fx" says why.

    Args:
        graph_module: parameters and buffers are placeholders, as torch.compile gives it to a backend; not modified but
            for the labels of pieces on its nodes.
        example_inputs: values of the placeholders.
        inner: the next compiler.
        artefacts: what is compiled already; default nothing.
        blocks: module paths of the blocks, "blocks.0"; none of them for a graph that is a block itself.
            Default: elements of lists of modules that hold an attention.
        runner: runs the pass that cuts; default one of its own.
        specs: those that the graph's long attentions name; needed where there are any.

    Returns:
        A callable of the placeholders' values.
    """
    runner = runner or Runner(graph_module.graph, Capture({}, {}))
    if uses_cuda_graphs(inner):
        log.warning(
            "compiling the whole graph, not block by block: the compiler records CUDA graphs; an attention that is "
            "made in several calls holds more memory then"
        )
        return _with_copied_results(inner(graph_module, list(example_inputs)))
    count = cut(runner, blocks)
    if not count:
        return inner(graph_module, list(example_inputs))
    program = _Program(graph_module, inner, artefacts or Artefacts(), specs or Specs())
    inside = [call.content for call in program.calls if call.compiled]
    blocks_found = len({piece.block for piece, _ in pieces(graph_module.graph) if piece.block})
    log.info("%d blocks in %d pieces, of which %d differ", blocks_found, len(inside), len(set(inside)))
    return program


def _with_copied_results(run: Callable[..., Any]) -> Callable[..., Any]:
    """A recorded graph writes its next results over the last ones, which guidance by a second call still needs."""

    def call(*inputs: Any) -> Any:
        return tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in run(*inputs))

    return call


@dataclass
class _Call:
    """One piece at one place.

    Args:
        content: what the piece computes, up to the names of its nodes.
        make: gives the piece as a module; None once it is compiled.
        inputs: numbers of the slots that it reads.
        outputs: numbers of the slots that it writes.
        free: numbers of the slots that nobody reads afterwards.
        strategies: numbers of its specs, inputs after the others.
        compiled: whether it is compiled, or runs as it is.
        run: what runs it.
    """

    content: Hashable
    make: Callable[[], fx.GraphModule] | None
    inputs: list[int]
    outputs: list[int]
    free: list[int]
    strategies: list[torch.Tensor]
    compiled: bool
    run: Callable[..., Any] | None = None


class _Program:
    """The pieces in order."""

    def __init__(self, module: fx.GraphModule, inner: Compiler, artefacts: Artefacts, specs: Specs) -> None:
        self.inner, self.artefacts = inner, artefacts
        self.specs = specs  # they live as long as the program that names them
        graph = module.graph
        slots: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                slots[node] = len(slots)
        self.placeholders = len(slots)
        output = next(n for n in graph.nodes if n.op == "output")
        runs = pieces(graph)
        where = {node: index for index, (_, run) in enumerate(runs) for node in run}
        last: dict[fx.Node, int] = {}
        for node, index in where.items():
            for source in node.all_input_nodes:
                last[source] = max(last.get(source, -1), index)
        for source in output.all_input_nodes:
            last[source] = len(runs)
        self.calls: list[_Call] = []
        for index, (piece, run) in enumerate(runs):
            given = _given(run)
            made = [node for node in run if last.get(node, -1) > index]
            for node in made:
                slots[node] = len(slots)
            free = [slots[node] for node in given if last[node] == index]
            self.calls.append(
                _Call(
                    _content(module, run, given, made),
                    lambda run=run, given=given, made=made: _piece(module, run, given, made),  # type: ignore[misc]
                    [slots[node] for node in given],
                    [slots[node] for node in made],
                    free,
                    [specs.number(key) for key in _strategies(run)],
                    piece.compiled,
                )
            )
        self.size = len(slots)
        self.result = fx.node.map_arg(output.args[0], lambda node: _Slot(slots[node]))

    def __call__(self, *values: Any) -> Any:
        held: list[Any] = [*values, *([None] * (self.size - self.placeholders))]
        del values
        for call in self.calls:
            inputs = [*(held[slot] for slot in call.inputs), *call.strategies]
            for slot in call.free:
                held[slot] = None
            run = call.run
            if run is None:
                run = call.run = self._compiled(call, inputs)
                call.make = None
            outputs = run(*inputs)
            for slot, value in zip(call.outputs, outputs, strict=True):
                held[slot] = value
        return _filled(self.result, held)

    def _compiled(self, call: _Call, inputs: list[Any]) -> Callable[..., Any]:
        make = call.make
        if make is None:  # another thread was quicker
            assert call.run is not None
            return call.run
        if not call.compiled:
            return make().forward
        key = (_Same(self.inner), call.content, _signature(inputs), _state())
        return self.artefacts.get(key, lambda: self.inner(make(), inputs))


class _Slot(int):
    """A place in the program's list of values, told apart from a number that the graph returns."""


def _filled(structure: Any, held: list[Any]) -> Any:
    if isinstance(structure, _Slot):
        return held[structure]
    if isinstance(structure, (tuple, list)):
        return type(structure)(_filled(item, held) for item in structure)
    if isinstance(structure, dict):
        return {key: _filled(item, held) for key, item in structure.items()}
    return structure


_PLACE = 3
"""Of the spec among a long attention's arguments."""


def _strategies(run: list[fx.Node]) -> list[str]:
    """Keys of the long attentions in a piece, each once, in their order."""
    return list(dict.fromkeys(str(node.args[_PLACE]) for node in run if node.target is op.OPERATOR))


def _given(run: list[fx.Node]) -> list[fx.Node]:
    """What a piece reads and does not make, in the order in which it reads."""
    own = set(run)
    given: dict[fx.Node, None] = {}
    for node in run:
        for source in node.all_input_nodes:
            if source not in own and source.op != "get_attr":
                given[source] = None
    return list(given)


def _piece(module: fx.GraphModule, run: list[fx.Node], given: list[fx.Node], made: list[fx.Node]) -> fx.GraphModule:
    """The nodes of `run` as a module (given..., strategies...) -> tuple(made)."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(given):
        copies[node] = graph.placeholder(f"x{index}")
    strategies = {key: graph.placeholder(f"strategy{index}") for index, key in enumerate(_strategies(run))}
    for node in run:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in copies:
                copies[source] = graph.get_attr(str(source.target))
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.target is op.OPERATOR:
            copies[node].target = op.NUMBERED
            copies[node].update_arg(_PLACE, strategies[str(node.args[_PLACE])])
        copies[node].meta = {key: node.meta[key] for key in _KEPT if key in node.meta}
    graph.output(tuple(copies[node] for node in made))
    return fx.GraphModule(module, graph)


def _content(module: fx.GraphModule, run: list[fx.Node], given: list[fx.Node], made: list[fx.Node]) -> Hashable:
    """What a piece computes, up to the names of its nodes."""
    number = {node: index for index, node in enumerate([*given, *run])}
    strategies = _strategies(run)

    def spelled(value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            return ("node", number[value]) if value in number else _Same(operator.attrgetter(str(value.target))(module))
        if isinstance(value, (tuple, list)):
            return (type(value), *(spelled(item) for item in value))
        if isinstance(value, dict):
            return (dict, *((key, spelled(item)) for key, item in value.items()))
        if isinstance(value, slice):
            return (slice, spelled(value.start), spelled(value.stop), spelled(value.step))
        if isinstance(value, (float, complex)):
            return (type(value), repr(value))
        if value is None or value is ... or isinstance(value, (bool, int, str, torch.dtype, torch.device)):
            return (type(value), value)
        return _Same(value)

    def called(node: fx.Node) -> Hashable:
        return _Same(operator.attrgetter(str(node.target))(module)) if node.op == "call_module" else node.target

    def arguments(node: fx.Node) -> Hashable:
        args: list[Any] = list(node.args)
        if node.target is op.OPERATOR:
            args[_PLACE] = strategies.index(args[_PLACE])
        return spelled(tuple(args))

    nodes = tuple((node.op, called(node), arguments(node), spelled(node.kwargs)) for node in run)
    return (nodes, len(given), tuple(number[node] for node in made))


def _signature(values: list[Any]) -> Hashable:
    """What a compiler may build on: layouts, and which inputs are the same tensor or share storage."""
    objects: dict[int, int] = {}
    storages: dict[int, int] = {}
    found: list[Hashable] = []
    for index, value in enumerate(values):
        if not isinstance(value, torch.Tensor):
            found.append((type(value), _Same(value) if isinstance(value, (list, dict)) else value))
            continue
        plain = type(value) in (torch.Tensor, torch.nn.Parameter)
        storage = storage_id(value) if plain else id(value)
        found.append(
            (
                type(value),
                value.dtype,
                value.device,
                tuple(value.shape),
                value.stride(),
                value.requires_grad,
                objects.setdefault(id(value), index),
                storages.setdefault(storage, index),
            )
        )
    return tuple(found)


def _state() -> Hashable:
    """Global settings that a compiler builds into its code; Dynamo captures again where they change."""
    kinds = ("cpu", "cuda")
    autocast = tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds)
    return autocast, torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled()
