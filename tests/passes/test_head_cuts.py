"""RoPE measured a few heads at a time: what all heads at once give, in a fraction of the memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers_models import CASES, arguments, build
from models import DiT, analysed, latents, wan, wan_inputs
from slow import slow

from freeloc_fx.graph import head_cut
from freeloc_fx.graph.head_cut import AT_A_TIME, head_cuts
from freeloc_fx.graph.records import AttentionSite
from freeloc_fx.passes import infer_rope as module


def of_heads(name: str, heads: int, width: int, frames: int = 7) -> tuple[Any, dict[str, Any]]:
    """A class's tiny model with more heads, and a call of it."""
    case = CASES[name]
    config = dict(case.config) | {"num_attention_heads": heads}
    if "cross_attention_dim" in config:
        config["cross_attention_dim"] = heads * width
    model = build(name, case=dataclasses.replace(case, config=config))
    return model, arguments(name, model, frames)


CALLS = {
    "Wan": lambda: (wan(num_attention_heads=7), wan_inputs(8)),
    "Wan, a batch": lambda: (
        wan(num_attention_heads=8, dtype=torch.bfloat16),
        wan_inputs(9, 2, 4, batch=2, dtype=torch.bfloat16),
    ),
    "halves": lambda: (DiT(heads=10), {"hidden_states": latents(6)}),
    "LTX, whose heads turn differently": lambda: of_heads("LTX", 7, 16),
    "HunyuanVideo, with text": lambda: of_heads("HunyuanVideo", 7, 10),
    "CogVideoX, with text": lambda: of_heads("CogVideoX", 7, 16),
}


@pytest.mark.parametrize("name", [slow(name) if "text" in name else name for name in CALLS])
def test_a_few_heads_at_a_time_give_what_all_of_them_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = CALLS[name]()
    expected = [site for site in analysed(model, call) if site.kind == "video"]
    torch._dynamo.reset()
    sizes: list[int] = []
    inner = module.run_nodes

    def run(nodes: Any, *arguments: Any, **named: Any) -> Any:
        values = inner(nodes, *arguments, **named)
        sizes.extend(v.numel() for v in values.values() if isinstance(v, torch.Tensor) and "replace" in named)
        return values

    monkeypatch.setattr(head_cut, "LARGE", 0)
    monkeypatch.setattr(module, "run_nodes", run)
    found = [site for site in analysed(model, call) if site.kind == "video"]
    assert expected and [site.path for site in found] == [site.path for site in expected]
    for one, other in zip(found, expected, strict=True):
        same_rope(one, other)
    batch, heads, tokens, dim = expected[0].query_shape
    assert sizes and max(sizes) <= batch * AT_A_TIME * tokens * dim < batch * heads * tokens * dim


def same_rope(one: AttentionSite, other: AttentionSite) -> None:
    assert one.grid == other.grid
    assert one.rope is not None and other.rope is not None
    kept = ("head_dim", "first", "second", "whole_turns")
    assert [getattr(one.rope, key) for key in kept] == [getattr(other.rope, key) for key in kept]
    assert len(one.rope.omega) == len(other.rope.omega)
    found, expected = (torch.tensor(rope.omega, dtype=torch.float64) for rope in (one.rope, other.rope))
    assert (found - expected).abs().max() <= 1e-6


def test_every_head_is_in_one_cut() -> None:
    table = torch.zeros(1, 8, 2000, 6)
    for heads in (5, 7, 8, 40):
        cuts = head_cuts(heads, 10**6, 128, [torch.zeros(1, heads, 9, 64), "no tensor"])
        assert cuts is not None
        new = [head for cut in cuts for head in range(cut.first + AT_A_TIME - cut.new, cut.first + AT_A_TIME)]
        assert new == list(range(heads))
    (only,) = head_cuts(7, 10**6, 128, [table]) or []
    assert only.part(table) is table and only.part(3) == 3, "eight is none of its sizes"
    last = (head_cuts(8, 10**6, 128, [table]) or [])[-1]
    assert last.part(table).shape == (1, 3, 2000, 6)


@pytest.mark.parametrize(
    ("heads", "tokens", "dim"), [(40, 100, 128), (3, 10**6, 128), (64, 10**6, 128), (128, 10**6, 128), (40, 5120, 128)]
)
def test_small_attentions_and_sizes_that_mean_two_things_are_left_whole(
    heads: int, tokens: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tokens == heads * dim:
        monkeypatch.setattr(head_cut, "LARGE", 0)
    assert head_cuts(heads, tokens, dim, []) is None
    assert head_cuts(40, 10**6, 128, []) is not None and head_cuts(40, 10**6, 128, [], batch=40) is None
