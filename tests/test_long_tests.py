"""Tests that only `.ci/run` and `pytest -m long` take: the list names tests that are there."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
from long_tests import LIST, long_tests, measured

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = ROOT / "tests" / "conftest.py"


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


class Item:
    """What pytest collects, as far as marks go."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid, self.marks = nodeid, list[str]()

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark.name)


def test_listed_tests_are_marked_and_no_others(request: pytest.FixtureRequest) -> None:
    listed = [Item(test) for test in sorted(long_tests())]
    others = [Item("tests/test_rooms.py::test_one"), Item(listed[0].nodeid + "[another parameter]")]
    (conftest,) = [p for p in request.config.pluginmanager.get_plugins() if getattr(p, "__file__", "") == str(CONFTEST)]
    conftest.pytest_collection_modifyitems([*listed, *others])
    assert all(item.marks == ["long"] for item in listed) and not any(item.marks for item in others)
    assert "not long" in str(request.config.getini("addopts"))
