"""The script for a CUDA machine: what it writes and when it stops, on CPU; its checks on a GPU where there is one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_checks import attention, every_agreement

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "cuda.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_script_writes_what_it_measures_and_names_the_device(tmp_path: Path) -> None:
    done = run(tmp_path / "new", "--device", "cpu", "--tiny", "--parts", "a", "--minutes", "2")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads((tmp_path / "new" / "cuda.json").read_text())["rows"]
    assert {row["lowering"] for row in rows} == {"flex", "calls"}
    assert all(row["holds"] and row["device"].startswith("CPU") for row in rows)
    assert all(line.startswith("[CPU (a trial") for line in done.stdout.splitlines())


@pytest.mark.slow
def test_every_part_of_the_script_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cpu", "--tiny", "--parts", "bcde", "--minutes", "4")
    rows = json.loads((tmp_path / "cuda.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {"b", "c", "d", "e"}, done.stderr
    assert not any("failed" in row for row in rows), rows


def test_nothing_is_begun_after_the_time_is_over(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cpu", "--tiny", "--minutes", "0")
    assert "minutes are over, before a: flex - reference" in done.stdout and not (tmp_path / "cuda.json").exists()


def test_measurements_of_attention_alone() -> None:
    rows = [measure() for _, measure in attention(torch.device("cpu"), tiny=True)]
    assert [row.get("strategy") for row in rows] == [None, None, "vrpr+tsa", "vrpr", "tsa"]
    assert all(row["milliseconds"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_machine_without_cuda_is_told_how_to_try_it(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2 and "--device cpu --tiny tries the script" in done.stderr


@pytest.mark.gpu
def test_every_lowering_is_the_reference_on_a_gpu() -> None:
    wrong = []
    for about, measure in every_agreement(torch.device("cuda"), tiny=False):
        row = measure()
        if not row["holds"]:
            wrong.append((about, row["error"]))
    assert not wrong


def of_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks of a test that compiles for a GPU without one."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(torch.version.cuda is None, reason="wants a CUDA build of torch, which brings Triton"),
        pytest.mark.skipif(not torch.__version__.startswith("2.14."), reason="stands in for a driver of torch 2.14"),
    ):
        test = mark(test)
    return test


def offline(name: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a script wrote into a folder."""
    command = [sys.executable, str(SCRIPT.with_name(f"{name}.py")), "--out", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["rows"]
    return rows


@of_a_gpu
def test_a_gpu_that_is_not_there_is_given_kernels_that_keep_to_their_registers(tmp_path: Path) -> None:
    apart, in_one, looked_up = offline("cuda_offline", tmp_path, "--strategies", "vrpr+tsa", "--times", "4")
    assert apart["spilled"] == 0 < min(in_one["spilled"], looked_up["spilled"])
    assert apart["of q, k, v"] < 2 < in_one["of q, k, v"]
    assert apart["different"] == 3 and apart["pieces"] % 3 == 0


@of_a_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_kernels_compute_the_attention(tmp_path: Path, dtype: str) -> None:
    rows = offline("cuda_interpreted", tmp_path, "--strategies", "vrpr+tsa", "--dtypes", dtype, "--models", "")
    assert len(rows) == 2 and all(row["error"] <= row["limit"] < 0.1 < row["dense"] for row in rows), rows
