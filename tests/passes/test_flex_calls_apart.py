"""What a compiler is given of attention made of nodes: one call a piece, and nothing that it cannot see into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx
from diffusers_models import arguments, build
from models import wan
from slow import slow
from torch._dynamo.backends.common import aot_autograd
from transformed import distance, first, reference, run

from freeloc_fx import Profile, transform
from freeloc_fx.compiler.inner import compiler
from freeloc_fx.compiler.repeat import compile_repeated
from freeloc_fx.graph.flex_calls import FLEX


class Pieces:
    """A compiler that keeps what it is given and hands it on to another one."""

    def __init__(self, name: str) -> None:
        self.inner = compiler(name) or (lambda module, inputs: module.forward)
        self.modules: list[fx.GraphModule] = []

    def __call__(self, module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.modules.append(module)
        return self.inner(module, inputs)

    def calls(self) -> list[int]:
        """FlexAttention calls of each piece."""
        return [sum(node.target is FLEX for node in module.graph.nodes) for module in self.modules]


@pytest.mark.parametrize("name", [slow("eager"), "aot_eager"])  # the second runs the same graph, functionalised
@pytest.mark.parametrize(
    ("strategy", "heads", "expected"),
    [
        ("vrpr+tsa", 2, [0, 1, 1, 1, 0]),  # both groups, and both layers, are the same pieces
        slow("vrpr", 3, [0, 1, 1, 1, 1, 1, 1, 0]),  # groups of 3 and of 1
        slow("tsa", 2, [0, 1, 0]),
        ("tsa", 4, [1]),  # a call alone needs no cut
        ("freelong+vrpr", 4, [0, 1, 1, 1, 1, 0]),
    ],
)
def test_each_call_is_compiled_by_itself_and_once(name: str, strategy: str, heads: int, expected: list[int]) -> None:
    model, inner = wan(num_attention_heads=4), Pieces(name)
    profile = Profile(trained_frames=5, layers=strategy)

    def in_pieces(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return compile_repeated(module, inputs, inner)

    made = transform(model, profile, backend=in_pieces, attention={"flex": {"heads": heads}})
    assert distance(run(made), reference(model, profile)) <= 1e-5
    assert inner.calls() == expected


@pytest.mark.parametrize(
    ("model", "apart"),
    [
        ("HunyuanVideo", True),  # a key mask, which is made before the attention
        slow("LTX2 split", True),  # frequencies of each head
        slow("Mochi", False),  # the same, and sizes that depend on data, which keep the graph whole
    ],
)
def test_models_with_masks_and_heads_of_their_own(model: str, apart: bool) -> None:
    inner, given = Pieces("eager"), arguments(model, build(model), 12, 3)
    profile = Profile(trained_frames=5, layers="vrpr")

    def in_pieces(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return compile_repeated(module, inputs, inner)

    made = transform(build(model), profile, backend=in_pieces, attention={"flex": {"heads": 1}}, verify=True)
    literal = transform(build(model), profile, backend="eager", attention="reference")
    with torch.no_grad():
        found, expected = (first(one(**given)) for one in (made, literal))
    assert distance(found, expected) <= 1e-5
    assert ([n for n in inner.calls() if n] == [1, 1, 1]) is apart


@pytest.mark.parametrize("strategy", ["vrpr+tsa", slow("riflex+window"), slow("freelong")])
def test_a_compiler_sees_into_every_node(strategy: str) -> None:
    """Rotary nodes and merges are arithmetic when Inductor gets them, which it can fuse."""
    seen: list[str] = []

    def keep(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    model = wan()
    settings: dict[str, Any] = {"parts": {"riflex": {"k": 1}}} if "riflex" in strategy else {}
    profile = Profile(trained_frames=5, layers=strategy, **settings)
    made = transform(model, profile, backend=aot_autograd(fw_compiler=keep), attention="flex")
    assert distance(run(made), reference(model, profile)) <= 1e-5
    assert "flex_attention" in seen
    # On CPU the attention to text counts what repeats, which is no node of the long attention.
    assert {name for name in seen if "freeloc_fx" in name} <= {"freeloc_fx.attention_over_text.default"}
