"""Blocks traced once and stamped out: the graph is that of blocks traced one by one, or the stamping is undone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.fx as fx
from diffusers import WanTransformer3DModel
from torch import nn

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.compat import stamps_regions
from freeloc_fx.compiler import pipeline
from freeloc_fx.compiler.capture import captures
from freeloc_fx.compiler.capture.trace_once import Marks
from freeloc_fx.compiler.transform import plans
from freeloc_fx.errors import StampError
from freeloc_fx.passes import inline_regions as inlining


def wan(layers: int = 4) -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=layers, cross_attn_norm=True, rope_max_seq_len=32,
    ).eval()  # fmt: skip


def call(model: Any, frames: int = 7) -> torch.Tensor:
    x = torch.randn(1, 4, frames, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: torch.Tensor = model(x, torch.tensor([500]), torch.ones(1, 5, 16)).sample
    return result


stamping = pytest.mark.skipif(not stamps_regions(), reason=f"torch {torch.__version__} does not stamp out regions")

PROFILE = Profile(trained_frames=3, layers={0: "vrpr", 1: "vrpr+tsa", 2: "tsa", 3: "vrpr"})


@pytest.fixture
def stamped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(calls of regions, regions) of each capture."""
    seen: list[tuple[int, int]] = []
    plain = inlining.inline_regions

    def counted(graph: fx.Graph, capture: Any, *, root: nn.Module, model: Any) -> int:
        calls = [n for n in graph.nodes if n.target is torch.ops.higher_order.invoke_subgraph]
        if calls:
            seen.append((len(calls), len({id(getattr(root, n.args[0].target)) for n in calls})))
        return plain(graph, capture, root=root, model=model)

    monkeypatch.setattr(pipeline, "inline_regions", counted)
    return seen


def unmarked(monkeypatch: pytest.MonkeyPatch, model: Any, profile: Profile) -> Any:
    monkeypatch.setattr(captures, "Marks", lambda blocks: Marks(()))  # what has been called has its marks
    return freeloc_fx.transform(model, profile, backend="eager")


@stamping
def test_equal_blocks_are_traced_once_and_compute_the_same(
    stamped: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wan()
    once = freeloc_fx.transform(model, PROFILE, backend="eager")
    found = call(once)
    assert stamped == [(4, 1)]
    each = unmarked(monkeypatch, model, PROFILE)
    assert torch.equal(found, call(each)) and len(stamped) == 1
    ours, theirs = plans(once)[0], plans(each)[0]
    assert [s.path for s in ours.sites] == [f"blocks.{i}.attn1" for i in range(4)]
    assert ours == theirs
    assert torch.equal(call(once, 3), call(model, 3))  # within the trained length, bitwise
    assert call(once).equal(found) and len(stamped) == 2  # and nothing is captured again


@stamping
def test_blocks_that_differ_are_not_taken_for_each_other(
    stamped: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wan()
    model.blocks[1].norm1.eps = 0.5  # a constant of the graph
    model.blocks[3].attn1.norm_q = nn.Identity()
    once = freeloc_fx.transform(model, PROFILE, backend="eager")
    found = call(once)
    assert stamped == [(2, 1)]  # the two that are alone are no regions
    assert torch.equal(found, call(unmarked(monkeypatch, model, PROFILE)))


@stamping
def test_the_blocks_carry_their_marks_only_while_the_model_runs() -> None:
    model = wan(2)
    during: list[bool] = []
    marks = Marks(model.blocks)
    with marks.on():
        during += ["forward" in block.__dict__ for block in model.blocks]
        plain = type(model.blocks[0]).forward
        assert not hasattr(plain, "__marked_compile_region_config__")
    with pytest.raises(RuntimeError, match="out of luck"), marks.on():
        raise RuntimeError("out of luck")
    assert during == [True, True]
    assert not any("forward" in block.__dict__ for block in model.blocks)
    changed = freeloc_fx.transform(model, Profile(trained_frames=3, layers="vrpr"), backend="eager")
    call(changed)
    assert not any("forward" in block.__dict__ for block in model.blocks)


@stamping
def test_somebody_elses_forward_stays() -> None:
    model = wan(3)
    own = model.blocks[0].__dict__["forward"] = lambda *a, **k: type(model.blocks[0]).forward(model.blocks[0], *a, **k)
    with Marks(model.blocks).on():
        assert model.blocks[0].forward is own
        assert "forward" in model.blocks[1].__dict__
    assert model.blocks[0].forward is own


@stamping
def test_a_block_with_anothers_weights_is_found_and_traced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What torch was seen to do, done on purpose: the second call of a region gets the first one's inputs."""
    plain = inlining.inline_regions
    errors: list[str] = []

    def wrong(graph: fx.Graph, capture: Any, *, root: nn.Module, model: Any) -> int:
        calls = [n for n in graph.nodes if n.target is torch.ops.higher_order.invoke_subgraph]
        if not calls:
            return plain(graph, capture, root=root, model=model)  # traced each, after the error
        first, second = calls
        second.args = (*second.args[:3], first.args[3], *second.args[4:])
        try:
            return plain(graph, capture, root=root, model=model)
        except StampError as error:
            errors.append(str(error))
            raise

    monkeypatch.setattr(pipeline, "inline_regions", wrong)
    caplog.set_level(logging.INFO, "freeloc_fx")
    model = wan(2)
    profile = Profile(trained_frames=3, layers="vrpr+tsa")
    found = call(freeloc_fx.transform(model, profile, backend="eager"))
    assert len(errors) == 1 and "blocks.1: expected its own weights, found" in errors[0] and "of blocks.0" in errors[0]
    assert "each block is traced: blocks.1: expected its own weights" in caplog.text
    assert torch.equal(found, call(unmarked(monkeypatch, model, profile)))
