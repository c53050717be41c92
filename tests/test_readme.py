"""The README's figures are those that the scripts in bench/ wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # its scripts are no package

import readme

TEXT = readme.README.read_text()


def test_its_tables_are_those_of_the_results() -> None:
    assert readme.renewed(TEXT) == TEXT, "run python bench/readme.py"


@pytest.mark.parametrize("head", readme.TABLES)
def test_a_figure_typed_by_hand_is_put_right(head: str) -> None:
    start = TEXT.index("\n" + head)
    row = TEXT.index("\n", TEXT.index("---|\n", start) + 5)  # end of the first row
    forged = TEXT[:row] + " 9.99 |" + TEXT[row:]
    assert forged != TEXT and readme.renewed(forged) == TEXT


def test_a_table_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected one table that begins with '\| tiny-wan \| 2x \|', found 0"):
        readme.renewed(TEXT.replace("| tiny-wan | 2x |", "| tiny-wan |"))
