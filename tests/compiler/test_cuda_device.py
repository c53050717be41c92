"""Whole models on another device than CPU, on machines that have no other: a CUDA device that stands in for one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HELPER = Path(__file__).parents[1] / "helpers" / "cuda_stand_in.py"
NAMES = ("Wan", "HunyuanVideo", "CogVideoX 1.5", "Mochi", "LTX2", "Kandinsky5")
"""Without joint text and with it before or after, masked, of heads with own rates, in two streams."""


@pytest.mark.slow
@pytest.mark.skipif(
    bool(torch.version.cuda or torch.version.hip), reason="wants a CPU build of torch: this one has a GPU's operators"
)
@pytest.mark.skipif(shutil.which("ninja") is None, reason="torch builds extensions with ninja, which is not installed")
def test_models_run_on_a_cuda_device_as_on_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(HELPER), str(tmp_path), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["model"], row["lowering"]) for row in rows] == [(n, how) for n in NAMES for how in ("flex", "calls")]
    assert all(row["device"] == "cuda:0" for row in rows)
    assert all(row["error"] < 1e-5 for row in rows), rows
