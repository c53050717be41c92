"""Attention to texts over time: laws, and the literal table as the judge."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from freeloc_fx.attention.scheduled import attention_within_texts, literal, scheduled_attention
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.timeline import span_weights


@st.composite
def cases(draw: st.DrawFn, blend: int | None = None) -> dict:
    frames, n, heads, batch = (draw(st.integers(a, b)) for a, b in ((4, 12), (1, 4), (1, 3), (1, 2)))
    marks = sorted({0, *draw(st.lists(st.integers(1, frames - 1), max_size=3))})
    weights = span_weights(marks, frames, 1, draw(st.integers(0, 6)) if blend is None else blend)
    if references := draw(st.integers(0, 2)):  # they see all texts, so that the frames of one lie apart
        weights = np.concatenate([weights.mean(0, keepdims=True).repeat(references, 0), weights])
        frames += references
    sizes = [draw(st.integers(1, 9)) for _ in marks]
    torch.manual_seed(draw(st.integers(0, 99)))
    keys = sum(sizes)
    q, k, v = torch.randn(batch, heads, frames * n, 8), *(torch.randn(batch, heads, keys, 8) for _ in "kv")
    kind = draw(st.sampled_from(["none", "bool", "additive", "rows"]))
    mask = None
    if kind != "none":
        mask = torch.rand(batch, 1, frames * n if kind == "rows" else 1, keys) < 0.6
        mask[..., np.cumsum([0, *sizes[:-1]])] = True  # every text keeps a token
        if kind == "additive":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -1e4)
    starts = torch.tensor([0, *np.cumsum(sizes)])
    scale = draw(st.sampled_from([None, 0.1]))
    return {
        "q": q,
        "k": k,
        "v": v,
        "weights": torch.from_numpy(weights),
        "starts": starts,
        "scale": scale,
        "mask": mask,
    }


@given(cases())
def test_it_is_the_literal_table(case: dict) -> None:
    out = scheduled_attention(**case)
    exact = scheduled_attention(**case, exact=True)
    assert out.shape == case["q"].shape
    assert_close(out, exact, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        exact, literal(**{**case, "weights": case["weights"].numpy(), "starts": case["starts"].tolist()})
    )


@given(cases())
def test_the_same_text_twice_is_that_text_once(case: dict) -> None:
    texts, keys = case["weights"].shape[1], case["k"].shape[2]
    k, v = case["k"].repeat(1, 1, texts, 1), case["v"].repeat(1, 1, texts, 1)
    mask = None if case["mask"] is None else case["mask"].repeat(1, 1, 1, texts)
    out = scheduled_attention(case["q"], k, v, case["weights"], torch.arange(texts + 1) * keys, case["scale"], mask)
    once = F.scaled_dot_product_attention(case["q"], case["k"], case["v"], attn_mask=case["mask"], scale=case["scale"])
    assert_close(out, once, rtol=1e-4, atol=1e-5)


@given(cases(blend=0), st.data())
def test_without_a_blend_a_frame_does_not_know_of_another_text(case: dict, data: st.DataObject) -> None:
    texts, starts = case["weights"].shape[1], case["starts"].tolist()
    other = data.draw(st.integers(0, texts - 1))
    before = scheduled_attention(**case)
    for name in "kv":
        case[name] = case[name].clone()
        case[name][:, :, starts[other] : starts[other + 1]] = torch.randn(1)
    after = scheduled_attention(**case)
    rows = case["weights"][:, other] == 0
    n = case["q"].shape[2] // len(rows)
    assert torch.equal(before.unflatten(2, (-1, n))[:, :, rows], after.unflatten(2, (-1, n))[:, :, rows])
    assert not torch.equal(before, after)


@given(cases())
def test_one_text_for_all_frames_is_the_plain_attention(case: dict) -> None:
    frames, keys = case["weights"].shape[0], case["k"].shape[2]
    out = scheduled_attention(
        **{**case, "weights": torch.ones(frames, 1, dtype=torch.float64), "starts": torch.tensor([0, keys])}
    )
    plain = F.scaled_dot_product_attention(case["q"], case["k"], case["v"], attn_mask=case["mask"], scale=case["scale"])
    assert_close(out, plain, rtol=1e-4, atol=1e-5)


@given(cases())
def test_verified(case: dict) -> None:
    assert_close(scheduled_attention(**case, verify=True), scheduled_attention(**case))


@pytest.mark.parametrize("hidden", [1, 2, 3])
def test_a_text_that_is_hidden_from_shared_frames(hidden: int) -> None:
    """All of the first text's three keys is more than any of its frames could attend to."""
    q, k, v = (torch.randn(1, 2, n, 8) for n in (6, 6, 6))
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[:, :, 2:4, :hidden] = False
    given = {"q": q, "k": k, "v": v, "weights": weights, "starts": torch.tensor([0, 3, 6]), "scale": None, "mask": mask}
    assert_close(scheduled_attention(**given), scheduled_attention(**given, exact=True))


@given(cases())
def test_texts_see_themselves(case: dict) -> None:
    starts = case["starts"].tolist()
    k, v = case["k"], case["v"]
    mask = None
    if case["mask"] is not None and case["mask"].shape[2] == 1 and case["mask"].dtype == torch.bool:
        mask = case["mask"].expand(-1, -1, k.shape[2], -1)
    out = attention_within_texts(k, k, v, case["starts"], case["scale"], mask)
    inside = torch.block_diag(*(torch.ones(b - a, b - a) for a, b in itertools.pairwise(starts))).bool()
    expected = F.scaled_dot_product_attention(
        k, k, v, attn_mask=inside if mask is None else inside & mask, scale=case["scale"]
    )
    assert_close(out, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 99), st.integers(1, 4))
def test_frames_of_a_text_may_lie_apart(seed: int, texts: int) -> None:
    """Windows that run round the end of a clip, and references before it: any table whose rows sum to one."""
    random = np.random.default_rng(seed)
    weights = random.random((7, texts)) * (random.random((7, texts)) < 0.5)
    weights[weights.sum(1) == 0, random.integers(texts)] = 1.0
    weights = torch.from_numpy(weights / weights.sum(1, keepdims=True))
    torch.manual_seed(seed)
    q, k, v = torch.randn(2, 2, 14, 8), *(torch.randn(2, 2, 3 * texts, 8) for _ in "kv")
    given = (q, k, v, weights, torch.arange(texts + 1) * 3, None)
    assert_close(scheduled_attention(*given), scheduled_attention(*given, exact=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, dtype=dtype) for n in (24, 20, 20))
    weights, starts = torch.from_numpy(span_weights([0, 3], 8, 1, 4)), torch.tensor([0, 7, 20])
    out = scheduled_attention(q, k, v, weights, starts, None)
    assert out.dtype == dtype
    assert_close(out, scheduled_attention(q, k, v, weights, starts, None, exact=True), rtol=3e-2, atol=3e-2)


def test_a_table_of_another_clip_is_refused() -> None:
    q, k = torch.randn(1, 1, 10, 8), torch.randn(1, 1, 6, 8)
    with pytest.raises(CaptureError, match="a multiple of 4 frames"):
        scheduled_attention(q, k, k, torch.ones(4, 1, dtype=torch.float64), torch.tensor([0, 6]), None)
    with pytest.raises(CaptureError, match="7 keys"):
        scheduled_attention(q, k, k, torch.ones(5, 1, dtype=torch.float64), torch.tensor([0, 7]), None)
    with pytest.raises(CaptureError, match="expected 7 tokens"):
        attention_within_texts(k, k, k, torch.tensor([0, 7]), None)
