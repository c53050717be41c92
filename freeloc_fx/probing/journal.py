"""Finished units of a probe that survive a kill: a folder of JSON files, each there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freeloc_fx.errors import ProfileError
from freeloc_fx.files import DamagedFileError, read_json, write_text

__all__ = ["Units"]

log = logging.getLogger("freeloc_fx")


class Units:
    """Keeps the result of each unit of work of one probe; without a folder, in memory only.

    Units are named by what they depend on, so a journal of other settings is never mixed in: `job` is written once and
    compared on opening.

    Args:
        folder: the journal's folder, which is made; None keeps the results in memory.
        job: everything that all units depend on, as JSON data.

    Raises:
        ProfileError: the folder holds the journal of another job.
        DamagedFileError: the file that says whose journal it is cannot be read; the message names it.
    """

    def __init__(self, folder: Path | None, job: dict[str, Any]) -> None:
        self.folder = folder
        self._memory: dict[str, Any] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        head = folder / "job.json"
        if head.exists():
            wanted = _as_json(job)
            try:
                found = read_json(head)
                if not isinstance(found, dict):
                    raise DamagedFileError(f"{head}, line 1: expected JSON, found no object")
            except DamagedFileError as error:
                raise DamagedFileError(
                    f"{error}; it says which probe the finished units of the folder belong to, so none of them can be "
                    "used: delete the folder to measure anew, or use another one"
                ) from None
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
            The result, always as JSON gives it back. A unit whose file is damaged is worked out again.
        """
        if self.folder is None:
            if unit not in self._memory:
                self._memory[unit] = _as_json(work())
            return self._memory[unit]
        path = self._path(unit)
        try:
            return self._finished(path, unit)
        except FileNotFoundError:
            pass
        except DamagedFileError as error:
            log.warning("%s: worked out again", error)
        write_text(path, json.dumps({"unit": unit, "result": work()}) + "\n")
        return self._finished(path, unit)

    @staticmethod
    def _finished(path: Path, unit: str) -> Any:
        """The result of a unit's file.

        Raises:
            FileNotFoundError: the unit is not finished.
            DamagedFileError: the file is not what `get` wrote.
        """
        found = read_json(path)
        if not isinstance(found, dict) or found.get("unit") != unit or "result" not in found:
            raise DamagedFileError(f"{path}: expected the result of the unit {unit!r}, found {str(found)[:60]!r}")
        return found["result"]


def _as_json(data: Any) -> Any:
    """Data as they are after they were written and read."""
    return json.loads(json.dumps(data))
