"""Passes that make attention of nodes: what stands in the graph for every strategy, and what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DiT, latents, wan
from slow import slow
from transformed import LONG, distance, reference, run

from freeloc_fx import Profile, transform
from freeloc_fx.attention.flex import merge, rotary
from freeloc_fx.evaluation.cost import TRAINED
from freeloc_fx.method.positions import VRPR

STRATEGIES = {  # strategy -> FlexAttention calls and rotary nodes a site
    "direct+temp": (1, 0),
    "vrpr": (3, 4),
    "tsa": (1, 0),
    "vrpr+tsa+temp": (3, 4),
    "window": (1, 0),
    "anchors": (1, 0),
    "pi": (1, 2),
    "riflex+window": (1, 2),
    "clip": (2, 2),
    "group": (2, 2),
    "ultravico": (1, 0),
    "longdiff": (3, 2),
    "freelong": (2, 0),
    "freelong+vrpr": (4, 4),
}


def settings_of(name: str) -> dict[str, Any]:
    return {"parts": {"riflex": {"k": 1}}} if "riflex" in name else {}


class Kept:
    """A compiler that keeps the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.Graph] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs.append(module.graph)
        return module.forward

    def count(self, target: Any) -> int:
        (graph,) = self.graphs
        return sum(node.target is target or str(node.target) == target for node in graph.nodes)


def in_self_attention(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    stacks = [(node, str(node.meta.get("nn_module_stack", ""))) for node in graph.nodes]
    return [node for node, stack in stacks if "attn1" in stack]


# The slow ones are parts of the others.
ALONE = ("direct+temp", "pi", "freelong", "vrpr", "tsa", "clip", "anchors")


@pytest.mark.parametrize("name", [slow(name) if name in ALONE else name for name in STRATEGIES])
def test_every_strategy_is_rotary_and_flex_attention_nodes(name: str) -> None:
    model, kept = wan(attention_head_dim=16), Kept()
    profile = Profile(trained_frames=5, layers=name, **settings_of(name))
    found = run(transform(model, profile, backend=kept, attention="flex"), frames=13, height=4, width=6)
    assert distance(found, reference(model, profile, frames=13, height=4, width=6)) <= 1e-5
    calls, turns = STRATEGIES[name]
    assert kept.count("flex_attention") == 2 * calls
    assert kept.count(rotary.OPERATOR) == 2 * turns
    inside = [str(node.target) for node in in_self_attention(kept.graphs[0])]
    assert not any("scaled_dot_product" in text or "long_attention" in text for text in inside)
    merges = kept.count(merge.OPERATOR)
    assert (merges > 0) == (name not in ("direct+temp", "tsa", "window", "anchors", "pi", "riflex+window", "ultravico",
                                         "freelong"))  # fmt: skip


@pytest.mark.parametrize("name", ["vrpr", "vrpr+tsa"])
@pytest.mark.parametrize("times", [2, 4, 10, 16])
@pytest.mark.parametrize("paper", [True, False], ids=["the paper's settings", "solved settings"])
def test_three_calls_for_vrpr_at_any_length(name: str, times: int, paper: bool) -> None:
    """The paper's settings at 4x: 21 calls a layer with one for each band."""
    frames = times * (TRAINED - 1) + 1
    own = {"vrpr": VRPR(12, 20, 2, 8)} if paper else {}
    profile = Profile(trained_frames=TRAINED, layers=name, **own)
    kept = Kept()
    model = DiT(layers=1, heads=1)
    with torch.no_grad():
        transform(model, profile, backend=kept, attention="flex")(latents(frames, 2, 2))
    calls = kept.count("flex_attention")
    assert calls <= 3 and calls >= (3 if name == "vrpr" else 2)
    assert kept.count(rotary.OPERATOR) <= 4


@pytest.mark.slow
@settings(max_examples=6)
@given(
    st.sampled_from(["vrpr", "vrpr+tsa", "tsa", "clip+window", "ultravico+temp"]),
    st.integers(6, 15),
    st.sampled_from([(2, 2), (2, 6), (4, 4)]),
    st.integers(1, 2),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_grid_through_aot(name: str, frames: int, size: tuple[int, int], batch: int, dtype: torch.dtype) -> None:
    """Through AOTAutograd, with fake tensors and everything taken apart, as Inductor gets it."""
    model = wan(attention_head_dim=16, num_layers=1, dtype=dtype)
    profile = Profile(trained_frames=5, layers=name)
    shape = {"frames": frames, "height": size[0], "width": size[1], "batch": batch, "dtype": dtype}
    found = run(transform(model, profile, backend="aot_eager", attention="flex"), **shape)
    expected = reference(model, profile, **shape)
    assert found.dtype == dtype
    gap = float((found.double() - expected.double()).norm() / expected.double().norm())
    assert gap <= (1e-5 if dtype == torch.float32 else 2e-2)


def test_heads_in_groups_are_more_calls_of_the_same_kind() -> None:
    model, kept = wan(num_attention_heads=3), Kept()
    profile = Profile(trained_frames=5, layers="vrpr+tsa")
    found = run(transform(model, profile, backend=kept, attention={"flex": {"heads": 2}}))
    assert distance(found, reference(model, profile)) <= 1e-5
    assert kept.count("flex_attention") == 2 * 2 * 3


def test_under_autocast() -> None:
    model, profile = wan(), Profile(trained_frames=5, layers="vrpr+tsa")
    made = transform(model, profile, backend="aot_eager", attention="flex")
    literal = transform(model, profile, backend="eager", attention="reference")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = run(made), run(literal)
    assert found.dtype == expected.dtype
    assert float((found.double() - expected.double()).norm() / expected.double().norm()) <= 2e-2


def test_every_pass_leaves_shapes_as_they_were_and_the_result_is_compared() -> None:
    model, profile = wan(), Profile(trained_frames=5, layers="vrpr+tsa")
    kept = Kept()
    found = run(transform(model, profile, backend=kept, attention="flex", verify=True))
    assert distance(found, reference(model, profile)) <= 1e-5
    assert kept.count("freeloc_fx.checked_attention.default") == 2


def test_within_the_trained_length_nothing_changes() -> None:
    model = wan()
    changed = transform(model, Profile(trained_frames=LONG, layers="vrpr"), backend="aot_eager", attention="flex")
    assert torch.equal(run(changed), run(model))


def test_a_pass_switched_off_leaves_the_sites_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model, profile = wan(), Profile(trained_frames=5, layers="vrpr")
    for name in ("reencode_rotary", "tiered_sparse_attention"):
        caplog.clear()
        changed = transform(model, profile, backend="eager", attention="flex", disable_passes=(name,))
        with caplog.at_level("WARNING", "freeloc_fx"):
            assert torch.equal(run(changed), run(model))
        assert f"{name} is switched off: 2 planned sites run as they are" in caplog.text
