"""Copies of a padded text key are one key: the same attention, whatever repeats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import captured, wan, wan_inputs
from slow import slow
from torch import nn
from torch.testing import assert_close

from freeloc_fx import Profile, transform
from freeloc_fx.attention import repeated
from freeloc_fx.attention.repeated import attention_over_text, merged, repeats
from freeloc_fx.errors import VerificationError
from freeloc_fx.graph.records import sites

WORDS, TEXT = 7, 96
LONG = 12
ALL = Profile(trained_frames=5, layers="vrpr+tsa")


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Softmax attention in float64, term by term."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return (q.double() @ k.double().transpose(-1, -2) * factor).softmax(-1) @ v.double()


def padded(batch: int, heads: int, keys: int, dim: int, words: list[int], seed: int) -> tuple[torch.Tensor, ...]:
    """q, k, v where each batch entry's keys are alike from its number of words on."""
    torch.manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, n, dim) for n in (11, keys, keys))
    for entry, n in enumerate(words):
        for x in (k, v):
            x[entry, :, n:] = x[entry, :, -1:]
    return q, k, v


@given(data=st.data())
def test_the_attention_is_the_plain_one(data: st.DataObject) -> None:
    draw = data.draw
    batch, heads, keys = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    words = [draw(st.integers(0, keys)) for _ in range(batch)]
    scale = draw(st.sampled_from([None, 0.1, 2.0]))
    q, k, v = padded(batch, heads, keys, 8, words, draw(st.integers(0, 99)))
    assert repeats(k, v) == max(1, min(keys - n for n in words))
    out = attention_over_text(q, k, v, scale)
    assert out.shape == q.shape and out.dtype == q.dtype
    assert_close(out.double(), plain(q, k, v, scale), rtol=1e-4, atol=1e-5)


def test_only_what_is_alike_in_keys_values_and_every_head_is_merged() -> None:
    q, k, v = padded(2, 2, 20, 8, [4, 4], 0)
    assert repeats(k, v) == 16
    v[1, 1, 9] += 1
    assert repeats(k, v) == 10
    assert_close(attention_over_text(q, k, v, None).double(), plain(q, k, v, None), rtol=1e-4, atol=1e-5)
    v[:, :, -1] = float("nan")
    assert repeats(k, v) == 1, "NaN equals nothing"
    assert attention_over_text(q, k, v, None).isnan().all(), "and reaches the output, as it does in the plain attention"


def test_too_few_copies_are_left() -> None:
    q, k, v = padded(1, 2, 40, 8, [36], 0)
    assert repeats(k, v) == 4 and merged(q, k, v, None) is None
    assert torch.equal(attention_over_text(q, k, v, None), torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert repeats(k[:, :, :0], v[:, :, :0]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in padded(2, 3, 64, 16, [5, 9], 3))
    out = attention_over_text(q, k, v, None, True)
    assert out.dtype == dtype
    assert_close(out.double(), plain(q, k, v, None), rtol=3e-2, atol=3e-2)


def test_verify_finds_a_wrong_count(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = padded(1, 2, 64, 8, [5], 0)
    attention_over_text(q, k, v, None, True)
    monkeypatch.setattr(repeated, "repeats", lambda k, v: 50)
    monkeypatch.setattr(repeated.math, "log", lambda n: 0.0)
    with pytest.raises(VerificationError, match="64 text keys of which 50 repeat"):
        attention_over_text(q, k, v, None, True)


# In a model


def padded_inputs(frames: int) -> dict[str, Any]:
    arguments = wan_inputs(frames, text=TEXT)
    arguments["encoder_hidden_states"][:, WORDS:] = 0
    return arguments


def run(model: Any, frames: int = LONG) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**padded_inputs(frames))[0]
    return result


def targets(profile: Profile, attention: str = "auto") -> list[str]:
    """Paths of the attentions whose repeated keys are merged, from a rewritten capture of Wan."""
    from freeloc_fx.compiler import pipeline
    from freeloc_fx.compiler.runner import Runner

    model = wan()
    graph, capture = captured(model, padded_inputs(LONG), profile)
    runner = Runner(graph, capture)
    plan = pipeline.analyse(runner, nn.Module(), model, profile)
    pipeline.rewrite(runner, plan, pipeline.Rewriting(attention), nn.Module())
    over_text = torch.ops.freeloc_fx.attention_over_text.default
    return [site.path for node, site in sites(graph) if node.target is over_text]


def test_where_it_acts() -> None:
    assert targets(ALL) == ["blocks.0.attn2", "blocks.1.attn2"]
    assert targets(Profile(trained_frames=5, layers={0: "direct", 1: "tsa"})) == ["blocks.1.attn2"]
    assert targets(ALL, attention="reference") == []


@pytest.mark.parametrize("backend", ["eager", "aot_eager", slow("inductor")])  # the last gets what the second gets
def test_the_model_computes_what_it_did(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = repeated.repeats

    def counted(*tensors: torch.Tensor) -> int:
        seen.append(real(*tensors))
        return seen[-1]

    model = wan()
    expected = run(transform(model, ALL, backend="eager", attention="reference"))
    monkeypatch.setattr(repeated, "repeats", counted)
    found = run(transform(model, ALL, backend=backend, verify=backend == "eager"))
    assert seen and set(seen) == {TEXT - WORDS}, "the model's projections keep copies alike"
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_within_the_trained_length_nothing_changes() -> None:
    model = wan()
    assert torch.equal(run(transform(model, ALL, backend="eager"), 5), run(model, 5))
