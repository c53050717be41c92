"""The catalogue of parts: what each declares, the table of them, and the pictures in docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from typing import Any

import numpy as np
import pytest

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.catalogue import PARTS, PartSummary, part_of, strategies
from freeloc_fx.method.parts import Part
from freeloc_fx.method.peers import Anchors, ShiftedGroups, Window
from freeloc_fx.method.peers.freelong import local
from freeloc_fx.method.strategy import Geometry, Strategy
from freeloc_fx.method.visibility import TSA, Everything, picture

WAN = Geometry(21, 81, 30, 52)


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_a_part_sets_the_fields_that_it_declares(part: Part) -> None:
    given = part(WAN, {}, {})
    assert set(given) == set(part.sets) <= {field.name for field in dataclasses.fields(Strategy)} - {"name", "stages"}
    if part.name != "direct":
        assert Strategy(**given) != Strategy()
    if part.value is not None:
        assert [type(value) for value in given.values()] == [part.value]


@pytest.mark.parametrize("geometry", [WAN, Geometry(8, 9, 2, 3)])
@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_a_parts_mixture_sets_the_fields_that_it_declares(part: Part, geometry: Geometry) -> None:
    mixture = part(geometry, {}, {}).get("mixture")
    members = () if mixture is None else mixture.strategies
    assert {name for member in members for name in member.set_fields} == set(part.mixes)


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_a_part_is_stepped_where_its_strategy_is(part: Part) -> None:
    assert Strategy(**part(WAN, {}, {})).follows_steps == part.stepped


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_a_parts_settings_are_fields_of_its_value(part: Part) -> None:
    names = [] if part.value is None else [field.name for field in dataclasses.fields(part.value)]
    if part.value is not None:
        assert set(strategies()[part.name].settings) == set(names) - {"trained_frames", "phase"}
    assert part.settings is None or part.words is None


def test_values_know_their_part() -> None:
    assert part_of(Window(3)) is PARTS["window"] and part_of(TSA(1, 2, 3)) is PARTS["tsa"]
    assert part_of("window") is part_of(None) is part_of(ShiftedGroups(2)) is None


def test_the_table_of_parts() -> None:
    table = strategies()
    assert list(table) == list(PARTS) and len(table) == len(PARTS)
    assert table["vrpr"].sets == "positions" and list(table["vrpr"].settings) == ["w1", "w2", "g1", "g2", "quantise"]
    assert table["direct"].sets == "nothing" and table["hold"].sets == "text scale, text last"
    assert table["riflex"] == PartSummary(
        "riflex",
        "frequencies",
        {"k": "an integer of at least 1", "repeats": "an integer of at least 1"},
        "The temporal frequency with which videos repeat is lowered until the clip fits within its period.",
    )
    assert table["freelong++"].settings["windows"] == "a list of at least one value, each an integer of at least 1"
    assert table["ultravico"].settings["alpha"] == "a number above 0 and at most 1"
    assert [name for name, part in table.items() if part.stepped] == ["anchors"]
    for part in table.values():
        assert part.doc[0].isupper() and part.doc.endswith(".")


def test_the_table_prints() -> None:
    lines = str(strategies()).splitlines()
    assert lines[0].split() == ["part", "sets", "settings", "what", "it", "does"]
    assert [line.split()[0] for line in lines[1:]] == list(PARTS)
    for line, part in zip(lines[1:], strategies().values(), strict=True):
        assert part.sets in line and part.doc in line and ", ".join(part.settings) in line
        assert ("[by denoising step]" in line) == part.stepped
    starts = {line.index(part.doc) for line, part in zip(lines[1:], strategies().values(), strict=True)}
    assert len(starts) == 1


def test_the_table_cannot_be_changed() -> None:
    table: Any = strategies()
    with pytest.raises(TypeError):
        table["new"] = table["vrpr"]
    with pytest.raises(TypeError):
        table["window"].settings["new"] = "anything"
    with pytest.raises(dataclasses.FrozenInstanceError):
        table["window"].sets = "nothing"


def side_by_side(*pictures: str) -> str:
    return "\n".join("    ".join(row) for row in zip(*(drawn.splitlines() for drawn in pictures), strict=True))


ANCHORS = Anchors(window=1, first=1, every=4)


@pytest.mark.parametrize(
    ("documented", "drawn"),
    [
        (Everything, picture(Everything(), 6)),
        (TSA, picture(TSA(d1=2, d2=4, ds=1), 10)),
        (Window, picture(Window(2), 10)),
        (Anchors, side_by_side(picture(ANCHORS.at(0), 10), picture(ANCHORS.at(1), 10))),
        (local, picture(local(5).visibility, 10)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_picture_in_the_docstring_is_what_the_rule_says(documented: Any, drawn: str) -> None:
    doc = inspect.getdoc(documented)
    assert doc is not None
    assert f":\n\n{textwrap.indent(drawn, '    ')}\n" in doc + "\n"
    shown = [line for line in doc.splitlines() if line.strip() and set(line.strip()) <= set("#/. ")]
    assert len(shown) == len(drawn.splitlines())


def test_every_visibility_has_a_picture() -> None:
    for part in PARTS.values():
        if part.sets == ("visibility",):
            assert part.value is not None and "#" in (part.value.__doc__ or "")


def test_a_picture_is_drawn_from_the_levels() -> None:
    assert picture(TSA(1, 2, 1, sink=False), 3) == "#/.\n/#/\n./#"
    rows = picture(TSA(2, 4, 1), 7).splitlines()
    levels = TSA(2, 4, 1).levels(7)
    assert [["./#".index(mark) for mark in row] for row in rows] == levels.tolist()


# Checks


@pytest.mark.parametrize(
    ("value", "plain", "numpy"),
    [
        (3, True, True),
        (True, False, False),
        (np.int64(3), False, True),
        (np.bool_(True), False, False),
        (3.0, False, False),
        ("3", False, False),
        (None, False, False),
    ],
)
def test_what_counts_as_a_whole_number(value: Any, plain: bool, numpy: bool) -> None:
    assert checks.is_whole(value) is plain
    assert checks.is_whole(value, numpy=True) is numpy


def test_bounds_of_whole_numbers() -> None:
    assert [checks.is_whole(n, 1, 3) for n in range(5)] == [False, True, True, True, False]
    assert checks.is_whole(-5) and checks.is_whole(-5, most=0) and not checks.is_whole(np.int64(0), 1, numpy=True)


@pytest.mark.parametrize(
    ("value", "plain", "numpy"),
    [
        (3, True, True),
        (0.5, True, True),
        (True, False, False),
        (float("nan"), False, False),
        (float("-inf"), False, False),
        (np.float32(0.5), False, True),
        (np.float32("inf"), False, False),
        ("3", False, False),
    ],
)
def test_what_counts_as_a_number(value: Any, plain: bool, numpy: bool) -> None:
    assert checks.is_number(value) is plain
    assert checks.is_number(value, numpy=True) is numpy


def test_a_list_names_the_item_that_does_not_pass() -> None:
    check = checks.each(checks.whole(1))
    check("a.b", (1, 2))
    with pytest.raises(StrategyError, match=r"^a\.b\.1: expected an integer of at least 1, found 0$"):
        check("a.b", [1, 0])
    with pytest.raises(StrategyError, match=r"^a\.b: expected a list of at least one value, found \[\]$"):
        check("a.b", [])
