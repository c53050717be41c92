"""The C++ kernel of `tiles`: where it runs, what it is told, and the shapes at which it cuts work differently."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_cases import NAMED, Case, Places, cases, distance, joint, named
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.attention.calls.lowering import calls
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.tiles import kernel
from freeloc_fx.attention.tiles.lowering import engine, tiles
from freeloc_fx.attention.tiles.spans import ROWS, make_spans
from freeloc_fx.method.visibility import FULL, STRIPE

CPU = torch.device("cpu")


# Where it runs


def test_the_kernel_runs_on_cpu_in_both_dtypes() -> None:
    """Without it every test of `tiles` would test `calls` a second time."""
    assert engine(CPU, torch.float32) == engine(CPU, torch.bfloat16) == ("kernel", "")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_run_as_calls_and_say_so(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    inputs = tuple(x.to(dtype) for x in named("vrpr+tsa+temp").tensors())
    spec = named("vrpr+tsa+temp").spec
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        found = tiles(*inputs, spec)
        tiles(*inputs, spec)
    assert torch.equal(found, calls(*inputs, spec)) and found.dtype == dtype
    assert len(caplog.records) == 1 and f"found {dtype}" in caplog.text
    assert engine(CPU, dtype)[0] == "calls" and str(dtype) in engine(CPU, dtype)[1]


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("/nonexistent/c++", "No such file"), ("false", "failed")],
    ids=["no compiler", "a compiler that fails"],
)
def test_without_a_compiler_it_runs_as_calls_and_says_why(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: str, message: str
) -> None:
    fresh.setenv("CXX", compiler)
    case = named("vrpr+tsa+temp")
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        found = tiles(*case.tensors(), case.spec)
    assert distance(found, reference(*case.tensors(), case.spec)) <= 1e-5
    assert "runs as SDPA calls" in caplog.text and message in caplog.text
    assert engine(CPU, torch.float32)[0] == "calls"


def test_it_is_built_once(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = kernel.build()
    made = first.stat().st_mtime_ns
    assert kernel.build() == first and first.stat().st_mtime_ns == made
    assert os.listdir(tmp_path / "freeloc_fx") == [first.name], "scratch folders stay behind"


@pytest.mark.slow
def test_a_build_that_is_not_whole_is_built_again(fresh: pytest.MonkeyPatch) -> None:
    """Cut short it would load, and end the process with a bus error when it is used."""
    library = kernel.build()
    data = library.read_bytes()
    for damaged in (data[: len(data) // 2], b"", data[:-1] + b"?"):
        library.unlink()  # as a copy of the cache would; what this process has loaded stays
        library.write_bytes(damaged)
        assert kernel.build() == library and len(library.read_bytes()) == len(data)
    case = named("vrpr+tsa+temp")
    assert distance(tiles(*case.tensors(), case.spec), reference(*case.tensors(), case.spec)) <= 1e-5
    assert engine(CPU, torch.float32) == ("kernel", "")


# What it is told


@settings(max_examples=25)
@given(
    cases(frames=12, side=5),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([(1.0, None), (0.3, None), (1.0, 5)]),
)
def test_spans_say_what_the_strategy_says(case: Case, first: int, last: int, places: Places) -> None:
    spec, _ = joint(dataclasses.replace(case, batch=1), first, last, places)
    grid, spans = spec.grid, make_spans(spec)
    n, begin = grid.tokens, int(first > 0)
    sizes = spans.start.diff().tolist()
    assert sizes == [first] * (first > 0) + [n] * grid.frames + [last] * (last > 0)
    video = slice(begin, begin + grid.frames)
    levels = spec.strategy.visibility.levels(grid.frames)
    assert (spans.level[video, video].numpy() == levels).all()
    text = torch.ones(len(sizes), dtype=torch.bool)
    text[video] = False
    assert (spans.level[text] == FULL).all() and (spans.level[:, text] == FULL).all()
    if (levels == STRIPE).any():
        assert spans.bits is not None
        bits = spans.bits.numpy().view(np.uint16)
        stripe = spec.strategy.visibility.stripe(grid.height, grid.width)
        found = [[bool(bits[k // ROWS, token] >> (k % ROWS) & 1) for token in range(n)] for k in range(n)]
        assert found == stripe.tolist()
    else:
        assert spans.bits is None
    phase = spans.phase.numpy()
    shifts = spec.shifts()
    for i in range(grid.frames):
        for j in range(grid.frames):
            # The reference turns the key by `shift`; the kernel turns the query back by as much.
            angle = -np.asarray(spec.rope.omega) * (shifts[i, j] if levels[i, j] else 0)
            turn = phase[begin + i, begin + j]
            cosine = np.ones_like(angle) if turn < 0 else spans.cosine[:, turn].numpy()
            sine = np.zeros_like(angle) if turn < 0 else spans.sine[:, turn].numpy()
            np.testing.assert_allclose(cosine, np.cos(angle), atol=1e-6)
            np.testing.assert_allclose(sine, np.sin(angle), atol=1e-6)


# Where it cuts work differently


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("size", [(4, 4), (1, 17), (9, 16), (10, 26)], ids=str)
def test_frames_of_any_size(name: str, size: tuple[int, int]) -> None:
    """One tile a frame, a row more, more keys than a chunk, more than two."""
    case = named(name, grid=(11, *size), batch=1, heads=2)
    assert distance(tiles(*case.tensors(), case.spec), reference(*case.tensors(), case.spec)) <= 1e-5


@pytest.mark.parametrize("spatial", ["raster", "2d"])
@pytest.mark.parametrize("width", range(1, 9))
def test_narrow_and_wide_stripes(width: int, spatial: str) -> None:
    """Narrow ones run along their diagonals, wide ones as ranges of keys."""
    tsa = {"d1": 2, "d2": 9, "ds": width, "spatial": spatial}
    case = named("vrpr+tsa+temp", grid=(13, 5, 8), batch=1, heads=2, tsa=tsa)
    assert distance(tiles(*case.tensors(), case.spec), reference(*case.tensors(), case.spec)) <= 1e-5


# bfloat16


@settings(max_examples=25)
@given(cases(frames=12, side=5), st.integers(0, 2), st.integers(0, 2))
def test_bfloat16_is_multiplied_as_it_is_or_widened(case: Case, first: int, last: int) -> None:
    """Which is quicker depends on the processor; both have to be right on every one that can do both."""
    spec, inputs = joint(case, first, last)
    halves = tuple(x.bfloat16() for x in inputs)
    floats = tuple(x.float() for x in halves)
    exact = reference(*(x.double() for x in halves), spec)
    with pytest.MonkeyPatch.context() as patch:
        for gain in (2.0, 0.5):
            patch.setattr(kernel, "gain", lambda gain=gain: gain)
            assert distance(tiles(*halves, spec), exact) <= 2e-2, gain
        assert torch.equal(tiles(*halves, spec), tiles(*floats, spec).bfloat16()), "widened: as in float32"


def test_what_is_quicker_is_measured_once_and_said(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "freeloc_fx"):
        found = kernel.gain()
        assert kernel.gain() == found >= 0
    (said,) = [r.message for r in caplog.records if "multiplies bfloat16" in r.message]
    assert f"bfloat16 {'as it is' if found >= 0.75 else 'widened'}" in said


# Threads and memory


@pytest.mark.skipif(sys.platform == "darwin", reason="torch's OpenMP has no GOMP_parallel there: own threads")
def test_threads_are_torchs() -> None:
    assert kernel.parallel()


@pytest.mark.parametrize("own", [False, True], ids=["torch's threads", "threads of its own"])
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_nothing(threads: int, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if own:
        monkeypatch.setattr(kernel, "parallel", lambda: None)
    case = named("vrpr+tsa+temp", grid=(40, 4, 4))
    expected = tiles(*case.tensors(), case.spec)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = tiles(*case.tensors(), case.spec)
    finally:
        torch.set_num_threads(before)
    assert distance(found, expected) <= 1e-6  # groups of tiles change, so chunks begin elsewhere


@pytest.mark.parametrize("place", ["q", "k", "v"])
def test_what_is_no_number_stays_none(place: str) -> None:
    """A NaN must reach whoever sees it, as in any softmax."""
    case = named("tsa", grid=(6, 2, 2), batch=1, heads=1)
    tensors = dict(zip("qkv", case.tensors(), strict=True))
    tensors[place] = tensors[place].clone()
    tensors[place][0, 0, 4, 0] = math.nan
    assert tiles(*tensors.values(), case.spec)[0, 0, 4].isnan().any()


def test_tensors_whose_channels_are_apart() -> None:
    case = named("vrpr+tsa+temp")
    inputs = tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in case.tensors())
    assert inputs[0].stride(-1) != 1
    assert distance(tiles(*inputs, case.spec), reference(*inputs, case.spec)) <= 1e-5


def test_nothing_is_built_again_and_little_is_allocated() -> None:
    """Tables are made once for a spec; beyond the output a call takes what its threads need."""
    from freeloc_fx.attention.tiles.lowering import known_spans
    from freeloc_fx.evaluation.cost import peak_bytes

    case = named("vrpr+tsa+temp", grid=(60, 4, 4))
    inputs = case.tensors()
    tiles(*inputs, case.spec)
    built = known_spans.built
    peak = peak_bytes(lambda: tiles(*inputs, case.spec))
    assert known_spans.built == built
    assert peak >= inputs[0].nbytes, "the profiler does not see the output"
    assert peak < inputs[0].nbytes + torch.get_num_threads() * 400_000
