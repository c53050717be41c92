"""A disk that is full, on any machine and for any user: a limit of the size of files, and encoders that say nothing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Within the context no file grows beyond `size` bytes, neither here nor in processes that are started here.

    Python's own writes fail with EFBIG; ffmpeg is ended by a signal.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def silent_ffmpeg(folder: Path, share: float) -> Path:
    """A program that runs ffmpeg, cuts its file down to a share, and says that all went well."""
    import imageio_ffmpeg

    code = (
        "import os, subprocess, sys\n"
        f"subprocess.run([{imageio_ffmpeg.get_ffmpeg_exe()!r}, *sys.argv[1:]], check=True)\n"
        f"os.truncate(sys.argv[-1], int(os.path.getsize(sys.argv[-1]) * {share}))\n"
    )
    return _program(folder, code)


def failing_ffmpeg(folder: Path, *lines: str) -> Path:
    """A program that reads its input, says these lines and ends as ffmpeg does on a full disk."""
    words = "\n".join(lines) + "\n"
    return _program(folder, f"import sys\nsys.stdin.buffer.read()\nsys.stderr.write({words!r})\nsys.exit(228)\n")


def _program(folder: Path, code: str) -> Path:
    if sys.platform == "win32":
        pytest.skip("a script is no program on Windows")
    (folder / "ffmpeg.py").write_text(code)
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(folder / "ffmpeg.py"))} "$@"\n')
    program.chmod(0o755)
    return program
