"""The command line, `freeloc`. Needs the `cli` extra."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line; ends the process with the command's exit code."""
    with _ending_at_once():
        missing = [name for name in ("typer", "rich", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            needs = f'freeloc needs {", ".join(missing)}: pip install "freeloc_fx[cli]"'
            print(needs, file=sys.stderr)
            raise SystemExit(1)
        from .app import app
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name need not be text, and is shown after the work
            stream.reconfigure(errors="backslashreplace")
    app()


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """Within the context Ctrl-C ends the process with a line, whatever is being imported.

    As an exception it would come up in the middle of somebody's module, and importing torch takes seconds.
    """

    def leave(*_: Any) -> None:
        os.write(2, b"interrupted, nothing written\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as under nohup, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
