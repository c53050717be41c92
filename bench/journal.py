"""A journal of finished work that several processes may share, each killed at any moment.

One JSON object a line. Who wants to do a piece of work claims it first: a file that the kernel keeps locked for as long
as the process lives, so that no kill leaves a claim behind. Needs `fcntl` (Linux, macOS).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Journal:
    """Lines of a file. rows: what was in it when it was last read or written, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        self.refresh()

    def refresh(self) -> list[dict[str, Any]]:
        """Read what others have added. A line that a killed process left torn is not counted."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self.rows = [json.loads(line) for line in whole.splitlines()]
        return self.rows

    def add(self, row: dict[str, Any]) -> None:
        """Append one line; it is on the disk when this returns."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released with the file
            end = file.seek(0, os.SEEK_END)
            back = min(end, 1 << 20)
            file.seek(end - back)
            tail = file.read(back)
            if tail and not tail.endswith(b"\n"):  # a writer died within its line
                os.ftruncate(file.fileno(), end - back + tail.rfind(b"\n") + 1)
            written = os.write(file.fileno(), line)
            if written != len(line):
                raise OSError(f"{self.path}: {written} of {len(line)} bytes were written; is the disk full?")
            os.fsync(file.fileno())
        self.refresh()

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may do the work of this key: False while another one does it."""
        folder = self.path.with_suffix(".claims")
        folder.mkdir(exist_ok=True)
        with (folder / hashlib.sha256(key.encode()).hexdigest()[:24]).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self.refresh()  # what the last holder of the claim may have added
            yield True
