"""Docstrings that a tool can read: an "Args:" section names exactly the parameters of the signature, one a line."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples|Note):$")
ENTRY = re.compile(r"^ {4}(\*{0,2}\w+): \S")
ROOT = Path(__file__).resolve().parents[1]


def modules() -> Iterator[str]:
    """Names of all modules, as they are imported."""
    for folder, prefix in ((ROOT / "freeloc_fx", "freeloc_fx"), (ROOT / "passes", "freeloc_fx.passes")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if parts[-1] != "__main__":
                yield ".".join([prefix, *(part for part in parts if part != "__init__")])


def documented(text: str) -> list[str] | None:
    """Names of the "Args:" section in order; None where there is no such section.

    Raises:
        AssertionError: a line of the section is neither "name: text" nor the continuation of such an entry.
    """
    names: list[str] = []
    lines = iter(inspect.cleandoc(text).splitlines())
    if not any(line == "Args:" for line in lines):
        return None
    for line in lines:
        if SECTION.match(line) or (line and not line.startswith(" ")):
            break
        if (entry := ENTRY.match(line)) is not None:
            names.append(entry.group(1))
        else:
            assert not line or (names and line.startswith(" " * 6)), f"expected 'name: text', found {line!r}"
    return names


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of a signature as a docstring spells them, without self."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    given = inspect.signature(function).parameters.values()
    return [stars.get(p.kind, "") + p.name for p in given if p.name not in ("self", "cls")]


def of_class(path: str, kind: type, owner: type | None = None) -> Iterator[tuple[str, Any, Any]]:
    """(path, documented object, function that has the parameters) of a class and of what it defines itself."""
    yield path, kind, kind
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == kind.__module__:
            yield f"{path}.{name}", function, function


def public() -> Iterator[tuple[str, str, Any, Any]]:
    """(module, path, documented object, function) of everything public that a module defines."""
    for name in modules():
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            if attribute.startswith("_"):
                continue
            value = getattr(value, "_init_fn", value)  # a torch operator's own function
            if getattr(value, "__module__", None) != name:
                continue
            if inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                for path, documented_object, function in of_class(f"{name}.{attribute}", value):
                    yield name, path, documented_object, function
            elif inspect.isfunction(value):
                yield name, f"{name}.{attribute}", value, value


PUBLIC = {path: (module, thing, function) for module, path, thing, function in public()}


def own_doc(thing: Any) -> str:
    """The docstring that was written for it, not one that was inherited or made up."""
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    made_up = inspect.isclass(thing) and text is not None and text.startswith(f"{thing.__name__}(")
    return "" if text is None or made_up else text


@pytest.mark.parametrize("path", PUBLIC)
def test_args_are_the_parameters(path: str) -> None:
    module, thing, function = PUBLIC[path]
    found = documented(own_doc(thing))
    try:
        expected = parameters(function)
    except ValueError:  # a class made in C has no signature
        return
    if found is not None:
        assert found == expected, f"{path}: expected Args of {expected}, found {found}"
        return
    exported = getattr(importlib.import_module(module), "__all__", ())
    name = path[len(module) + 1 :]
    if name in exported and not module.startswith("freeloc_fx.cli."):  # typer shows its docstrings; options have helps
        plain = inspect.isclass(thing) and issubclass(thing, (BaseException, dict, str, tuple))
        assert plain or len(expected) <= 1, f"{path}: expected an Args section for {expected}, found none"
