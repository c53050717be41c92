"""What the scripts in bench/ import exists: most of them run for hours, and none of those in a test."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
SCRIPTS = sorted(BENCH.glob("*.py"))
SIBLINGS = {path.stem for path in SCRIPTS}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of everything that is imported by name of the library or of another script, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name


def defined(tree: ast.Module) -> set[str]:
    """Names at the top level of a script."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def exists(module: str, name: str) -> bool:
    if module in SIBLINGS:
        return name in defined(ast.parse((BENCH / f"{module}.py").read_text(encoding="utf-8")))
    found = importlib.import_module(module)
    if hasattr(found, name):
        return True
    return hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_it_imports_exists(path: Path) -> None:
    named = list(imported(ast.parse(path.read_text(encoding="utf-8"))))
    ours = [(m, n) for m, n in named if m in SIBLINGS or m.partition(".")[0] == "freeloc_fx"]
    assert [f"{module}.{name}" for module, name in ours if not exists(module, name)] == []


def test_a_name_that_is_gone_is_found() -> None:
    assert not exists("freeloc_fx.generation.telling", "with_schedule") and not exists("clips", "no_such_clip")
    assert exists("freeloc_fx.evaluation", "metrics") and exists("clips", "prompt_of")
