"""Files that survive a kill: whole or not there at all, and journals of which a kill tears the last line only."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import FreelocError

try:
    import fcntl
except ImportError:  # Windows has no such locks; one process may still keep a journal
    fcntl = None  # type: ignore[assignment]

__all__ = ["DamagedFileError", "Journal", "installed_version", "read_json", "replacing", "save_figure", "write_text"]


class DamagedFileError(FreelocError, ValueError):
    """A file does not hold the JSON that was written to it; the message names the file and the line."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let the caller write a file under a temporary name, which takes the place of `path` once all went well.

    The temporary file lies in the same folder, so that the renaming is atomic. It is removed whatever happens,
    Ctrl-C included.

    Args:
        path: the file to make or to replace.

    Yields:
        The temporary name, with the suffix of `path`.

    Raises:
        OSError: the folder is not there or cannot be written to.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; it is on the disk when this returns.

    Args:
        path: the file to make or to replace.
        text: its content, written as UTF-8.

    Raises:
        OSError: see `replacing`.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a matplotlib figure, whole or not at all.

    Args:
        figure: a `matplotlib.figure.Figure`.
        path: the file to make or to replace; its suffix names the format.
        **options: of `Figure.savefig`.

    Raises:
        OSError: see `replacing`.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, **options)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        DamagedFileError: it is not JSON.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DamagedFileError(f"{path}, line {error.lineno}: expected JSON, found a damaged file ({error})") from None


def installed_version() -> str:
    """The version of freeloc_fx that journals, keys and reports record.

    Returns:
        That of the installed package; "0+unknown" for a checkout that was never installed.
    """
    try:
        return importlib.metadata.version("freeloc_fx")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


class Journal:
    """Finished work as JSON objects, one a line, which several processes may share, each killed at any moment.

    A process that wants to do a piece of work can claim it first: a file that the kernel keeps locked for as long as
    the process lives, so that no kill leaves a claim behind. Sharing needs `fcntl` (Linux, macOS).

    Args:
        path: the file, which need not exist; its folder is made.

    Raises:
        DamagedFileError: a line that was written to its end is not JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        self.refresh()

    def refresh(self) -> list[dict[str, Any]]:
        """Read what others have added; a line that a killed process left torn is not counted.

        Returns:
            All rows in the order in which they were added, also kept as `rows`.

        Raises:
            DamagedFileError: as on opening.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        self.rows = self._parse(data[: _whole(data)])
        return self.rows

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append one line; it is on the disk when this returns. A torn last line is cut off before that.

        Args:
            row: JSON data without NaN or infinity.

        Returns:
            The row as JSON gives it back.

        Raises:
            ValueError: the row holds NaN or infinity.
            DamagedFileError: as on opening; nothing is written then.
            OSError: the line could not be written whole.
        """
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with self.path.open("a+b", buffering=0) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # released with the file
            file.seek(0)
            data = file.read()
            whole = _whole(data)
            rows = self._parse(data[:whole] + line)
            if whole < len(data):
                os.ftruncate(file.fileno(), whole)
            written = os.write(file.fileno(), line)
            if written != len(line):
                raise OSError(f"{self.path}: {written} of {len(line)} bytes were written; is the disk full?")
            os.fsync(file.fileno())
        self.rows = rows
        return rows[-1]

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim a piece of work for as long as the context lasts.

        Args:
            key: what names the piece of work.

        Yields:
            Whether this process may do it: False while another one does.

        Raises:
            OSError: this system has no such locks.
        """
        if fcntl is None:
            raise OSError(f"{self.path}: claims need a system with file locks (fcntl), such as Linux or macOS")
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

    def _parse(self, data: bytes) -> list[dict[str, Any]]:
        """The rows of whole lines."""
        rows = []
        for number, line in enumerate(data.splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DamagedFileError(f"{self.path}, line {number}: expected JSON, found {line[:60]!r}") from error
        return rows


def _whole(data: bytes) -> int:
    """Bytes up to the end of the last line that was written to its end."""
    return data.rfind(b"\n") + 1
