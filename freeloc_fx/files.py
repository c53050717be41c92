"""Files that survive a kill: whole or not there at all, journals of which a kill tears the last line only, claims."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import FreelocError

try:
    import fcntl
except ImportError:  # Windows has no such locks; one process may still keep a journal
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "ClaimedError",
    "DamagedFileError",
    "Journal",
    "WriteError",
    "claimed",
    "folder_of",
    "installed_version",
    "plain_label",
    "read_json",
    "replacing",
    "save_figure",
    "write_bytes",
    "write_text",
]


log = logging.getLogger("freeloc_fx")


class DamagedFileError(FreelocError, ValueError):
    """A file does not hold the JSON that was written to it; the message names the file and the line."""


class ClaimedError(FreelocError, ValueError):
    """Another process works in the folder; the message names both."""


class WriteError(FreelocError, OSError):
    """A file could not be written whole, so nothing was put in the place of what was there before."""


_FULL = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC), None}
"""What the system says of a write that it could not finish; an encoder of somebody else's need not pass it on."""


def _not_written(path: Path, error: OSError, kept: bool) -> WriteError:
    """The error of a file that could not be written whole, what to do, and whether the old file is there."""
    folder = folder_of(path)
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MB are free in {folder}"
    except OSError:
        free = f"{folder} does not say how much is free"
    why = error.strerror or str(error) or "no reason given"
    made = WriteError(
        f"{path}: expected to write the whole file, found: {why}; {free}: "
        "make room, raise the limit of file sizes (ulimit -f), or choose another folder"
        + ("; the file that was there is as it was" if kept else "")
    )
    made.errno = error.errno
    return made


def folder_of(path: Path) -> Path:
    """The folder that a file lies in; of a symbolic link, the one of the file that it points to.

    Args:
        path: of the file, which need not be there.
    """
    return Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let the caller write a file under a temporary name, which takes the place of `path` once all went well.

    The temporary file lies in the file's folder, so that the renaming is atomic, and is on the disk before that. It is
    removed whatever happens. A caller whose encoder may fail without saying so checks it before the context ends. A
    symbolic link stays one, and what it points to is replaced; a file that was there keeps its permissions.

    Args:
        path: the file to make or to replace.

    Yields:
        The temporary name, with the suffix of `path`.

    Raises:
        WriteError: the disk is full, or the caller found a file that is not whole; what was there is untouched.
        OSError: the folder is not there or cannot be written to.
    """
    temporary, target = None, Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # some file systems say only now that there was no room
        temporary.chmod(_mode(target))  # mkstemp makes files that only their owner may read
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _not_written(path, error, os.path.exists(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """Permissions of a file that is there, else those of a new one."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(path.stat().st_mode)
    os.umask(mask := os.umask(0))
    return 0o666 & ~mask


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; it is on the disk when this returns.

    Args:
        path: the file to make or to replace.
        text: its content, written as UTF-8.

    Raises:
        WriteError: see `replacing`.
        OSError: see `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; it is on the disk when this returns.

    Args:
        path: the file to make or to replace.
        data: its content.

    Raises:
        WriteError: see `replacing`.
        OSError: see `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a matplotlib figure, whole or not at all.

    Args:
        figure: a `matplotlib.figure.Figure`.
        path: the file to make or to replace; its suffix names the format.
        **options: of `Figure.savefig`.

    Raises:
        WriteError: see `replacing`.
        OSError: see `replacing`.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, **options)


def plain_label(text: str) -> str:
    """Write a text from outside for matplotlib, which reads what stands between two dollar signs as a formula.

    Args:
        text: the name of a profile, say.

    Returns:
        The text for a label or a title, which shows it as it is.
    """
    return text.replace("$", r"\$")


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
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, thousands of brackets or digits
        raise DamagedFileError(f"{path}: expected JSON, found a damaged file ({error})") from None


def installed_version() -> str:
    """The version of freeloc_fx that journals, keys and reports record; "0+unknown" where it was never installed."""
    try:
        return importlib.metadata.version("freeloc_fx")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a folder to this process for as long as the context lasts.

    The claim is a file in it that the kernel keeps locked for as long as the process lives, so that no kill leaves a
    claim behind. Without `fcntl` (Windows), or on a disk without locks, nobody is refused.

    Args:
        folder: it is made, and removed afterwards if nothing is left in it.

    Yields:
        Nothing.

    Raises:
        ClaimedError: another process has claimed it.
        OSError: it cannot be made.
    """
    path = folder / ".claim"
    file = _locked(path)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()
        with suppress(OSError):
            folder.rmdir()


def _locked(path: Path) -> IO[str] | None:
    """`claimed`, of the file that is locked; None where there are no locks."""
    while True:
        path.parent.mkdir(exist_ok=True)
        if fcntl is None:
            return None
        try:
            file = path.open("a+")
        except FileNotFoundError:
            continue  # the last holder has just removed the folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}")
                file.flush()
                return file
        except BlockingIOError:
            file.seek(0)
            found = file.read() or "another process"
            file.close()
            raise ClaimedError(
                f"{path.parent}: expected a folder in which no other run works, found {found} at work in it; "
                "wait for its end, or choose another output"
            ) from None
        except FileNotFoundError:
            pass  # as below
        except OSError as error:
            log.warning("%s: this disk has no locks (%s), so a second run is not noticed", path.parent, error)
            file.close()
            path.unlink(missing_ok=True)
            return None
        file.close()  # the last holder has removed it between the opening and the locking


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
            WriteError: the line could not be written whole; what was written of it is cut off by the next one.
        """
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        try:
            return self._append(line)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _not_written(self.path, error, kept=False) from error

    def _append(self, line: bytes) -> dict[str, Any]:
        """`add`, of a line."""
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
            if written != len(line):  # a full disk takes what there is room for, and refuses the next write only
                raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes were written")
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
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
                rows.append(row)
            except (ValueError, RecursionError) as error:
                raise DamagedFileError(f"{self.path}, line {number}: expected JSON, found {line[:60]!r}") from error
        return rows


def _whole(data: bytes) -> int:
    """Bytes up to the end of the last line that was written to its end."""
    return data.rfind(b"\n") + 1
