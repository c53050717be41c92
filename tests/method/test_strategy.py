"""Strategy names, how parts compose, and the temperature formula."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from freeloc_fx.errors import SolveError, StrategyError
from freeloc_fx.method import solve
from freeloc_fx.method.build import build, parse
from freeloc_fx.method.catalogue import PARTS
from freeloc_fx.method.parts import Part
from freeloc_fx.method.positions import VRPR, Identity
from freeloc_fx.method.solve_window import vrpr_sparse
from freeloc_fx.method.strategy import Geometry, Strategy
from freeloc_fx.method.visibility import TSA, Everything

WAN = Geometry(21, 81, 30, 52)
NAMES = ["direct", "vrpr", "tsa", "vrpr+tsa", "tsa+vrpr", "direct+temp", "vrpr+temp", "tsa+temp", "vrpr+tsa+temp"]


@pytest.mark.parametrize("name", NAMES)
def test_names_parse_and_build(name: str) -> None:
    assert parse(name) == tuple(name.split("+"))
    built = build(name, WAN)
    assert built.name == name
    assert isinstance(built.positions, VRPR if "vrpr" in name else Identity)
    assert isinstance(built.visibility, TSA if "tsa" in name else Everything)
    assert (built.temperature != 1.0) == ("temp" in name)
    assert built.changes_nothing == (name == "direct")
    assert hash(built) == hash(build(name, WAN)) and built == build(name, WAN)
    described = json.loads(json.dumps(built.describe()))
    assert described["name"] == name and described["temperature"] == built.temperature
    assert described["map"] == ("vrpr" if "vrpr" in name else "identity")
    assert described["visibility"] == ("tsa" if "tsa" in name else "everything")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vprp", "unknown strategy 'vprp': 'vprp' is not one of direct, vrpr, tsa, temp"),
        ("vrpr+", r"unknown strategy 'vrpr\+': '' is not one of"),
        ("", "unknown strategy '': '' is not one of"),
        ("VRPR", "'VRPR' is not one of"),
        ("vrpr + tsa", "'vrpr ' is not one of"),
        ("vrpr+tsa+vrpr", r"'vrpr\+tsa\+vrpr' names a part twice"),
        ("direct+vrpr", r"'direct\+vrpr': 'direct' composes with 'temp' only"),
        ("temp", "'temp' needs something to modify"),
        ("tsa+temp+anchors", r"'tsa\+temp\+anchors': two parts set the visibility"),
        ("group+riflex+vrpr", "two parts set the positions"),
        ("yarn+clip+pi", "two parts set the frequencies"),
        ("hold+squeeze+tsa", "two parts set the text_scale"),
        ("longdiff+freelong++", "two parts set the mixture"),
        ("group+longdiff", "two parts set the positions"),
        ("freelong+++riflex+anchors", "two parts set the visibility"),
        (None, "expected a name, found None"),
        (("vrpr", "tsa"), r"expected a name, found \('vrpr', 'tsa'\)"),
    ],
)
def test_names_refused(name: Any, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        parse(name)
    with pytest.raises(StrategyError, match=message):
        build(name, WAN)


def test_two_parts_that_set_the_same_do_not_compose() -> None:
    other = Part("other", lambda geometry, own, given: {"positions": Identity()}, sets=("positions",))
    parts = {**PARTS, "other": other}
    assert parse("other", parts) == ("other",)
    assert build("other", WAN, parts=parts).positions == Identity()
    with pytest.raises(StrategyError, match=r"'vrpr\+other': two parts set the positions"):
        build("vrpr+other", WAN, parts=parts)
    with pytest.raises(StrategyError, match=r"unknown strategy 'other'"):
        build("other", WAN)


PEERS = ["window", "riflex", "pi", "ntk", "yarn", "clip", "group", "longdiff", "ultravico", "anchors", "freelong"]
PEERS += ["freelong++"]
GIVES = {"freelong": "mixture", "freelong++": "mixture", "longdiff": "mixture", "ultravico": "decay"}
GIVES |= dict.fromkeys(("window", "anchors", "tsa"), "visibility")
GIVES |= dict.fromkeys(("clip", "group", "vrpr"), "positions")
GIVES |= dict.fromkeys(("riflex", "pi", "ntk", "yarn"), "frequencies")


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_sets_its_field_and_nothing_else(name: str) -> None:
    assert parse(name) == (name,) and parse(f"{name}+temp") == (name, "temp")
    built = build(name, WAN)
    assert built.name == name and not built.changes_nothing
    for item in dataclasses.fields(Strategy):
        if item.name not in ("name", GIVES[name]):
            assert getattr(built, item.name) == getattr(Strategy(), item.name)
    assert getattr(built, GIVES[name]) != getattr(Strategy(), GIVES[name])
    assert built == build(name, WAN) and hash(built) == hash(build(name, WAN))
    assert json.loads(json.dumps(built.describe()))["name"] == name
    with pytest.raises(StrategyError, match="'direct' composes with 'temp' only"):
        build(f"direct+{name}", WAN)


@pytest.mark.parametrize("one", sorted(GIVES))
@pytest.mark.parametrize("two", sorted(GIVES))
def test_parts_compose_unless_they_set_the_same(one: str, two: str) -> None:
    name = f"{one}+{two}"
    mixed = "mixture" in (GIVES[one], GIVES[two])
    taken = {"longdiff": {"positions"}, "freelong": {"visibility"}, "freelong++": {"visibility"}}
    inner = taken.get(one, set()) & {GIVES[two]} | taken.get(two, set()) & {GIVES[one]}
    if one == two:
        with pytest.raises(StrategyError, match="names a part twice"):
            build(name, WAN)
    elif GIVES[one] == GIVES[two] or inner:
        with pytest.raises(StrategyError, match="two parts set the"):
            build(name, WAN)
    else:
        built = build(name, WAN)
        for item in (one, two):
            for member in built.members:
                if item == "vrpr":  # solved for what the other part lets be seen
                    solved = vrpr_sparse(21, member.visibility, WAN.frames, WAN.height, WAN.width)
                    assert member.positions == (solve.vrpr(21, 81) if mixed else solved)
                elif GIVES[item] != "mixture":
                    assert getattr(member, GIVES[item]) == getattr(build(item, WAN), GIVES[item])
        assert (built.mixture is not None) == mixed
        # Composed in either order it is the same, but for its name.
        assert dataclasses.replace(build(f"{two}+{one}", WAN), name=name) == built
        # Two settings never share a key of the flat description.
        assert len(built.positions.describe()) + len(built.visibility.describe()) + 6 == len(built.describe())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("freelong++", ("freelong++",)),
        ("freelong+++temp", ("freelong++", "temp")),
        ("temp+freelong++", ("temp", "freelong++")),
        ("freelong+++vrpr+temp", ("freelong++", "vrpr", "temp")),
        ("freelong+vrpr", ("freelong", "vrpr")),
    ],
)
def test_a_part_may_end_in_plus_signs(name: str, parts: tuple[str, ...]) -> None:
    assert parse(name) == parts


@pytest.mark.parametrize("name", ["freelong+", "freelong++temp", "freelong+++", "tsa++", "freelong++++temp"])
def test_stray_plus_signs_are_refused(name: str) -> None:
    with pytest.raises(StrategyError, match=r"unknown strategy .*: '' is not one of"):
        parse(name)


@given(st.sampled_from([*PEERS, "vrpr+tsa", "riflex+tsa", "clip+window+temp"]), st.integers(2, 9), st.integers(1, 60))
@options(max_examples=60, deadline=None)
def test_every_strategy_builds_for_any_length_and_every_query_sees_itself(name: str, trained: int, more: int) -> None:
    frames = trained + more
    built = build(name, Geometry(trained, frames, 2, 2))
    for step in {0, 1, built.period - 1}:
        for member in built.at(step).members:
            levels = member.visibility.levels(frames)
            assert (np.diagonal(levels) == 2).all()
            assert (np.diagonal(member.positions.table(frames)) == 0).all()
            assert member.frequencies.omega(np.array([[1.0, 0.5]]), frames).shape == (1, 2)
            assert member.decay is None or (np.diagonal(member.decay.table(frames)) == 1).all()


def test_the_default_changes_nothing() -> None:
    assert Strategy().changes_nothing
    assert Strategy("some name").changes_nothing and Strategy().members == (Strategy(),)
    assert Strategy().describe() == {
        "name": "direct",
        "map": "identity",
        "visibility": "everything",
        "temperature": 1.0,
        "frequencies": {"kind": "unchanged"},
        "decay": None,
        "mixture": None,
        "period": 1,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        Strategy().temperature = 2.0  # type: ignore[misc]


def test_what_is_absent_is_solved() -> None:
    for settings in (None, {}, {"vrpr": None, "tsa": None, "temperature": None}):
        built = build("vrpr+tsa", WAN, settings)
        assert built.visibility == solve.tsa(21, 30, 52)
        assert built.positions == vrpr_sparse(21, built.visibility, 81, 30, 52)
        assert build("vrpr", WAN, settings).positions == solve.vrpr(21, 81)


def test_stages_come_before_the_strategy_itself() -> None:
    early, late = build("direct", WAN), build("vrpr+tsa", WAN)
    staged = dataclasses.replace(late, stages=((2, early), (3, build("tsa", WAN))))
    assert [staged.at(step).name for step in range(5)] == ["direct", "direct", "tsa", "vrpr+tsa", "vrpr+tsa"]
    assert staged.at(4) == late
    assert staged.follows_steps and not late.follows_steps
    assert not dataclasses.replace(early, stages=((2, late),)).changes_nothing
    assert [stage["before"] for stage in staged.describe()["stages"]] == [2, 3]


def test_squeeze_keeps_text_within_the_trained_frames() -> None:
    assert build("vrpr+squeeze", WAN).text_scale * 80 == pytest.approx(20)
    assert not build("squeeze", WAN).changes_nothing


def test_hold_keeps_later_frames_where_the_last_trained_one_meets_text() -> None:
    held = build("vrpr+tsa+hold", WAN)
    assert (held.text_scale, held.text_last) == (1.0, 20)
    assert held.turns_by_fractions == [] and not build("hold", WAN).changes_nothing
    assert held.describe()["text_last"] == 20 and held.describe() != build("vrpr+tsa", WAN).describe()
    assert build("hold", WAN, {"hold": {"last": 12}}).text_last == 12
    with pytest.raises(StrategyError, match="two parts set the text_scale"):
        build("squeeze+hold", WAN)
    with pytest.raises(StrategyError, match=r"hold\.last: expected an integer of at least 0, found -1"):
        build("hold", WAN, {"hold": {"last": -1}})


@pytest.mark.parametrize("as_mapping", [False, True])
def test_explicit_settings(as_mapping: bool) -> None:
    vrpr, tsa = VRPR(10, 14, 2, 8, "separable"), TSA(3, 5, 7, False, "2d")
    settings: dict[str, Any] = {"vrpr": vrpr, "tsa": tsa, "temperature": 1.25}
    if as_mapping:
        settings |= {"vrpr": dataclasses.asdict(vrpr), "tsa": dataclasses.asdict(tsa)}
    built = build("vrpr+tsa+temp", WAN, settings)
    assert (built.positions, built.visibility, built.temperature) == (vrpr, tsa, 1.25)
    assert build("direct", WAN, settings) == Strategy("direct")  # settings of parts that the name lacks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vrpr": {"w1": 1, "w2": 2, "g1": 1}}, "vrpr: .*missing.*'g2'"),
        ({"vrpr": {"w1": 1, "w2": 2, "g1": 1, "g2": 1, "g3": 1}}, "vrpr: .*unexpected.*'g3'"),
        ({"vrpr": (1, 2, 1, 1)}, r"vrpr: expected VRPR or a mapping of its fields, found \(1, 2, 1, 1\)"),
        ({"vrpr": {"w1": 3, "w2": 2, "g1": 1, "g2": 1}}, "0 <= w1 <= w2"),
        ({"tsa": {"d1": 1, "d2": 2}}, "tsa: .*missing.*'ds'"),
        ({"tsa": VRPR(1, 2, 1, 2)}, "tsa: expected TSA or a mapping"),
        ({"temperature": 0}, "temperature: expected a positive number, found 0"),
        ({"temperature": -1.0}, "temperature: expected a positive number"),
        ({"temperature": math.nan}, "temperature: expected a positive number, found nan"),
        ({"temperature": math.inf}, "temperature: expected a positive number, found inf"),
        ({"temperature": True}, "temperature: expected a positive number, found True"),
        ({"temperature": "1.2"}, "temperature: expected a positive number, found '1.2'"),
    ],
)
def test_explicit_settings_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        build("vrpr+tsa+temp", WAN, settings)


def test_temperature_takes_numpy_numbers_and_gives_a_float() -> None:
    for value in (np.float32(1.5), np.float64(1.5)):
        found = build("direct+temp", WAN, {"temperature": value}).temperature
        assert type(found) is float and found == 1.5


@given(st.integers(2, 12), st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))
@options(max_examples=40, deadline=None)
def test_temperature_is_the_root_of_the_ratio_of_logarithms(trained: int, more: int, height: int, width: int) -> None:
    geometry = Geometry(trained, trained + more, height, width)
    tokens = height * width
    direct = build("direct+temp", geometry).temperature
    assert direct == pytest.approx(math.sqrt(math.log((trained + more) * tokens) / math.log(trained * tokens)))
    assert direct > 1
    # VRPR drops no pair, so it changes nothing about the temperature; TSA does, in whatever order it is named.
    assert build("vrpr+temp", geometry).temperature == direct
    rule = TSA(1, 2, 1)
    levels, stripe = rule.levels(trained + more), rule.stripe(height, width)
    seen = [sum(tokens if v == 2 else stripe.sum() / tokens if v == 1 else 0 for v in row) for row in levels.tolist()]
    expected = math.sqrt(math.log(sum(seen) / len(seen)) / math.log(trained * tokens))
    for name in ("tsa+temp", "temp+tsa"):
        assert build(name, geometry, {"tsa": rule}).temperature == pytest.approx(expected)


def test_temperature_at_the_trained_length_is_one() -> None:
    assert build("direct+temp", Geometry(21, 21, 30, 52)).temperature == 1.0


def test_temperature_needs_two_tokens() -> None:
    with pytest.raises(StrategyError, match="temp: needs at least two visible tokens, found 1 trained"):
        build("direct+temp", Geometry(1, 4, 1, 1))


def test_a_geometry_that_cannot_be_solved_says_so() -> None:
    with pytest.raises(SolveError, match=r"solve\.vrpr trained_frames: expected an integer of at least 2, found 1"):
        build("vrpr", Geometry(1, 9, 2, 2))
    assert build("vrpr", Geometry(1, 9, 2, 2), {"vrpr": VRPR(0, 0, 1, 9)}).positions == VRPR(0, 0, 1, 9)


def test_geometry_counts_tokens() -> None:
    assert WAN.tokens == 1560
