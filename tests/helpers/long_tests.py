"""Which tests are marked long: those that took more than about two seconds when measured, see tests/long_tests.txt.

They are many, and each shows something of its own, so `.ci/run` takes them all; `pytest` without further words leaves
them out and is done in minutes. To write the list anew, with nothing else computing:

    python -m pytest -m "not slow and not gpu" --durations=0 --durations-min=2 > durations.txt
    python tests/helpers/long_tests.py < durations.txt
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["LIST", "long_tests", "measured"]

LIST = Path(__file__).resolve().parents[1] / "long_tests.txt"
SECONDS = 2.0


def long_tests() -> frozenset[str]:
    """Ids of pytest, parameters included."""
    return frozenset(LIST.read_text(encoding="utf-8").splitlines())


def measured(lines: Iterable[str], seconds: float = SECONDS) -> list[str]:
    """Ids whose call took longer, of the lines that `pytest --durations=0` ends with.

    Set-up does not count: a fixture of a whole file would make long whichever test comes first.
    """
    calls = (re.match(r"([0-9.]+)s call +(\S.*?)\s*$", line) for line in lines)
    return sorted({call[2] for call in calls if call and float(call[1]) > seconds})


if __name__ == "__main__":
    found = measured(sys.stdin)
    if not found:
        raise SystemExit("no line of standard input reads like '3.14s call  tests/...': run pytest with --durations=0")
    LIST.write_text("\n".join(found) + "\n", encoding="utf-8")
    print(f"{len(found)} tests in {LIST}")
