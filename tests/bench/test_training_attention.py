"""The training's own attention against torch's, values and gradients; clips that are prepared where they are drawn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import training_attention
from training_loop import Clips

BOUND = 3e-2  # of bfloat16, relative to the largest value


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().float() - wanted.detach()).abs().max() / wanted.detach().abs().max())


@pytest.mark.parametrize("keys", [training_attention.FEW - 20, training_attention.FEW + 21])
@pytest.mark.parametrize("kind", ["none", "added", "seen", "pairs"])
def test_values_and_gradients_are_those_of_dense_attention(keys: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(keys)
    shapes = ((2, 70, 3, 16), (2, keys, 3, 16), (2, keys, 3, 16))
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    grad = torch.randn(shapes[0], generator=generator)
    mask = None
    if kind != "none":
        mask = torch.rand(2, 1, 70 if kind == "pairs" else 1, keys, generator=generator) < 0.7
    if kind == "added":
        mask = torch.where(mask, torch.rand(mask.shape, generator=generator), float("-inf"))
    wanted = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in inputs), attn_mask=mask).transpose(1, 2)
    gradients = torch.autograd.grad(wanted, inputs, grad)
    with torch.autocast("cpu", torch.bfloat16):
        found = training_attention.attention(*inputs, attn_mask=mask)
    assert found.dtype == torch.bfloat16
    assert _distance(found, wanted) < BOUND
    for ours, theirs in zip(torch.autograd.grad(found, inputs, grad.bfloat16()), gradients, strict=True):
        assert _distance(ours, theirs) < BOUND


def test_a_clip_alone_in_float32_is_torch_s_own() -> None:
    q, k, v = torch.randn(3, 1, 9, 2, 8, generator=torch.Generator().manual_seed(1))
    wanted = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    assert torch.equal(training_attention.attention(q, k, v), wanted)


def test_clips_are_prepared_where_they_are_drawn() -> None:
    plain, prompts = Clips(5, 3, 2, 5)[1]
    prepared, same = Clips(5, 3, 2, 5, prepare=lambda clips: clips.float() / 2)[1]
    assert prompts == same
    assert torch.equal(prepared * 2, plain.float())
