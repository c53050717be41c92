"""Tests that only `.ci/run` and `pytest -m long` take: the list names tests that are there."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

from long_tests import LIST, long_tests, measured

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def functions(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    return frozenset(n.name for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.FunctionDef))


def test_every_id_is_one_of_a_test():
    lost = []
    for test in long_tests():
        file, name = test.partition("[")[0].split("::")
        if name not in functions(file):
            lost.append(test)
    assert long_tests() and not lost, f"{LIST.name} names tests that are not there (renamed, or moved): {sorted(lost)}"


def test_no_id_has_two_tests_in_one_file():
    """A second function of one name replaces the first, and its mark would be the other's."""
    for test in long_tests():
        file, name = test.partition("[")[0].split("::")
        source = ast.parse((ROOT / file).read_text("utf-8"))
        assert sum(isinstance(n, ast.FunctionDef) and n.name == name for n in source.body) == 1, test


def test_ids_are_read_off_the_lines_of_pytest():
    lines = [
        "== slowest durations ==\n",
        "12.50s call     tests/a.py::test_one[x - y]\n",
        "9.00s setup    tests/a.py::test_two\n",
        "1.99s call     tests/a.py::test_three\n",
        "2.01s call     tests/a.py::test_four   \n",
    ]
    assert measured(lines) == ["tests/a.py::test_four", "tests/a.py::test_one[x - y]"]


def test_a_listed_test_is_taken_by_long_alone():
    file = "tests/bench/test_search.py"

    def taken(*choice: str) -> set[str]:
        command = [sys.executable, "-m", "pytest", "-n0", "--collect-only", "-q", *choice, file]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        return {line for line in out.splitlines() if line.startswith(file)}

    listed = {test for test in long_tests() if test.startswith(file)}
    assert listed and taken("-m", "long") == listed
    assert taken() == taken("-m", "not slow and not gpu") - listed != set()
