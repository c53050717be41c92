"""Blocks that are the same graph compile once, nothing compiles again over the steps of a generation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx
from models import DiT, latents, wan, wan_inputs
from torch import nn

from freeloc_fx import Profile, transform
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.compiler.repeat import Artefacts, compile_repeated

LONG = 9
LAYERS = 6
TWO = Profile(trained_frames=5, layers={i: "vrpr+tsa" if i % 3 else "tsa" for i in range(LAYERS)})


class Counter:
    """A compiler that counts its calls and runs each graph through `compile_piece`."""

    def __init__(self, compile_piece: Callable[..., Any] | None = None) -> None:
        self.compile_piece = compile_piece or (lambda module, inputs: module.forward)
        self.modules: list[fx.GraphModule] = []

    def __call__(self, module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.modules.append(module)
        result: Callable[..., Any] = self.compile_piece(module, inputs)
        return result


def block_by_block(inner: Any, artefacts: Artefacts | None = None) -> Callable[..., Any]:
    """A torch.compile backend that compiles repeated blocks once."""
    return lambda module, inputs: compile_repeated(module, inputs, inner, artefacts)


def run(model: Any, frames: int = LONG, **changes: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**wan_inputs(frames, **changes))[0]
    return result


def attentions(module: fx.GraphModule) -> int:
    return sum("long_attention" in str(n.target) for n in module.graph.nodes)


def test_a_block_compiles_once_for_all_strategies() -> None:
    model, inner = wan(num_layers=LAYERS), Counter()
    changed = transform(model, TWO, backend=block_by_block(inner))
    expected = run(transform(model, TWO, backend="eager"))
    assert torch.equal(run(changed), expected)
    assert [attentions(m) for m in inner.modules] == [1]  # what comes before and after the blocks runs as it is
    assert torch.equal(run(changed), expected)
    assert len(inner.modules) == 1


def test_an_untouched_layer_is_a_piece_of_its_own() -> None:
    model, inner = wan(num_layers=4), Counter()
    profile = Profile(trained_frames=5, layers={0: "tsa", 1: "direct", 2: "vrpr", 3: "direct"})
    found = run(transform(model, profile, backend=block_by_block(inner)))
    assert torch.equal(found, run(transform(model, profile, backend="eager")))
    assert sorted(map(attentions, inner.modules)) == [0, 1]


@pytest.mark.slow
def test_the_count_does_not_grow_with_layers() -> None:
    counts = []
    for layers in (2, 5):
        inner = Counter()
        profile = Profile(trained_frames=5, layers="tsa")
        run(transform(wan(num_layers=layers), profile, backend=block_by_block(inner)))
        counts.append(len(inner.modules))
    assert counts[0] == counts[1] == 1


@pytest.mark.slow
def test_pieces_through_aot_autograd() -> None:
    """As Inductor would get them: functionalised, with the inputs of the first layer that has the piece."""
    aot = torch._dynamo.lookup_backend("aot_eager")
    model, inner = wan(num_layers=LAYERS), Counter(aot)
    found = run(transform(model, TWO, backend=block_by_block(inner)))
    torch.testing.assert_close(found, run(transform(model, TWO, backend="eager")), rtol=1e-5, atol=1e-5)
    assert len(inner.modules) == 1


@pytest.mark.slow
def test_pieces_through_inductor() -> None:
    inductor = torch._TorchCompileInductorWrapper("default", None, False)
    model, inner = wan(num_layers=4), Counter(inductor)
    profile = Profile(trained_frames=5, layers={0: "tsa", 1: "vrpr", 2: "tsa", 3: "vrpr"})
    found = run(transform(model, profile, backend=block_by_block(inner)))
    torch.testing.assert_close(found, run(transform(model, profile, backend="eager")), rtol=1e-4, atol=1e-4)
    assert len(inner.modules) == 1


@pytest.mark.slow
def test_the_default_backend_compiles_a_block_once() -> None:
    model = wan(num_layers=4)
    profile = Profile(trained_frames=5, layers={0: "tsa", 1: "vrpr", 2: "tsa", 3: "vrpr"})
    changed = transform(model, profile)
    found = run(changed)
    torch.testing.assert_close(found, run(transform(model, profile, backend="eager")), rtol=1e-4, atol=1e-4)
    state = state_of(changed)
    assert state is not None and state.backend.artefacts.compiled == 1


@pytest.mark.slow
def test_another_shape_is_another_piece_and_an_old_one_is_found_again() -> None:
    artefacts = Artefacts()
    model = wan(num_layers=3)
    profile = Profile(trained_frames=5, layers="tsa")
    changed = transform(model, profile, backend=block_by_block(Counter(), artefacts))
    plain = transform(model, profile, backend="eager")
    for frames, compiled in ((9, 1), (11, 2), (9, 2)):
        assert torch.equal(run(changed, frames), run(plain, frames))
        assert artefacts.compiled == compiled


def test_two_models_share_pieces_and_keep_their_weights() -> None:
    """Wan 2.2 has two transformers of one kind."""
    artefacts, inner = Artefacts(), Counter()
    profile = Profile(trained_frames=5, layers="tsa")
    for seed in (0, 1):
        model = wan(num_layers=2, seed=seed)
        changed = transform(model, profile, backend=block_by_block(inner, artefacts))
        assert torch.equal(run(changed), run(transform(model, profile, backend="eager")))
    assert len(inner.modules) == artefacts.compiled == 1


def test_a_model_written_by_hand() -> None:
    model, inner = DiT(layers=4), Counter()
    profile = Profile(trained_frames=3, layers="tsa")
    x = latents(8)
    with torch.no_grad():
        found = transform(model, profile, backend=block_by_block(inner))(x)
        assert torch.equal(found, transform(model, profile, backend="eager")(x))
    assert [attentions(m) for m in inner.modules].count(1) <= 2  # the first block's input may be laid out differently


# Graphs made for the purpose


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Layer(nn.Module):
    def __init__(self, kind: str = "plain", scale: float = 1.0) -> None:
        super().__init__()
        self.linear, self.attention = nn.Linear(8, 8), Attention()
        self.kind, self.scale = kind, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attention(self.linear(x))
        if self.kind == "writes":
            x += y * self.scale
            return x
        if self.kind == "returns a view":
            return (x + y * self.scale).transpose(0, 1).transpose(0, 1)
        return x + y * self.scale


class Stack(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sin()
        kept = x[:, :1]  # a view of what the blocks may write
        for block in self.blocks:
            x = block(x)
        return x * 2 + kept


def compiled(model: nn.Module, x: torch.Tensor, compile_piece: Any = None) -> tuple[torch.Tensor, Counter]:
    inner = Counter(compile_piece)
    with torch.no_grad():
        found = torch.compile(model, backend=block_by_block(inner), fullgraph=True, dynamic=False)(x)
        return found, inner


@pytest.mark.parametrize("kind", ["plain", "writes", "returns a view"])
@pytest.mark.parametrize("name", ["eager", "aot_eager"])
def test_views_and_writes_across_pieces(kind: str, name: str) -> None:
    model = Stack(*(Layer(kind) for _ in range(3)))
    x = torch.randn(2, 4, 8)
    with torch.no_grad():
        expected = model(x.clone())
    found, inner = compiled(model, x, torch._dynamo.lookup_backend(name))
    torch.testing.assert_close(found, expected)
    assert len(inner.modules) == 1


def test_constants_and_shared_weights_tell_pieces_apart() -> None:
    x = torch.randn(2, 4, 8)
    layers = [Layer(scale=1.0), Layer(scale=2.0), Layer(scale=1.0)]
    found, inner = compiled(Stack(*layers), x)
    with torch.no_grad():
        assert torch.equal(found, Stack(*layers)(x))
    assert len(inner.modules) == 2
    tied = [Layer(), Layer()]
    tied[1].linear.bias.data = tied[1].linear.weight.data[0]  # one storage for both
    found, inner = compiled(Stack(*tied), x)
    with torch.no_grad():
        assert torch.equal(found, Stack(*tied)(x))
    assert len(inner.modules) == 2


def test_blocks_captured_alone_share_one_piece() -> None:
    """As where a model has no single graph and each block is compiled on its own."""
    artefacts, inner, x = Artefacts(), Counter(), torch.randn(2, 4, 8)
    layers = [Layer(), Layer()]
    for layer in layers:
        call = torch.compile(
            layer._call_impl,
            backend=lambda module, inputs: compile_repeated(module, inputs, inner, artefacts, blocks=()),
            fullgraph=True,
            dynamic=False,
        )
        with torch.no_grad():
            assert torch.equal(call(x), layer(x))
    assert artefacts.compiled == len(inner.modules) == 1


def test_autocast_has_pieces_of_its_own() -> None:
    artefacts, inner = Artefacts(), Counter()
    model, x = Stack(Layer(), Layer()), torch.randn(2, 4, 8)
    call = torch.compile(model, backend=block_by_block(inner, artefacts), fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert torch.equal(call(x), model(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(x), model(x))
    assert artefacts.compiled == 2


class Handed(Stack):
    """The blocks read a tuple that is made before them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.sin().chunk(2, -1)
        for block in self.blocks:
            x = block(x) + parts[0].sum()
        return x


def test_what_lies_between_blocks_is_not_compiled() -> None:
    model = Handed(Layer(), Layer(), Layer())
    x = torch.randn(2, 4, 8)
    found, inner = compiled(model, x)
    with torch.no_grad():
        assert torch.equal(found, model(x))
    assert len(inner.modules) == 1


def whole(caplog: pytest.LogCaptureFixture, model: nn.Module, inner: Counter, reason: str) -> None:
    x = torch.randn(2, 4, 8)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "freeloc_fx"), torch.no_grad():
        found = torch.compile(model, backend=block_by_block(inner), fullgraph=True, dynamic=False)(x)
        assert torch.equal(found, model(x))
    assert len(inner.modules) == 1
    assert "compiling the whole graph, not block by block" in caplog.text
    assert reason in caplog.text


def test_a_graph_without_blocks_is_compiled_whole_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    whole(caplog, nn.Sequential(nn.Linear(8, 8)), Counter(), "no transformer blocks")


def test_cuda_graphs_get_the_whole_graph(caplog: pytest.LogCaptureFixture) -> None:
    inner = Counter()
    inner.compiler_name = "cudagraphs"  # type: ignore[attr-defined]
    whole(caplog, Stack(Layer(), Layer()), inner, "CUDA graphs")


def test_results_of_cuda_graphs_outlive_the_next_call() -> None:
    """Guidance calls twice, and subtracts then; a recorded graph has one place for its results."""
    place = torch.zeros(2, 8)

    def recorded(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return lambda *given: (place.copy_(module(*given)[0]),)

    recorded.compiler_name = "cudagraphs"  # type: ignore[attr-defined]
    with torch.no_grad():
        call = torch.compile(nn.Linear(8, 8), backend=block_by_block(recorded), fullgraph=True, dynamic=False)
        first, second = call(torch.zeros(2, 8)), call(torch.ones(2, 8))
    assert not torch.equal(first, second) and torch.equal(second, place)


def test_a_value_that_is_no_tensor_between_pieces(caplog: pytest.LogCaptureFixture) -> None:
    graph, root = fx.Graph(), Stack(Layer(), Layer())
    x = graph.placeholder("x")
    halves = graph.call_method("chunk", (x, 2, -1))
    inside = graph.call_function(torch.Tensor.sin, (graph.call_function(__import__("operator").getitem, (halves, 0)),))
    for node, path in ((halves, "L['self']"), (inside.args[0], "blocks.0"), (inside, "blocks.0")):
        assert isinstance(node, fx.Node)
        node.meta["nn_module_stack"] = {path: (path, nn.Module)}
    graph.output((inside,))
    inner = Counter()
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        call = compile_repeated(fx.GraphModule(root, graph), [torch.ones(2, 4)], inner, blocks=["blocks.0"])
    assert torch.equal(call(torch.ones(2, 4))[0], torch.ones(2, 2).sin())
    assert len(inner.modules) == 1
    assert "chunk" in caplog.text


# A generation


def test_nothing_compiles_again_over_the_steps_of_a_generation() -> None:
    """50 steps with guidance: the two calls of a step differ in text, the steps in time and latents."""
    inner = Counter()
    changed = transform(wan(num_layers=2), Profile(trained_frames=3, layers="tsa"), backend=block_by_block(inner))
    counters = torch._dynamo.utils.counters
    inputs = wan_inputs(5, 2, 2)
    texts = [inputs.pop("encoder_hidden_states"), torch.randn(1, 5, 16)]
    counters.clear()
    with torch.no_grad():
        for step in range(50):
            inputs["timestep"] = torch.tensor([999 - 19 * step])
            prediction = sum(changed(**inputs, encoder_hidden_states=text)[0] for text in texts)
            inputs["hidden_states"] = inputs["hidden_states"] - 0.01 * prediction
    assert counters["stats"]["unique_graphs"] == 1
    assert len(inner.modules) == 1
