"""FreeNoise: which frames repeat which, determinism, and what every frame looks like alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.errors import LengthError
from freeloc_fx.generation.noise import freenoise

checked = settings(max_examples=40, deadline=None)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@checked
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 40), st.integers(0, 99))
def test_each_stride_is_a_shuffle_of_the_frames_a_window_earlier(
    window: int, stride: int, frames: int, seed: int
) -> None:
    stride = min(stride, window)
    noise = freenoise((2, 3, frames, 2, 2), window, stride, generator(seed))
    assert noise.shape == (2, 3, frames, 2, 2) and noise.dtype == torch.float32
    rows = [tuple(noise[:, :, i].flatten().tolist()) for i in range(frames)]
    assert len(set(rows[:window])) == min(window, frames)  # independent at the start
    for begin in range(window, frames, stride):
        block, earlier = rows[begin : begin + stride], rows[begin - window : begin - window + stride]
        if len(block) == stride:
            assert sorted(block) == sorted(earlier)
        else:  # the clip ends within the stride
            assert len(set(block)) == len(block) and set(block) <= set(earlier)


def test_it_is_deterministic_for_a_generator_and_does_shuffle() -> None:
    shape = (1, 2, 33, 3, 3)
    one, two = freenoise(shape, 8, 4, generator(1)), freenoise(shape, 8, 4, generator(1))
    assert torch.equal(one, two) and not torch.equal(one, freenoise(shape, 8, 4, generator(2)))
    assert not torch.equal(one[:, :, 8:16], one[:, :, :8])
    source = generator(1)
    assert not torch.equal(freenoise(shape, 8, 4, source), freenoise(shape, 8, 4, source))
    torch.manual_seed(3)
    first = freenoise(shape, 8)
    torch.manual_seed(3)
    assert torch.equal(first, freenoise(shape, 8))


def test_within_the_window_it_is_plain_noise() -> None:
    shape = (1, 2, 6, 3, 3)
    assert torch.equal(freenoise(shape, 6, 2, generator()), torch.randn(shape, generator=generator()))
    assert torch.equal(freenoise(shape, 99, 2, generator()), torch.randn(shape, generator=generator()))


def test_every_frame_alone_is_standard_normal() -> None:
    noise = freenoise((1, 4, 40, 60, 60), 8, 4, generator())
    frames = noise.movedim(2, 0).flatten(1)
    bound = 5 / frames.shape[1] ** 0.5  # five standard errors of the mean
    assert frames.mean(1).abs().max() < bound
    assert (frames.var(1) - 1).abs().max() < bound * 2**0.5
    assert (frames.pow(4).mean(1) - 3).abs().max() < bound * 96**0.5


def test_any_axis_may_be_frames_and_dtype_is_kept() -> None:
    reference = freenoise((1, 2, 20, 3), 5, 2, generator())
    last = freenoise((2, 3, 20), 5, 2, generator(), dim=-1, dtype=torch.float64, device="cpu")
    assert last.shape == (2, 3, 20) and last.dtype == torch.float64
    assert len({tuple(last[..., i].flatten().tolist()) for i in range(20)}) == 5
    assert reference.shape == (1, 2, 20, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 2, 0, 3, 3), 4), r"freenoise shape: expected positive integers, found \(1, 2, 0, 3, 3\)"),
        (((1, 2, 9, 3, 3), 0), "freenoise window: expected an integer of at least 1, found 0"),
        (((1, 2, 9, 3, 3), 3, 4), "freenoise stride: expected an integer of 1 to the window's 3, found 4"),
        (((1, 2, 9, 3, 3), 3, 0), "freenoise stride: expected an integer of 1 to the window's 3, found 0"),
        (((1, 2), 3, 2), "freenoise dim: expected an axis of the 2 of the shape, found 2"),
    ],
)
def test_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LengthError, match=message):
        freenoise(*arguments)
