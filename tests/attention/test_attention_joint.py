"""Text beside the video, padding, frequencies, decay and mixtures: the reference against dense attention written out
here, and the other lowerings against the reference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from attention_cases import Places, Tensors, distance, joint, named
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.attention import op
from freeloc_fx.attention.calls.lowering import calls
from freeloc_fx.attention.flex.alone import flex
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.tiles.lowering import tiles
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.build import build
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry, Strategy
from freeloc_fx.method.visibility import FULL, STRIPE


def turned(x: np.ndarray, spec: AttentionSpec, frames: float | np.ndarray) -> np.ndarray:
    """x (heads, tokens, head_dim) with its temporal pairs turned by `frames` latent frames, one a token or one."""
    result = x.copy()
    omega = np.broadcast_to(np.asarray(spec.rope.omega), (len(x), len(spec.rope.first)))
    for p, (a, b) in enumerate(zip(spec.rope.first, spec.rope.second, strict=True)):
        angle = omega[:, p, None] * np.broadcast_to(frames, x.shape[1:2])[None]
        result[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
        result[..., b] = x[..., a] * np.sin(angle) + x[..., b] * np.cos(angle)
    return result


def written_out(spec: AttentionSpec, tensors: Tensors, valid: np.ndarray | None = None) -> np.ndarray:
    """Every row of softmax(scores) v, one query token at a time."""
    grid, strategy = spec.grid, spec.strategy
    n, start, stop = grid.tokens, grid.text_first, grid.text_first + grid.video
    frame = np.full(grid.sequence, -1)
    frame[start:stop] = np.arange(grid.video) // n
    place = (np.arange(grid.sequence) - start) % n
    table = strategy.positions.table(grid.frames)
    levels = strategy.visibility.levels(grid.frames)
    stripe = strategy.visibility.stripe(grid.height, grid.width)
    last = grid.frames if strategy.text_last is None else strategy.text_last
    stand = [min(i * strategy.text_scale, last) for i in range(grid.frames)]  # of a frame, as text meets it
    scale = strategy.temperature / math.sqrt(tensors[0].shape[-1])
    out = []
    for b in range(tensors[0].shape[0]):
        q, k, v = (x[b].double().numpy() for x in tensors)
        rows = []
        for row in range(grid.sequence):
            query = q[:, row : row + 1]
            i = frame[row]
            visible = np.ones(grid.sequence, bool) if valid is None else valid[b].copy()
            if i >= 0:
                position = np.where(frame >= 0, i - table[i][frame] - frame, 0.0)
                keys = turned(k, spec, position)
                moved = turned(query, spec, stand[i] - i)
                scores = np.where(frame >= 0, (query * keys).sum(-1), (moved * k).sum(-1)) * scale
                level = np.where(frame >= 0, levels[i][frame], FULL)
                visible &= (level == FULL) | ((level == STRIPE) & stripe[place[row]][place])
            else:
                keys = turned(k, spec, np.where(frame >= 0, np.asarray(stand)[frame] - frame, 0.0))
                scores = (query * keys).sum(-1) * scale
            scores = np.where(visible, scores, -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            rows.append(((weight / weight.sum(-1, keepdims=True))[..., None] * v).sum(1))
        out.append(np.stack(rows, 1))
    return np.stack(out)


@pytest.mark.parametrize("name", ["direct+temp", "vrpr", "tsa", "vrpr+tsa+temp"])
@pytest.mark.parametrize(("first", "last"), [(3, 0), (0, 4), (2, 1)])
@pytest.mark.parametrize("places", [(1.0, None), (0.4, None), (1.0, 3)])
def test_the_reference_is_dense_attention_written_out(name: str, first: int, last: int, places: Places) -> None:
    spec, tensors = joint(named(name, grid=(11, 2, 2), batch=1), first, last, places)
    expected = torch.from_numpy(written_out(spec, tensors))
    assert distance(reference(*tensors, spec), expected) <= 1e-5


@pytest.mark.parametrize("way", [reference, tiles, calls, flex])
def test_padding_is_left_out_sample_by_sample(way: op.Lowering) -> None:
    spec, tensors = joint(named("vrpr+tsa+temp", grid=(11, 2, 2), batch=2), 0, 5, (0.5, None))
    valid = np.ones((2, spec.grid.sequence), bool)
    valid[0, -2:] = False
    valid[1, -4:] = False
    expected = torch.from_numpy(written_out(spec, tensors, valid))
    mask = torch.from_numpy(valid)[:, None, None]
    assert distance(way(*tensors, spec, None, mask), expected) <= 1e-5
    added = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    assert distance(way(*tensors, spec, None, added), expected) <= 1e-5


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 1, 7, dtype=torch.bool), "expected a shape that broadcasts to"),
        (torch.full((1, 1, 1, 49), -0.5), "expected additive values of 0 or at most"),
        (torch.zeros(1, 1, 1, 49, dtype=torch.bool), "expected every video token to be visible"),
        (torch.ones(1, 1, 49, 49, dtype=torch.bool), "expected a shape that broadcasts to"),
    ],
)
def test_masks_that_are_no_padding_are_refused(mask: torch.Tensor, message: str) -> None:
    spec, tensors = joint(named("vrpr", grid=(11, 2, 2), batch=1), 0, 5)
    for way in (reference, tiles, calls, flex):
        with pytest.raises(CaptureError, match=message):
            way(*tensors, spec, None, mask)


@settings(max_examples=25)
@given(
    st.sampled_from(["direct+temp", "vrpr", "vrpr separable", "tsa", "tsa no sink", "vrpr+tsa+temp"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([(1.0, None), (0.3, None), (1.0, 4)]),
    st.integers(12, 24),
    st.sampled_from([(1, 1), (2, 3), (5, 4)]),
)
def test_every_lowering_equals_the_reference(
    name: str, first: int, last: int, places: Places, frames: int, size: tuple[int, int]
) -> None:
    spec, tensors = joint(named(name, grid=(frames, *size), batch=1), first, last, places)
    expected = reference(*tensors, spec)
    assert distance(tiles(*tensors, spec), expected) <= 1e-5
    assert distance(calls(*tensors, spec), expected) <= 1e-5
    assert distance(flex(*tensors, spec), expected) <= 1e-5


PEERS = ("riflex", "pi", "ntk", "yarn+tsa", "clip", "group", "ultravico", "window", "anchors", "clip+window",
         "ultravico+window", "freelong", "freelong++", "longdiff", "freelong+vrpr", "riflex+vrpr+temp")  # fmt: skip


def peer(name: str, text: int = 0) -> tuple[AttentionSpec, Tensors]:
    case = named("direct+temp", grid=(23, 2, 3), batch=1)
    spec, tensors = joint(case, 0, text)
    strategy = build(name, Geometry(8, *case.grid), {"riflex": {"k": 1}})
    return dataclasses.replace(spec, strategy=strategy), tensors


@pytest.mark.parametrize("text", [0, 3])
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_runs_as_on_the_reference(name: str, text: int) -> None:
    spec, tensors = peer(name, text)
    expected = op.run("reference", *tensors, spec)
    assert distance(op.run("tiles", *tensors, spec), expected) <= 1e-5
    assert distance(op.run("calls", *tensors, spec), expected) <= 1e-5
    assert distance(op.run("flex", *tensors, spec), expected) <= 1e-5
    plain = op.run("reference", *tensors, dataclasses.replace(spec, strategy=Strategy()))
    assert distance(plain, expected) > 1e-3, "the strategy changes nothing here"


def test_frequencies_are_those_of_a_model_built_with_them() -> None:
    """PI on a rotated q and k is dense attention on q and k rotated with the smaller frequencies."""
    case = named("direct+temp", grid=(23, 2, 3), batch=1)
    spec = dataclasses.replace(case.spec, strategy=build("pi", Geometry(8, *case.grid)))
    q, k, v = (torch.from_numpy(x).double() for x in case.raw())
    rope = dataclasses.replace(case.rope, omega_t=case.rope.omega_t * 8 / 23)
    other = [torch.from_numpy(rope.rotated(x.numpy(), *case.grid)) for x in (q, k)]
    expected = torch.nn.functional.scaled_dot_product_attention(*other, v)
    assert distance(reference(*case.tensors(), spec), expected) <= 1e-5


@pytest.mark.parametrize("name", ["tiles", "calls", "flex"])
def test_keyframes_that_move_are_where_the_denoising_step_puts_them(name: str) -> None:
    from freeloc_fx.attention.registry import Specs
    from freeloc_fx.attention.running import denoising_step

    case = named("direct+temp", grid=(17, 2, 2), batch=1)
    strategy = build("anchors", Geometry(5, *case.grid))
    spec = dataclasses.replace(case.spec, strategy=strategy)
    specs, tensors, seen = Specs(), case.tensors(), []
    key = specs.add(spec)
    for step in range(3):
        expected = reference(*tensors, spec.at(step))
        with denoising_step(step):
            assert distance(torch.ops.freeloc_fx.long_attention(*tensors, key, name, None), expected) <= 1e-5
        seen.append(expected)
    assert distance(seen[0], seen[1]) > 1e-3, "they do not move"


def test_a_denoising_step_chooses_the_strategy_without_another_graph() -> None:
    from freeloc_fx.attention.registry import Specs
    from freeloc_fx.attention.running import denoising_step

    case = named("vrpr+tsa+temp", grid=(17, 2, 2), batch=1)
    staged = dataclasses.replace(case.strategy, stages=((2, Strategy()),))
    specs = Specs()
    key = specs.add(dataclasses.replace(case.spec, strategy=staged))
    tensors = case.tensors()
    call = torch.ops.freeloc_fx.long_attention
    dense = torch.nn.functional.scaled_dot_product_attention(*tensors)
    for step in range(4):
        with denoising_step(step):
            found = call(*tensors, key, "tiles", None)
        expected = dense if step < 2 else reference(*tensors, case.spec)
        assert distance(found, expected) <= 1e-5
