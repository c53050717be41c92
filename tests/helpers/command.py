"""The command line on ranks of torch.distributed, as torchrun would start it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

__all__ = ["command"]


def command(rank: int, arguments: list[str], output: str) -> dict[str, Any]:
    """What one rank said, how it ended, and a digest of the file that is there then."""
    import torch
    from typer.testing import CliRunner

    from freeloc_fx.cli.app import app

    torch.set_num_threads(1)
    done = CliRunner().invoke(app, [*arguments, "-o", output])
    file = Path(output)
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    return {"code": done.exit_code, "out": done.stdout, "err": done.stderr, "digest": digest}
