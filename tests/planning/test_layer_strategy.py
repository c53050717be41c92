"""Parts with settings in a profile's layers: what a layer gets, files, errors, and the plan."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx.errors import ProfileError
from freeloc_fx.graph.records import AttentionSite
from freeloc_fx.method.build import build
from freeloc_fx.method.catalogue import PARTS
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.peers import NTK, PI, Anchors, Clip, Group, RIFLEx, ShiftedGroups, UltraViCo, Window, YaRN
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import TSA
from freeloc_fx.planning.layer_strategy import LayerStrategy, PartValue
from freeloc_fx.planning.plan import Plan, make_plan
from freeloc_fx.planning.profile import Profile
from freeloc_fx.planning.profile_json import FrozenMapping
from freeloc_fx.planning.settings import SizedTSA

NEAR, FAR = VRPR(10, 14, 2, 8), VRPR(12, 20, 2, 8)
SPARSE = TSA(8, 24, 195)
UNSET = {"vrpr": None, "tsa": None, "temperature": None}


# What a layer gets


def test_parts_for_all_layers() -> None:
    profile = Profile(trained_frames=21, layers=(NEAR, SPARSE))
    assert profile.strategy_name(0) == profile.strategy_name(29) == "vrpr+tsa"
    assert profile.settings(7, 81, 1560) == UNSET | {"vrpr": NEAR, "tsa": SPARSE}
    assert profile == Profile(21, [NEAR, SPARSE]) != Profile(21, "vrpr+tsa")
    assert hash(profile) == hash(Profile(21, [NEAR, SPARSE]))


def test_parts_layer_by_layer() -> None:
    profile = Profile(21, {0: FAR, 1: "vrpr+tsa", 2: (Window(12), "temp"), 3: ("riflex+tsa", Clip(20))}, vrpr=NEAR)
    assert [profile.strategy_name(i) for i in range(5)] == [
        "vrpr",
        "vrpr+tsa",
        "window+temp",
        "riflex+tsa+clip",
        "direct",
    ]
    assert profile.settings(0, 81) == UNSET | {"vrpr": FAR}
    assert profile.settings(1, 81) == UNSET | {"vrpr": NEAR}
    assert profile.settings(2, 81) == UNSET | {"vrpr": NEAR, "window": {"window": 12}}
    assert profile.settings(3, 81) == UNSET | {"vrpr": NEAR, "clip": {"bound": 20}}
    assert profile.settings(4, 81) == UNSET | {"vrpr": NEAR}
    assert profile.layers[0] == LayerStrategy("vrpr", FrozenMapping({"vrpr": FAR}))  # type: ignore[index]
    assert profile.layers[1] == "vrpr+tsa"  # type: ignore[index]
    assert profile.strategy_names == {"vrpr", "vrpr+tsa", "window+temp", "riflex+tsa+clip"}


def test_a_layers_own_settings_win_over_the_profiles() -> None:
    profile = Profile(
        21,
        {0: (VRPR(1, 2, 3, 4), TSA(1, 2, 3), RIFLEx(21)), 1: "vrpr+tsa+riflex"},
        vrpr={41: FAR},
        tsa=SPARSE,
        parts={"riflex": {"k": 4}, "clip": {"bound": 7}},
        temperature={0: 1.5},
    )
    own = {"vrpr": VRPR(1, 2, 3, 4), "tsa": TSA(1, 2, 3), "temperature": 1.5, "riflex": {}, "clip": {"bound": 7}}
    assert profile.settings(0, 41) == profile.settings(0, 99) == own
    assert profile.settings(1, 41) == own | {"vrpr": FAR, "tsa": SPARSE, "temperature": None, "riflex": {"k": 4}}


def test_the_settings_win_over_a_solved_separable_setting() -> None:
    profile = Profile(21, {0: NEAR, 1: "vrpr"}, quantise="separable")
    assert profile.settings(0, 81)["vrpr"] == NEAR
    assert profile.settings(1, 81)["vrpr"].quantise == "separable"


def test_sized_settings_hold_for_their_number_of_tokens() -> None:
    profile = Profile(21, SizedTSA(SPARSE, 1560), tsa=TSA(1, 2, 3))
    assert profile.strategy_name(0) == "tsa"
    assert (profile.settings(0, 81, 1560)["tsa"], profile.settings(0, 81, 99)["tsa"]) == (SPARSE, None)


def test_lengths_and_schedule_take_the_same() -> None:
    profile = Profile(
        21,
        {0: NEAR},
        lengths={41: {"layers": (FAR, "tsa")}, 81: {"layers": {1: Window(3)}, "temperature": 1.5}},
        schedule=[{"steps": 2, "layers": Clip(5)}, {"steps": 3, "layers": {0: (VRPR(1, 2, 3, 4), "temp")}}],
    )
    at = profile.at(41)
    assert at.strategy_name(9) == "vrpr+tsa" and at.settings(9, 41)["vrpr"] == FAR
    assert profile.at(81).strategy_name(1) == "window" and profile.at(81).settings(1, 81)["window"] == {"window": 3}
    assert profile.stages(0) == ((2, "clip"), (5, "vrpr+temp")) and profile.stages(1) == ((2, "clip"), (5, "direct"))
    assert profile.settings(0, 41, stage=0) == UNSET | {"clip": {"bound": 5}}
    assert profile.settings(0, 41, stage=1) == UNSET | {"vrpr": VRPR(1, 2, 3, 4)}
    assert profile.settings(0, 41) == UNSET | {"vrpr": NEAR}
    assert profile.strategy_names == {"vrpr", "vrpr+tsa", "window", "clip", "vrpr+temp"}


def test_indices_are_checked_under_parts_too() -> None:
    with pytest.raises(ProfileError, match=r"^layers\.4: expected a layer of 0 to 3, found 4$"):
        Profile(21, {4: NEAR}, layer_count=4)
    with pytest.raises(ProfileError, match=r"^layers\.4: expected a layer of 0 to 3, found 4$"):
        Profile(21, {4: NEAR}).check_layers(4)
    Profile(21, NEAR, layer_count=4).check_layers(4)


def test_with_layers_takes_parts() -> None:
    profile = Profile(21, "vrpr", name="base").with_layers({3: (NEAR, "tsa")})
    assert profile.strategy_name(3) == "vrpr+tsa" and profile.settings(3, 81)["vrpr"] == NEAR
    assert profile.name == "base, other layers"
    again = profile.with_layers(profile.layers)  # type: ignore[arg-type]
    assert again.layers == profile.layers


def test_parts_are_kept_as_immutable_data() -> None:
    layers: list[Any] = [NEAR, "temp"]
    profile = Profile(21, {0: layers})
    layers.append("clip")
    assert profile.strategy_name(0) == "vrpr+temp"
    assert pickle.loads(pickle.dumps(profile)) == profile
    with pytest.raises(TypeError):
        profile.layers[0].settings["vrpr"] = FAR  # type: ignore


VALUES: list[Any] = [
    NEAR,
    VRPR(10, 14, 2, 8, "separable"),
    SPARSE,
    TSA(8, 24, 195, False, "2d"),
    Window(12),
    Window(12, False),
    Clip(9),
    Group(4, 8),
    Anchors(5, 1, 8),
    Anchors(5, 1, 8, 2),
    RIFLEx(21),
    RIFLEx(21, 4),
    RIFLEx(21, repeats=30),
    PI(21),
    NTK(21),
    YaRN(21),
    YaRN(21, 2.0, 0.5),
    UltraViCo(21),
    UltraViCo(21, 0.95, 0.6, 4, 50),
    UltraViCo(21, period=50),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_value_becomes_the_strategy_that_it_says(value: Any) -> None:
    profile = Profile(21, {2: value, 3: "direct"})
    name = profile.strategy_name(2)
    built = build(name, Geometry(21, 81, 4, 6), profile.settings(2, 81, 24))
    assert name in PARTS and value in [getattr(built, field) for field in PARTS[name].sets]


def test_there_is_a_value_for_every_class_that_the_catalogue_names() -> None:
    classes = {part.value for part in PARTS.values() if part.value}
    assert classes == {type(value) for value in VALUES} == set(get_args(PartValue)) - {SizedTSA}


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {0: (NEAR, "rubbish")}}, "layers.0: unknown strategy 'vrpr+rubbish'"),
        ({"layers": {0: (NEAR, "tsa+group")}}, "layers.0: strategy 'vrpr+tsa+group': two parts set the positions"),
        ({"layers": {0: (NEAR, 3)}}, "layers.0.1: expected a strategy's name or one of VRPR, TSA, Anchors, Clip,"),
        ({"layers": (NEAR, "vrpr")}, "layers: strategy 'vrpr+vrpr' names a part twice"),
        ({"layers": (NEAR, FAR)}, "layers: strategy 'vrpr+vrpr' names a part twice"),
        ({"layers": {0: ("direct", NEAR)}}, "layers.0: strategy 'direct+vrpr': 'direct' composes with 'temp' only"),
        ({"layers": {0: ("vrpr", "tsa")}}, "layers.0: strategy: expected a name, found ('vrpr', 'tsa')"),
        ({"layers": {0: ()}}, "layers.0: strategy: expected a name, found ()"),
        ({"layers": {0: ShiftedGroups(2)}}, "layers.0: strategy: expected a name, found ShiftedGroups("),
        ({"layers": {0: RIFLEx(16)}}, "layers.0: riflex.trained_frames: expected the profile's 21, found 16"),
        ({"layers": ("temp", PI(16))}, "layers.1: pi.trained_frames: expected the profile's 21, found 16"),
        ({"layers": {0: Anchors(1, 1, 4, phase=2)}}, "layers.0: anchors.phase: expected 0, found 2"),
        ({"layers": {0: SizedTSA(SPARSE, 0)}}, "layers.0.tokens: expected an integer of at least 1, found 0"),
        ({"layers": {0: {}}}, "layers.0.name: missing"),
        ({"layers": {0: {"name": "no"}}}, "layers.0.name: unknown strategy 'no'"),
        ({"layers": {"name": 3}}, "layers.name: strategy: expected a name, found 3"),
        ({"layers": {"name": "vrpr", "extra": 1}}, "layers.extra: unknown key; expected name, settings"),
        ({"layers": {0: {"name": "vrpr", "settings": 3}}}, "layers.0.settings: expected a mapping from parts to their"),
        (
            {"layers": {0: {"name": "vrpr", "settings": {"tsa": {}}}}},
            "layers.0.settings.tsa: unknown key; expected vrpr",
        ),
        (
            {"layers": {0: {"name": "vrpr", "settings": {"vrpr": {"w1": 1}}}}},
            "layers.0.settings.vrpr.w2: missing",
        ),
        (
            {"layers": {0: {"name": "vrpr", "settings": {"vrpr": {"w1": 3, "w2": 2, "g1": 1, "g2": 1}}}}},
            "layers.0.settings.vrpr: expected 0 <= w1 <= w2, found w1=3, w2=2",
        ),
        (
            {"layers": {0: {"name": "window", "settings": {"window": {"window": -1}}}}},
            "layers.0.settings.window.window: expected an integer of at least 0, found -1",
        ),
        (
            {"layers": {0: {"name": "vrpr+temp", "settings": {"temp": 1.5}}}},
            "layers.0.settings.temp: unknown key; expected ",
        ),
        ({"layers": {0: LayerStrategy("no", {})}}, "layers.0.name: unknown strategy 'no'"),  # type: ignore[arg-type]
        (
            {"lengths": {41: {"layers": {0: PI(3)}}}},
            "lengths.41.layers.0: pi.trained_frames: expected the profile's 21",
        ),
        ({"schedule": [{"steps": 1, "layers": (NEAR, "x")}]}, "schedule.0.layers: unknown strategy 'vrpr+x'"),
    ],
)
def test_malformed_parts_name_their_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match="^" + re.escape(message)):
        Profile(**({"trained_frames": 21} | change))


# Files


def test_a_file_has_names_and_settings(tmp_path: Path) -> None:
    profile = Profile(21, {0: FAR, 1: "vrpr+tsa", 2: (Window(12), "temp")})
    profile.save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert data["schema"] == 1
    assert data["layers"] == {
        "0": {"name": "vrpr", "settings": {"vrpr": {"w1": 12, "w2": 20, "g1": 2, "g2": 8, "quantise": "pair"}}},
        "1": "vrpr+tsa",
        "2": {"name": "window+temp", "settings": {"window": {"window": 12}}},
    }
    assert Profile.load(tmp_path / "p.json") == profile


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    settings = {"vrpr": {"w1": 10, "w2": 14, "g1": 2, "g2": 8}, "tsa": {"d1": 8, "d2": 24, "ds": 195, "tokens": 1560}}
    document = {"schema": 1, "trained_frames": 21, "layers": {"name": "vrpr+tsa", "settings": settings}}
    (tmp_path / "p.json").write_text(json.dumps(document), encoding="utf-8")
    assert Profile.load(tmp_path / "p.json") == Profile(21, (NEAR, SizedTSA(SPARSE, 1560)))
    document["layers"] = {"name": "vrpr+tsa"}
    document["quantise"] = "separable"
    (tmp_path / "p.json").write_text(json.dumps(document), encoding="utf-8")
    assert Profile.load(tmp_path / "p.json") == Profile(21, "vrpr+tsa", quantise="separable")
    document["layers"] = {"3": {"name": "vrpr", "settings": {"vrpr": settings["vrpr"]}}}
    (tmp_path / "p.json").write_text(json.dumps(document), encoding="utf-8")
    own = VRPR(10, 14, 2, 8, "separable")
    assert Profile.load(tmp_path / "p.json") == Profile(21, {3: own}, quantise="separable")


POSITIONS = st.one_of(
    st.builds(lambda w, more, g, wider: VRPR(w, w + more, g, g + wider), *[st.integers(1, 30)] * 4),
    st.builds(Clip, st.integers(0, 30)),
    st.builds(Group, st.integers(1, 30), st.integers(1, 30)),
)
VISIBLE = st.one_of(
    st.builds(lambda d, more, s, sink: TSA(d, d + more, s, sink), *[st.integers(1, 30)] * 3, st.booleans()),
    st.builds(lambda d, s, tokens: SizedTSA(TSA(d, d, s), tokens), *[st.integers(1, 30)] * 3),
    st.builds(Window, st.integers(0, 30), st.booleans()),
    st.builds(Anchors, st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)),
)
OTHERS = st.one_of(
    st.builds(RIFLEx, st.just(21), st.none() | st.integers(1, 9)),
    st.builds(YaRN, st.just(21), st.floats(1, 9), st.floats(0.1, 1)),
    st.builds(PI, st.just(21)),
    st.sampled_from(["riflex", "pi", "yarn"]),
)


@st.composite
def layers(draw: st.DrawFn) -> Any:
    items = [draw(kind) for kind in (POSITIONS, VISIBLE, OTHERS, st.just("temp")) if draw(st.booleans())]
    if not items or items == ["temp"]:
        return draw(st.sampled_from(["direct", "vrpr+tsa"]))
    if all(isinstance(item, str) for item in items):
        return "+".join(items)
    return items[0] if len(items) == 1 else draw(st.sampled_from([tuple, list]))(draw(st.permutations(items)))


LAYERS = layers() | st.dictionaries(st.integers(0, 30), layers(), max_size=4)


@given(
    LAYERS,
    st.none() | st.dictionaries(st.integers(22, 99), st.fixed_dictionaries({"layers": LAYERS}), max_size=2),
    st.none() | st.lists(st.fixed_dictionaries({"steps": st.integers(1, 9), "layers": LAYERS}), max_size=2),
    st.sampled_from(["pair", "separable"]),
)
def test_every_profile_with_parts_round_trips(
    tmp_path_factory: pytest.TempPathFactory, layers: Any, lengths: Any, schedule: Any, quantise: Any
) -> None:
    profile = Profile(21, layers, lengths=lengths, schedule=schedule, quantise=quantise)
    path = tmp_path_factory.getbasetemp() / "parts.json"
    profile.save(path)
    loaded = Profile.load(path)
    assert loaded == profile and hash(loaded) == hash(profile) and repr(loaded) == repr(profile)
    for layer in range(4):
        assert loaded.settings(layer, 30, 6) == profile.settings(layer, 30, 6)
    assert profile.with_layers(profile.layers).layers == profile.layers  # type: ignore[arg-type]
    assert Profile(21, profile.layers, lengths=profile.lengths, schedule=profile.schedule, quantise=quantise) == profile


# The plan


def _plan(profile: Profile, layers: int = 4) -> Plan:
    grid = TokenGrid(81, 4, 6)
    rope = RopeLayout(8, (0, 2), (1, 3), ((1.0, 0.1),))
    shape = (1, 2, grid.sequence, 8)
    sites = [AttentionSite(f"blocks.{i}", i, "video", shape, shape, rope=rope, grid=grid) for i in range(layers)]
    return make_plan(sites, profile)


def test_the_plan_carries_each_layers_settings() -> None:
    made = _plan(Profile(21, {0: (VRPR(10, 13, 2, 8), TSA(8, 24, 3)), 1: "vrpr", 2: VRPR(5, 9, 2, 9)}))
    strategies = [site.strategy for site in made.sites]
    assert [strategy.name for strategy in strategies] == ["vrpr+tsa", "vrpr", "vrpr", "direct"]
    assert strategies[0].positions == VRPR(10, 13, 2, 8) and strategies[0].visibility == TSA(8, 24, 3)
    assert strategies[2].positions == VRPR(5, 9, 2, 9) != strategies[1].positions
    assert json.loads(made.to_json())["sites"][0]["strategy"]["w2"] == 13
    assert made.rewritten == 3


def test_layers_that_get_the_same_share_one_strategy() -> None:
    made = _plan(Profile(21, {0: NEAR, 1: "vrpr", 2: NEAR}, vrpr=FAR))
    first, second, third, _ = (site.strategy for site in made.sites)
    assert first is third and first.positions == NEAR and second.positions == FAR
    assert made.notes[0] == "vrpr: explicit settings reach position 21, trained positions end at 20"


def test_the_first_steps_have_their_own_settings() -> None:
    schedule = [{"steps": 2, "layers": Clip(5)}, {"steps": 1, "layers": {0: Clip(7)}}]
    made = _plan(Profile(21, Clip(9), schedule=schedule, parts={"clip": {"bound": 11}}))
    staged = made.sites[0].strategy
    assert [staged.at(step).positions for step in (0, 1, 2, 3)] == [Clip(5), Clip(5), Clip(7), Clip(9)]
    assert made.sites[1].strategy.at(2).name == "direct"
