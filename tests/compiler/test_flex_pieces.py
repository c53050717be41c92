"""FlexAttention's nodes compiled once a strategy: tables and block masks are inputs, whatever layer or step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.fx as fx
from models import wan, wan_inputs
from slow import slow
from transformed import distance, reference, run

from freeloc_fx import Profile, plans, transform
from freeloc_fx.attention.flex import backends
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.compat import set_example_value
from freeloc_fx.compiler import backend as backend_module
from freeloc_fx.compiler import repeat
from freeloc_fx.compiler.inner import compiler
from freeloc_fx.compiler.stages import check_compiler
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.flex_calls import FLEX


class Counting:
    """A compiler for pieces that counts them."""

    def __init__(self) -> None:
        self.modules: list[torch.fx.GraphModule] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.modules.append(module)
        return module.forward


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Stands in for Inductor, block by block: how often it would compile does not depend on what it makes."""
    made = Counting()
    monkeypatch.setattr(backend_module, "is_inductor", lambda compiler: compiler is made)
    monkeypatch.setattr(backend_module, "check_compiler", lambda *_: None)
    monkeypatch.setattr(repeat, "uses_cuda_graphs", lambda _: False)
    return made


@pytest.mark.parametrize("steps", [5, slow(50)])
def test_layers_of_one_strategy_are_one_piece_over_all_steps(pieces: Counting, steps: int) -> None:
    profile = Profile(5, {0: "vrpr+tsa", 1: "tsa", 2: "vrpr+tsa", 3: "tsa"})
    model = wan(num_layers=4)
    changed = transform(model, profile, backend=pieces, attention="flex")
    inputs = wan_inputs(12, 2, 2)
    counters = torch._dynamo.utils.counters
    with torch.no_grad():
        for step in range(steps):
            if step == 1:
                counters.clear()
            inputs["timestep"] = torch.tensor([999 - 19 * step])
            found = changed(**inputs)[0]
        assert not counters["stats"], "nothing is captured after the first step"
        expected = transform(model, profile, backend="eager", attention="reference")(**inputs)[0]
    assert distance(found, expected) <= 1e-5
    flex = [sum(node.target is FLEX for node in module.graph.nodes) for module in pieces.modules]
    # VRPR+TSA: what comes before the attention, its three calls, what comes after; TSA: the block.
    assert sorted(flex) == [0, 0, 1, 1, 1, 1], "once for each strategy, not for each layer"


def test_settings_are_tables_so_that_another_is_the_same_piece(pieces: Counting) -> None:
    """TSA with other distances, and a window: the same calls with other block masks."""
    profile = Profile(5, {0: "tsa", 1: "window", 2: "anchors"})
    model = wan(num_layers=3)
    changed = transform(model, profile, backend=pieces, attention="flex")
    found = run(changed)
    assert distance(found, reference(model, profile)) <= 1e-5
    assert len(pieces.modules) <= 2, "a stripe is another mask function"


def test_a_second_shape_compiles_once_and_an_old_one_is_found(pieces: Counting) -> None:
    changed = transform(wan(num_layers=3), Profile(5, "vrpr"), backend=pieces, attention="flex")
    counts = []
    for frames in (12, 14, 12):
        run(changed, frames=frames)
        counts.append(len(pieces.modules))
    assert counts == [5, 10, 10], "three calls, and what stands before and after them"


def test_rotating_anchors_are_other_tables_at_each_step(pieces: Counting) -> None:
    model, profile = wan(), Profile(5, "anchors")
    changed = transform(model, profile, backend=pieces, attention="flex")
    literal = transform(model, profile, backend="eager", attention="reference")
    outputs = []
    for step in range(4):
        inputs = wan_inputs(24) | {"timestep": torch.tensor([900.0 - step])}
        with torch.no_grad():
            found, expected = changed(**inputs)[0], literal(**inputs)[0]
        assert distance(found, expected) <= 1e-5
        outputs.append(found)
    assert len(pieces.modules) == 1 and len(plans(changed)) == 1


@pytest.mark.parametrize("name", [slow("eager"), "aot_eager"])  # the second runs the same graph, functionalised
def test_stages_switch_without_another_capture(name: str) -> None:
    profile = Profile(5, "vrpr+tsa", schedule=[{"steps": 2, "layers": {0: "direct", 1: "freelong"}}])
    model = wan()
    changed = transform(model, profile, backend=name, attention="flex")
    literal = transform(model, profile, backend="eager", attention="reference")
    counters = torch._dynamo.utils.counters
    for step, t in enumerate((900.0, 600.0, 300.0, 100.0, 50.0)):
        if step == 3:
            counters.clear()
        inputs = wan_inputs(12) | {"timestep": torch.tensor([t])}
        with torch.no_grad():
            found, expected = changed(**inputs)[0], literal(**inputs)[0]
        assert distance(found, expected) <= 1e-5, step
    assert len(plans(changed)) == 1
    assert not counters["stats"].get("unique_graphs")


# What a user may choose


def test_choices_reach_the_nodes() -> None:
    graphs: list[torch.fx.Graph] = []

    def keep(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(module.graph)
        return module.forward

    chosen = {"kernel_options": {"num_stages": 2}, "block": (64, 128), "heads": 1}
    model, profile = wan(), Profile(5, "tsa")
    found = run(transform(model, profile, backend=keep, attention={"flex": chosen}))
    assert distance(found, reference(model, profile)) <= 1e-5
    calls = [node for node in graphs[0].nodes if str(node.target) == "flex_attention"]
    assert len(calls) == 4, "two layers of two heads, one at a time"
    assert all("num_stages" in str(call.args) and "64, 128" in str(call.args) for call in calls)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"flex": {"blocks": 3}},
            r"attention\.flex: expected the keys kernel_options, block, heads, found",
        ),
        ({"flex": 3}, r"attention\.flex: expected a mapping"),
        ({"flex": {"block": 0}}, r"attention\.flex\.block: expected a positive integer or a pair"),
        ({"flex": {"heads": True}}, r"attention\.flex\.heads: expected a positive integer, found True"),
        ({"flex": {"kernel_options": 3}}, r"attention\.flex\.kernel_options: expected a mapping"),
        ({"tiles": {}}, "attention: expected a mapping of 'flex'"),
        ({}, "attention: expected a mapping of 'flex'"),
    ],
)
def test_choices_that_are_wrong(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transform(wan(), Profile(5, "tsa"), attention=given)


def test_choices_are_read() -> None:
    assert FlexOptions.read({}) == FlexOptions()
    assert FlexOptions.read({"block": [64, 128], "heads": 2}) == FlexOptions((), (64, 128), 2)


def test_flash_is_refused_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_FIRST", (2, 0))  # an earlier torch is refused before
    chosen = {"flex": {"kernel_options": {"BACKEND": "FLASH"}}}
    changed = transform(wan(), Profile(5, "tsa"), backend="eager", attention=chosen)
    with pytest.raises(CaptureError, match="BACKEND 'FLASH' wants a CUDA device, found cpu; leave BACKEND out"):
        run(changed)


def test_inductor_on_cpu_is_refused_by_name_where_results_merge() -> None:
    changed = transform(wan(), Profile(5, "vrpr"), attention="flex")
    with pytest.raises(CaptureError, match=r"blocks\.0\.attn1 merges .* use attention='tiles'"):
        run(changed)


def test_auto_on_cuda_is_flex_where_inductor_makes_a_kernel_of_it() -> None:
    cuda, profile = torch.device("cuda"), Profile(5, "vrpr")
    for name, expected in (("inductor", "flex"), ("aot_eager", "tiles"), ("eager", "tiles")):
        assert backend_module.Backend(profile, {}, compiler(name)).how.lowering(cuda) == expected
        assert backend_module.Backend(profile, {}, compiler(name), "flex").how.lowering(cuda) == "flex"
        assert backend_module.Backend(profile, {}, compiler(name), plan_only=True).how.lowering(cuda) == "flex"


@pytest.mark.parametrize(
    ("before", "after", "lowering"), [("eager", "inductor", "flex"), ("inductor", "eager", "tiles")]
)
def test_a_backend_that_is_chosen_later_counts(before: str, after: str, lowering: str) -> None:
    made = backend_module.Backend(Profile(5, "vrpr"), {}, compiler(before)).with_compiler(compiler(after))
    assert made.how.lowering(torch.device("cuda")) == lowering


def test_choices_for_flex_that_do_not_count_are_told(caplog: pytest.LogCaptureFixture) -> None:
    run(transform(wan(), Profile(5, "vrpr"), backend="eager", attention={"auto": {"heads": 1}}))
    assert "attention='auto' is not FlexAttention here, so what was chosen for that counts for nothing" in caplog.text


def test_flex_without_a_kernel_on_cuda_says_what_it_holds(recwarn: pytest.WarningsRecorder) -> None:
    graph = fx.Graph()
    q = graph.placeholder("q")
    set_example_value(q, torch.empty(1, 12, 126_360, 128, device="meta"))
    graph.call_function(FLEX, (q, q, q))
    check_compiler(graph, torch.device("cuda"), inductor=True)
    check_compiler(graph, torch.device("cpu"), inductor=False)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"scores of all pairs of tokens, 766 GB in one call; expected backend='induc"):
        check_compiler(graph, torch.device("cuda"), inductor=False)
