"""Finished units of work that survive a kill: a folder of JSON files, each there whole or not at all, or a file of JSON
lines, of which a kill can tear the last one only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ProfileError
from ..files import replacing

__all__ = ["Journal", "Lines"]


class Journal:
    """Keeps the result of each unit; without a folder, in memory only.

    Units are named by what they depend on, so a journal of other settings is never mixed in: `job` is written once and
    compared on opening.

    Raises:
        ProfileError: the folder holds the journal of another job.
    """

    def __init__(self, folder: Path | None, job: dict[str, Any]) -> None:
        self.folder = folder
        self._memory: dict[str, Any] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        head = folder / "job.json"
        if head.exists():
            found = json.loads(head.read_text())
            if found != json.loads(json.dumps(job)):
                different = sorted(k for k in {*found, *job} if found.get(k) != json.loads(json.dumps(job)).get(k))
                raise ProfileError(
                    f"journal {folder}: it belongs to another probe (different: {', '.join(different)}); "
                    "use another folder or delete it"
                )
        else:
            self._write(head, job)

    @staticmethod
    def _write(path: Path, data: Any) -> None:
        with replacing(path) as temporary, temporary.open("w") as file:
            file.write(json.dumps(data) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _path(self, unit: str) -> Path:
        assert self.folder is not None
        return self.folder / f"unit-{hashlib.sha256(unit.encode()).hexdigest()[:16]}.json"

    def get(self, unit: str, work: Callable[[], Any]) -> Any:
        """The unit's result: read back if it is finished, else worked out and kept. Always as JSON gives it back."""
        if self.folder is None:
            if unit not in self._memory:
                self._memory[unit] = json.loads(json.dumps(work()))
            return self._memory[unit]
        path = self._path(unit)
        if not path.exists():
            self._write(path, {"unit": unit, "result": work()})
        return json.loads(path.read_text())["result"]

    def has(self, unit: str) -> bool:
        return unit in self._memory if self.folder is None else self._path(unit).exists()


class Lines:
    """JSON objects, one a line, in the order they were added. A torn last line is cut off on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def add(self, row: dict[str, Any]) -> None:
        """Append one line; it is on the disk when this returns."""
        line = (json.dumps(row) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())
        self.rows.append(json.loads(line))
