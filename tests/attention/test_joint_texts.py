"""Attention over video and text together, each frame with its own text: every lowering beside the literal table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from freeloc_fx.attention.op import run
from freeloc_fx.attention.reference import reference
from freeloc_fx.method.build import build
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.timeline import pair_channels, span_weights

ROPE = RopeLayout(8, (0, 2), (1, 3), ((0.7, 0.2),))
NAMES = ["direct", "vrpr", "vrpr+tsa", "window+temp", "riflex", "ultravico", "vrpr+temp+squeeze", "freelong"]


@st.composite
def cases(draw: st.DrawFn) -> dict:
    frames, height, width = draw(st.integers(4, 8)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    marks = sorted({0, *draw(st.lists(st.integers(1, frames - 1), max_size=2))})
    starts = [0, *np.cumsum([draw(st.integers(1, 4)) for _ in marks]).tolist()]
    first = draw(st.booleans())
    grid = TokenGrid(frames, height, width, *((starts[-1], 0) if first else (0, starts[-1])))
    strategy = build(draw(st.sampled_from(NAMES)), Geometry(3, frames, height, width))
    weights = span_weights(marks, frames, 1, draw(st.integers(0, 4)))
    torch.manual_seed(draw(st.integers(0, 99)))
    q, k, v = (torch.randn(draw(st.just(1)), 2, grid.sequence, 8) for _ in "qkv")
    return {"spec": AttentionSpec(strategy, grid, ROPE), "weights": weights, "starts": starts, "qkv": (q, k, v)}


def widened(case: dict, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], AttentionSpec, float]:
    """q, k and v with the channels that say which pairs see each other, and the spec and scale for them."""
    spec, scale, texts = case["spec"], 8**-0.5, case["weights"].shape[1]
    more = -(-(8 + 2 * texts) // 8) * 8 - 8
    temperature = spec.strategy.members[0].temperature
    made = pair_channels(
        case["weights"], case["starts"], spec.grid.tokens, bool(spec.grid.text_first), scale * temperature, more
    )
    channels = [torch.from_numpy(x) for x in (*made, np.zeros_like(made[0]))]
    wide = [
        torch.cat([x, c.expand(*x.shape[:2], -1, -1)], -1).to(dtype) for x, c in zip(case["qkv"], channels, strict=True)
    ]
    return wide, replace(spec, rope=replace(ROPE, head_dim=8 + more)), scale


def literal(case: dict) -> torch.Tensor:
    """The attention with one bias for every pair of tokens, written down pair by pair, on float64 scores.

    The scores are read off the reference: with v the identity its rows are the softmax, and its logarithm is the
    scores up to a constant of each row, which a softmax does not see.
    """
    spec, weights, starts = case["spec"], case["weights"], case["starts"]
    q, k, v = (x.double() for x in case["qkv"])
    grid, texts = spec.grid, weights.shape[1]
    owner = [("frame", f) for f in range(grid.frames) for _ in range(grid.tokens)]
    text = [("text", s) for s in range(texts) for _ in range(starts[s + 1] - starts[s])]
    owner = text + owner if grid.text_first else owner + text
    bias = torch.zeros(len(owner), len(owner), dtype=torch.float64)
    for i, (what, a) in enumerate(owner):
        for j, (other, b) in enumerate(owner):
            if what != other:
                share = weights[a, b] if what == "frame" else weights[b, a]
                bias[i, j] = np.log(share) if share else -np.inf
            elif what == "text" and a != b:
                bias[i, j] = -np.inf
    out = []
    for part in range(0, grid.sequence, 8):  # v has as many channels as a head
        columns = torch.zeros(grid.sequence, 8, dtype=torch.float64)
        for channel in range(min(8, grid.sequence - part)):
            columns[part + channel, channel] = 1
        out.append(reference(q, k, columns.expand(*q.shape[:2], -1, -1), spec, 8**-0.5))
    softmax = torch.cat(out, -1)[..., : grid.sequence]
    weighed = softmax * bias.exp()
    return (weighed / weighed.sum(-1, keepdim=True)) @ v


@given(cases())
def test_the_reference_is_the_literal_table(case: dict) -> None:
    if case["spec"].strategy.mixture is not None:
        return
    wide, spec, scale = widened(case)
    out = reference(*[x.double() for x in wide], spec, scale)
    assert_close(out[..., :8], literal(case), rtol=1e-4, atol=1e-5)
    assert not out[..., 8:].any()


@pytest.mark.parametrize("lowering", ["tiles", "calls"])
@given(case=cases())
def test_lowerings_are_the_reference(lowering: str, case: dict) -> None:
    wide, spec, scale = widened(case)
    assert_close(run(lowering, *wide, spec, scale), run("reference", *wide, spec, scale), rtol=1e-4, atol=1e-4)


@given(cases(), st.data())
def test_without_a_share_a_frame_does_not_know_of_a_text(case: dict, data: st.DataObject) -> None:
    if case["spec"].strategy.mixture is not None:
        return
    other, starts, grid = data.draw(st.integers(0, case["weights"].shape[1] - 1)), case["starts"], case["spec"].grid
    wide, spec, scale = widened(case)
    before = run("tiles", *wide, spec, scale)
    place = (0 if grid.text_first else grid.video) + np.arange(starts[other], starts[other + 1])
    for x in wide[1:]:
        x[:, :, place, :8] = torch.randn(1)
    after = run("tiles", *wide, spec, scale)
    rows = np.repeat(case["weights"][:, other] == 0, grid.tokens)
    video = slice(grid.text_first, grid.text_first + grid.video)
    assert torch.equal(before[:, :, video][:, :, rows], after[:, :, video][:, :, rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    grid = TokenGrid(6, 1, 2, 0, 7)
    spec = AttentionSpec(build("vrpr+temp", Geometry(3, 6, 1, 2)), grid, ROPE)
    qkv = tuple(torch.randn(1, 2, grid.sequence, 8) for _ in "qkv")
    case = {"spec": spec, "weights": span_weights([0, 3], 6, 1, 3), "starts": [0, 4, 7], "qkv": qkv}
    wide, spec, scale = widened(case, dtype)
    found = run("calls", *wide, spec, scale)[..., :8].double()
    assert_close(found, literal(case), rtol=5e-2, atol=5e-2)
