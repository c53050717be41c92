"""The figures in the README files are those that the scripts in bench/ wrote, and what the files name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme

ROOT = readme.ROOT
TEXTS = {file: (ROOT / file).read_text() for file in readme.FILES}
READ = ("README.md", "CONTRIBUTING.md", "bench/README.md", "profiles/README.md")
LONGEST = 160
"""Lines of the README: people decide in two minutes."""


@pytest.mark.parametrize("file", readme.FILES)
def test_its_tables_are_those_of_the_results(file: str) -> None:
    assert readme.renewed(file, TEXTS[file]) == TEXTS[file], "run python bench/readme.py"


@pytest.mark.parametrize("table", readme.TABLES, ids=lambda table: f"{table.file}:{table.name}")
def test_a_figure_typed_by_hand_is_put_right(table: readme.Table) -> None:
    text = TEXTS[table.file]
    start = text.index(table.start)
    row = text.index("\n", text.index("---|\n", start) + 5)  # end of the first row
    forged = text[:row] + " 9.99 |" + text[row:]
    assert forged != text and readme.renewed(table.file, forged) == text


@pytest.mark.parametrize("table", readme.TABLES, ids=lambda table: f"{table.file}:{table.name}")
def test_a_table_that_is_not_there_is_an_error(table: readme.Table) -> None:
    text = TEXTS[table.file].replace(table.start, "")
    with pytest.raises(ValueError, match=f"expected one line '<!-- table {re.escape(table.name)} -->', found 0"):
        readme.renewed(table.file, text)


@pytest.mark.parametrize("file", readme.FILES)
def test_markers_that_nothing_fills_are_an_error(file: str) -> None:
    with pytest.raises(ValueError, match="one for each table"):
        readme.renewed(file, TEXTS[file] + "\n<!-- table forgotten -->\n\n<!-- end -->\n")
    with pytest.raises(ValueError, match="one for each table"):
        readme.renewed(file, TEXTS[file].replace(readme.END, "", 1))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST


def _prose(file: str) -> str:
    """A file without its fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / file).read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(path: Path) -> set[str]:
    """What links to a Markdown file may name after "#"."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _links(file: str) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(file)):
        if "://" not in link:
            yield link


def _names(file: str) -> Iterator[str]:
    """Words in backticks that contain a slash and look like a path."""
    for code in re.findall(r"`([^`\n]+)`", _prose(file)):
        for word in code.split():
            if re.fullmatch(r"[\w.\-]+(/[\w.\-+]*)+", word):
                yield word


@pytest.mark.parametrize("file", READ)
def test_every_relative_link_leads_somewhere(file: str) -> None:
    folder = (ROOT / file).parent
    links = list(_links(file))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = folder / path if path else ROOT / file
        assert target.exists(), f"{file}: {link}"
        assert not anchor or anchor in _anchors(target), f"{file}: {link}"


@pytest.mark.parametrize("file", READ)
def test_every_file_that_is_named_exists(file: str) -> None:
    names = list(_names(file))
    assert names
    for name in names:
        assert (ROOT / name).exists() or ((ROOT / file).parent / name).exists(), f"{file}: {name}"
