"""`torchrun` itself, as a user types it: one file, that of one process, one bar, and an end where a rank is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # three processes that import torch; test_ranks.py shows the same without torchrun

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LIMIT = 400.0
"""Seconds; much less on a machine of its own."""


def start(folder: Path, name: str, frames: int, *options: str, ranks: bool = True) -> subprocess.Popen[str]:
    """`freeloc generate`, on two ranks of torchrun or alone, with one thread each."""
    asked = ["-m", "freeloc_fx.cli", "generate", PROMPT, f"--frames={frames}", "--attention=tiles", *options]
    return subprocess.Popen(
        [sys.executable, *(TORCHRUN if ranks else ()), *asked, f"--output={folder / name}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "120"},
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error); what hangs is killed with all that it started."""
    try:
        output, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, output, said


def children(of: int) -> dict[int, int]:
    """Rank -> process id of the processes that a torchrun has started."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            given = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(entry[5:]) for entry in given if entry.startswith(b"RANK=")]
        if parent == of and ranks:
            found[ranks[0]] = int(folder.name)
    return found


def equal_files(folder: Path, frames: int, steps: int, *share: str) -> None:
    options = (f"--steps={steps}",)
    code, alone, said = finished(start(folder, "one.mp4", frames, *options, ranks=False))
    assert code == 0, said
    code, shared, said = finished(start(folder, "two.mp4", frames, *options, *share))
    assert code == 0, said
    one, two = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("one.mp4", "two.mp4"))
    assert one == two
    assert sorted(path.name for path in folder.iterdir()) == [
        *("one.json", "one.mp4", "one.png", "two.json", "two.mp4", "two.png")
    ]
    assert shared.count("Strategy") == alone.count("Strategy"), "one rank speaks"
    assert len(shared.splitlines()) == len(alone.splitlines())
    assert said.count(f"{steps}/{steps}") == 1, "one bar"


def test_two_ranks_of_torchrun_write_what_one_process_writes(tmp_path: Path) -> None:
    equal_files(tmp_path, 101, 1, "--parallel=ulysses")


def test_ten_times_the_trained_length_by_torchrun(tmp_path: Path) -> None:
    equal_files(tmp_path, 801, 2, "--parallel=ulysses", "--shard=fsdp")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found by /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_run_with_a_message(killed: int, tmp_path: Path) -> None:
    process = start(tmp_path, "two.mp4", 801, "--steps=1000", "--parallel=ulysses")
    until = time.monotonic() + LIMIT / 2
    while len(ranks := children(process.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(ranks) == 2
    time.sleep(20)  # imported, loaded, in its steps
    os.kill(ranks[killed], signal.SIGKILL)
    before = time.monotonic()
    code, _, said = finished(process)
    assert time.monotonic() - before < 60
    assert code != 0
    assert "exitcode  : -9" in said and f"rank      : {killed}" in said, said
    assert not list(tmp_path.iterdir()), "nothing half written is left"
    assert not children(process.pid)
