"""The C++ kernel of `tiles` where something goes wrong: damaged caches, Ctrl-C, other processes; other processors."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import distance, joint, named

from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.tiles import kernel
from freeloc_fx.attention.tiles.lowering import engine, tiles

X86 = platform.machine().lower() in ("x86_64", "amd64")
HELPERS = Path(__file__).parent.parent / "helpers"


@pytest.fixture
def cached(fresh: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache that holds a copy of the usual one's kernel, not loaded from there."""
    fresh.delenv("TORCH_EXTENSIONS_DIR")
    usual = kernel.build()
    fresh.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    copy = tmp_path / "freeloc_fx" / usual.name
    copy.parent.mkdir()
    copy.write_bytes(usual.read_bytes())
    return copy


def built_by(kernels: Path) -> Callable[..., str]:
    """In place of a compiler's run: what it would have made is a copy of the usual cache's."""
    run = kernel._run

    def copied(command: list[str]) -> str:
        if "-o" not in command:
            return run(command)
        Path(command[-1]).write_bytes(kernels.read_bytes()[:-32])
        return ""

    return copied


@pytest.mark.parametrize("damage", ["truncated", "empty", "a bit", "text"])
def test_a_damaged_cached_kernel_is_built_again(
    cached: Path, fresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    content = cached.read_bytes()
    good = tmp_path / "good"
    good.write_bytes(content)
    middle = len(content) // 2
    cached.write_bytes(
        {
            "truncated": content[:middle],
            "empty": b"",
            "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "text": b"no library",
        }[damage]
    )
    fresh.setattr(kernel, "_run", built_by(good))
    case = named("vrpr+tsa+temp")
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        assert engine(torch.device("cpu"), torch.float32) == ("kernel", "")
    assert cached.read_bytes() == content and str(cached) in caplog.text and "damaged" in caplog.text
    assert distance(tiles(*case.tensors(), case.spec), reference(*case.tensors(), case.spec)) <= 1e-5


def test_a_whole_kernel_of_another_system_is_built_again(
    cached: Path, fresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = tmp_path / "good"
    good.write_bytes(cached.read_bytes())
    cached.write_bytes(kernel._sealed(b"no library"))
    fresh.setattr(kernel, "_run", built_by(good))
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        assert engine(torch.device("cpu"), torch.float32) == ("kernel", "")
    assert cached.read_bytes() == good.read_bytes() and "cannot be loaded" in caplog.text


class Interrupted:
    """The kernel, which Ctrl-C reaches after some of its pieces."""

    def __init__(self, after: int) -> None:
        self.run, self.after, self.calls = kernel.load().freeloc_long_attention, after, 0

    def freeloc_long_attention(self, task: Any) -> int:
        self.calls += 1
        state = self.run(task)
        if self.calls == self.after:
            signal.raise_signal(signal.SIGINT)
        return int(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ctrl_c_does_not_wait_for_a_long_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    case = named("vrpr+tsa+temp", grid=(30, 5, 8))
    inputs = case.tensors(dtype)
    expected = tiles(*inputs, case.spec)
    monkeypatch.setattr(kernel, "_SECONDS", 0.0)
    counted = Interrupted(after=0)
    monkeypatch.setattr(kernel, "load", lambda: counted)
    assert distance(tiles(*inputs, case.spec), expected) <= 1e-6 and counted.calls > 4
    stopped = Interrupted.__new__(Interrupted)
    stopped.run, stopped.after, stopped.calls = counted.run, 3, 0
    monkeypatch.setattr(kernel, "load", lambda: stopped)
    with pytest.raises(KeyboardInterrupt):
        tiles(*inputs, case.spec)
    assert stopped.calls == 3
    assert distance(tiles(*inputs, case.spec), expected) <= 1e-6  # nothing of the interrupted call is left


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("threaded", [False, True], ids=["in the main thread", "in another"])
def test_ctrl_c_while_it_is_built_blames_no_compiler(fresh: pytest.MonkeyPatch, tmp_path: Path, threaded: bool) -> None:
    """Ctrl-C reaches the compiler too. The next attention builds as if nothing had been."""
    compiler = tmp_path / "interrupted"
    compiler.write_text("#!/bin/sh\nkill -INT $$\n")
    compiler.chmod(0o755)
    fresh.setenv("CXX", str(compiler))
    seen: list[BaseException] = []

    def ask() -> None:
        try:
            engine(torch.device("cpu"), torch.float32)
        except BaseException as error:
            seen.append(error)

    if threaded:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    else:
        ask()
    assert isinstance(seen[0], KeyboardInterrupt)
    assert engine.cache_info().currsize == 0


ATTENTION = """
import os, sys, torch
sys.path.insert(0, {helpers!r})
from attention_cases import distance, named
from freeloc_fx.attention.reference import reference
from freeloc_fx.attention.tiles.lowering import engine, tiles
torch.set_num_threads(2)
case = named("vrpr+tsa+temp", grid=(12, 4, 8))
inputs = case.tensors()
def good():
    assert engine(torch.device("cpu"), torch.float32) == ("kernel", ""), engine(torch.device("cpu"), torch.float32)
    return distance(tiles(*inputs, case.spec), reference(*inputs, case.spec)) <= 1e-5
"""


def script(more: str) -> list[str]:
    return [sys.executable, "-c", ATTENTION.format(helpers=str(HELPERS)) + more]


@pytest.mark.slow
def test_processes_that_find_an_empty_cache_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    running = [subprocess.Popen(script("assert good()"), env=environment) for _ in range(3)]
    assert [process.wait(300) for process in running] == [0, 0, 0]
    assert [path.suffix for path in (tmp_path / "freeloc_fx").iterdir()] == [".so"], "scratch folders stay behind"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_after_the_first_use() -> None:
    """A child has none of the threads that its parent's OpenMP waits for; torch's own operators with threads hang."""
    more = """
assert good()
expected = tiles(*inputs, case.spec)
child = os.fork()
if not child:
    os._exit(0 if torch.equal(tiles(*inputs, case.spec), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert good()
"""
    assert subprocess.run(script(more), timeout=60, check=False).returncode == 0


OTHERS = {
    "this one": "",
    "AVX-512 BF16 without AMX": "-mno-amx-tile -mno-amx-bf16",
    "AVX-512 without BF16": "-mno-amx-tile -mno-amx-bf16 -mno-avx512bf16",
    "AVX2": "-mno-avx512f",
    "SSE2": "-march=x86-64",
}


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="switches of x86 compilers")
@pytest.mark.parametrize("flags", OTHERS.values(), ids=OTHERS)
def test_the_kernel_of_other_processors(fresh: pytest.MonkeyPatch, tmp_path: Path, flags: str) -> None:
    """Built for what this processor has in common with them."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" {flags}\n')
    compiler.chmod(0o755)
    fresh.setenv("CXX", str(compiler))
    assert isinstance(kernel.load(), ctypes.CDLL)
    for name in ("vrpr", "tsa", "tsa 2d", "vrpr+tsa+temp"):
        for size in ((4, 4), (1, 17), (5, 8), (10, 13)):
            case = named(name, grid=(11, *size), batch=1, heads=2)
            for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1.5e-2)):
                inputs = case.tensors(dtype)
                exact = reference(*(x.double() for x in inputs), case.spec)
                assert distance(tiles(*inputs, case.spec), exact) <= limit, (name, size, dtype)
    spec, tensors = joint(named("vrpr+tsa+temp", grid=(9, 4, 5)), 3, 7)
    assert distance(tiles(*tensors, spec), reference(*tensors, spec)) <= 1e-5
