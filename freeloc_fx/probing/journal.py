"""Finished units of a probe that survive a kill: a folder of JSON files, each there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freeloc_fx.errors import ProfileError
from freeloc_fx.files import read_json, write_text

__all__ = ["Units"]


class Units:
    """Keeps the result of each unit of work of one probe; without a folder, in memory only.

    Units are named by what they depend on, so a journal of other settings is never mixed in: `job` is written once and
    compared on opening.

    Args:
        folder: the journal's folder, which is made; None keeps the results in memory.
        job: everything that all units depend on, as JSON data.

    Raises:
        ProfileError: the folder holds the journal of another job.
        DamagedFileError: a file of the folder is not JSON.
    """

    def __init__(self, folder: Path | None, job: dict[str, Any]) -> None:
        self.folder = folder
        self._memory: dict[str, Any] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        head = folder / "job.json"
        if head.exists():
            found, wanted = read_json(head), _as_json(job)
            if found != wanted:
                different = sorted(k for k in {*found, *job} if found.get(k) != wanted.get(k))
                raise ProfileError(
                    f"journal {folder}: it belongs to another probe (different: {', '.join(different)}); "
                    "use another folder or delete it"
                )
        else:
            write_text(head, json.dumps(job) + "\n")

    def _path(self, unit: str) -> Path:
        """The file of a unit."""
        assert self.folder is not None
        return self.folder / f"unit-{hashlib.sha256(unit.encode()).hexdigest()[:16]}.json"

    def get(self, unit: str, work: Callable[[], Any]) -> Any:
        """Read a unit's result back if it is finished, else work it out and keep it.

        Args:
            unit: its name.
            work: makes the result, JSON data.

        Returns:
            The result, always as JSON gives it back.

        Raises:
            DamagedFileError: the unit's file is not JSON.
        """
        if self.folder is None:
            if unit not in self._memory:
                self._memory[unit] = _as_json(work())
            return self._memory[unit]
        path = self._path(unit)
        if not path.exists():
            write_text(path, json.dumps({"unit": unit, "result": work()}) + "\n")
        return read_json(path)["result"]


def _as_json(data: Any) -> Any:
    """Data as they are after they were written and read."""
    return json.loads(json.dumps(data))
