"""Every attention call is found and called what it is, on Wan and on models written in other ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import DiT, captured, latents, wan, wan_inputs

from freeloc_fx import Profile, transform
from freeloc_fx import plan as make_plan
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.records import AttentionSite, sites
from freeloc_fx.passes.find_attention import find_attention
from freeloc_fx.passes.find_key_mask import find_key_mask


def found(model: torch.nn.Module, arguments: dict[str, object]) -> list[AttentionSite]:
    graph, capture = captured(model, arguments)
    count = find_attention(graph, capture)
    find_key_mask(graph, capture)
    result = [site for _, site in sites(graph)]
    assert count == len(result)
    return result


@pytest.mark.parametrize(
    ("layers", "heads", "dim", "batch", "size"), [(1, 1, 12, 1, (2, 2, 2)), (3, 4, 24, 2, (5, 4, 6))]
)
def test_wan(layers: int, heads: int, dim: int, batch: int, size: tuple[int, int, int]) -> None:
    model = wan(num_layers=layers, num_attention_heads=heads, attention_head_dim=dim)
    result = found(model, wan_inputs(*size, batch=batch, text=7))
    assert [s.path for s in result] == [f"blocks.{i}.attn{j}" for i in range(layers) for j in (1, 2)]
    assert [s.layer for s in result] == [i for i in range(layers) for _ in (1, 2)]
    assert [s.kind for s in result] == ["video", "cross"] * layers
    tokens = size[0] * size[1] * size[2] // 4
    assert result[0].query_shape == result[0].key_shape == (batch, heads, tokens, dim)
    assert result[1].key_shape == (batch, heads, 7, dim)
    assert result[1].reason == f"{tokens} query tokens attend to 7 other tokens"


def test_a_model_written_by_hand() -> None:
    result = found(DiT(layers=3), {"hidden_states": latents(4, 2, 3)})
    assert [(s.path, s.layer, s.kind) for s in result] == [(f"blocks.{i}.attention", i, "video") for i in range(3)]


REFUSED = {
    "cross": ("cross", r"24 query tokens attend to 9 other tokens"),
    "causal": ("other", r"causal attention: the model is autoregressive"),
    "masked": ("other", r"the model passes an attention mask that is more than padding of single keys"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_attention_that_cannot_be_rewritten_is_refused_with_its_reason(how: str) -> None:
    kind, reason = REFUSED[how]
    model = DiT(how=how)
    arguments: dict[str, object] = {"hidden_states": latents(4, 2, 3)}
    if how == "cross":
        arguments["context"] = torch.randn(1, 9, 32)
    assert {s.kind for s in found(model, arguments)} == {kind}
    changed = transform(model, Profile(trained_frames=2, layers="vrpr+tsa"), backend="eager")
    with torch.no_grad(), pytest.raises(CaptureError, match=rf"blocks\.1\.attention: {kind}: {reason}"):
        changed(**arguments)


def test_a_model_without_attention_says_so() -> None:
    with pytest.raises(CaptureError, match="the graph holds no attention call"):
        make_plan(DiT(how="no attention"), Profile(trained_frames=2), frames=4, height=2, width=3)


def test_the_models_own_scale_is_kept() -> None:
    def attend(x: torch.Tensor, tables: Any, other: Any) -> torch.Tensor:
        q = x.unflatten(-1, (2, 16)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, scale=0.3).transpose(1, 2).flatten(2)

    model = DiT(layers=1)
    attention: Any = model.blocks[0].attention
    attention.forward = attend
    assert [s.scale for s in found(model, {"hidden_states": latents(4, 2, 3)})] == [0.3]
