"""Ctrl-C while the command line is still being imported, and output that no terminal can show."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import freeloc_fx
from freeloc_fx import cli
from freeloc_fx.cli.common import write_json

ROOT = Path(freeloc_fx.__file__).parents[1]

INTERRUPTED = """
import os, signal, sys

wanted = sys.argv.pop()

class Interrupts:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts)
from freeloc_fx.cli import main
sys.argv.append("--version")
main()
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to oneself")
@pytest.mark.parametrize("module", ["freeloc_fx.cli.app", "typer", "torch", "numpy"])
def test_ctrl_c_while_something_is_imported_is_one_line(module: str) -> None:
    done = run(INTERRUPTED, module)
    assert (done.returncode, done.stderr) == (130, "interrupted, nothing written\n"), done.stderr


def test_nothing_slow_is_imported_before_the_command_line_can_answer() -> None:
    code = (
        "import sys, freeloc_fx.cli\n"
        "print([name for name in ('torch', 'numpy', 'diffusers', 'typer', 'rich') if name in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with cli._ending_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    with cli._ending_at_once():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_file_name_that_is_no_text_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It was an error after all files were written."""
    name = b"take-\xff.mp4".decode("utf-8", "surrogateescape")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr("freeloc_fx.cli.app.app", lambda: print(f"{name} · done", flush=True))
    cli.main()
    assert raw.getvalue() == b"take-\\udcff.mp4 \\xb7 done\n"
    write_json(tmp_path / "a.json", {"output": name, "words": "é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"output": name, "words": "é"}
