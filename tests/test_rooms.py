"""The house: which room may use which, how large a file may be, what passes and mathematics may not hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "freeloc_fx"
ROOMS = (
    "ground",
    "method",
    "attention",
    "planning",
    "graph",
    "passes",
    "compiler",
    "generation",
    "evaluation",
    "probing",
    "integrations",
    "cli",
)
"""Each uses only those before it."""
FACE = {"__init__", "errors", "files", "compat", "compat_diffusers", "moved", "versions", "checkout"}
MOST_LINES = 400


def files() -> dict[str, Path]:
    """Module name -> file, of the package as it is imported."""
    found = {}
    for folder, prefix in ((ROOT / PACKAGE, PACKAGE), (ROOT / "passes", f"{PACKAGE}.passes")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([prefix, *(p for p in parts if p != "__init__")])] = file
    return found


FILES = files()


def imported(name: str) -> Iterator[tuple[str, int]]:
    """(module of the package that a module imports, line), also those inside functions, not those for types only."""
    file = FILES[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in FILES:
                    yield alias.name, node.lineno
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] != PACKAGE:
                continue
            for alias in node.names:
                yield (f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base), node.lineno


def room(name: str) -> str:
    """The room of a module; the face of the package is above all."""
    _, _, rest = name.partition(".")
    first = rest.split(".")[0]
    if not rest:
        return "face"
    return "ground" if first in FACE else first


def test_at_the_root_stands_only_the_public_face() -> None:
    assert {file.stem for file in (ROOT / PACKAGE).glob("*.py")} == FACE
    assert {room(name) for name in FILES} == {*ROOMS, "face"}


def test_no_room_uses_one_above_it() -> None:
    order = {name: place for place, name in enumerate(ROOMS)}
    upward = [
        f"{name} ({FILES[name].name}:{line}) imports {other}"
        for name in FILES
        if room(name) != "face"
        for other, line in imported(name)
        if (room(other) == "face" and other != PACKAGE)
        or (room(other) != "face" and order[room(other)] > order[room(name)])
    ]
    assert not upward, "\n".join(upward)


def test_nothing_below_imports_the_face_while_it_is_imported() -> None:
    """`from freeloc_fx import ...` at the top of a module would find a package that is half imported."""
    found = []
    for name, file in FILES.items():
        if room(name) == "face":
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module == PACKAGE and not node.level:
                found += [f"{name}: {alias.name}" for alias in node.names if f"{PACKAGE}.{alias.name}" not in FILES]
    assert not found


def test_no_import_circle() -> None:
    graph = nx.DiGraph()
    for name in FILES:
        if room(name) != "face":
            graph.add_edges_from((name, other) for other, _ in imported(name) if room(other) != "face")
    # A package's __init__ may gather what is in its own modules.
    circles = [c for c in nx.simple_cycles(graph) if len(c) > 1]
    assert not circles, circles[:3]


def test_rooms_are_in_the_packages_list() -> None:
    """A package that pyproject does not name is missing from a wheel."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'^    "(freeloc_fx[\w.]*)",$', text, re.M))
    packages = {name for name, file in FILES.items() if file.name == "__init__.py"} | {f"{PACKAGE}.profiles"}
    assert named == packages


SOURCES = [
    file
    for folder in ("freeloc_fx", "passes", "tests", "bench")
    for pattern in ("*.py", "*.cpp", "*.h")
    for file in sorted((ROOT / folder).rglob(pattern))
]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_is_too_long(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines; what is it really?"


def modules_used(file: Path) -> set[str]:
    """Top-level names of every module that a file imports, with the dotted names themselves."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("name", sorted(n for n in FILES if room(n) == "passes"))
def test_passes_hold_no_mathematics(name: str) -> None:
    """They read records and call functions for the numbers."""
    file = FILES[name]
    assert not modules_used(file) & {"math", "cmath", "numpy", "scipy", "statistics", "fractions"}
    arithmetic = (ast.Pow, ast.MatMult, ast.Div)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, arithmetic)), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", sorted(n for n in FILES if room(n) == "method"))
def test_mathematics_holds_no_graphs(name: str) -> None:
    used = modules_used(FILES[name])
    assert not {m for m in used if m.startswith(("torch.fx", "torch._dynamo", "torch.export", "networkx"))}
    assert "torch.fx" not in FILES[name].read_text(encoding="utf-8").replace("`torch.fx`", "")


def test_private_names_of_other_libraries_stand_in_files_of_their_own() -> None:
    """A name with an underscore, looked up on torch, diffusers, accelerate or peft, or imported from them."""
    found = []
    for name, file in FILES.items():
        if file.stem in ("compat", "compat_diffusers"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
                path = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [f"{name}:{node.lineno} {node.module}" for part in path if private(part)]
            if isinstance(node, ast.Attribute) and private(node.attr):
                root = node.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(root, ast.Name) and root.id in FOREIGN:
                    found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, ast.Constant) and node.value in NAMES_IN_STRINGS:
                found.append(f"{name}:{node.lineno} {node.value!r}")
    assert not found, "\n".join(found)


FOREIGN = {"torch", "diffusers", "accelerate", "peft", "transformers"}
NAMES_IN_STRINGS = {"_compiled_call_impl", "_diffusers_hook", "_hf_hook", "_old_forward", "example_value"}
NAMES_IN_STRINGS |= {"nn_module_stack", "_dynamo_source", "_orig_mod", "_hf_peft_config_loaded"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
