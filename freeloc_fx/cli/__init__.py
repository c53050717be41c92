"""The command line, `freeloc`. Needs the `cli` extra."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; ends the process with the command's exit code."""
    missing = [name for name in ("typer", "rich", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        needs = f'freeloc needs {", ".join(missing)}: pip install "freeloc_fx[cli]"'
        print(needs, file=sys.stderr)
        raise SystemExit(1)
    from .app import app

    app()
