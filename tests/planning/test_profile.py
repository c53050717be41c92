"""Profiles: validation, and what a layer gets."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from typing import Any

import pytest
from profile_examples import FIELDS, full

from freeloc_fx.errors import ProfileError
from freeloc_fx.method import solve
from freeloc_fx.method.build import build
from freeloc_fx.method.peers import RIFLEx, Window
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import TSA
from freeloc_fx.planning.profile import Profile
from freeloc_fx.planning.settings import SizedTSA

# What a layer gets


def test_defaults_leave_everything_to_the_solver() -> None:
    profile = Profile(trained_frames=16)
    assert profile.strategy_name(123) == "vrpr+tsa"
    assert profile.settings(0, 64, 1560) == {"vrpr": None, "tsa": None, "temperature": None}
    assert Profile(16, vrpr="solved", tsa="solved") == Profile(16, vrpr={}, tsa=None) == profile


def test_a_clip_takes_the_layers_of_the_nearest_length() -> None:
    profile = full()
    for frames in (22, 41, 57):  # 57.6 is as far from 41 as from 81
        assert profile.at(frames).layers == {0: "vrpr+temp"} and profile.at(frames).temperature == {0: 1.5}
        assert profile.at(frames).lengths is None
        assert profile.at(frames).at(1000) == profile.at(frames)
    for frames in (58, 81, 2000):
        assert (profile.at(frames).layers, profile.at(frames).temperature) == ("vrpr+tsa", None)
    assert profile.at(41).vrpr == profile.vrpr and profile.at(41).name == "full"
    assert Profile(16).at(99) == Profile(16)
    assert profile.with_layers("vrpr").at(81).layers == "vrpr"


def test_layers_absent_from_a_mapping_are_direct() -> None:
    profile = Profile(16, {2: "tsa+temp"})
    assert [profile.strategy_name(i) for i in range(4)] == ["direct", "direct", "tsa+temp", "direct"]
    assert Profile(16, {}).strategy_name(0) == "direct"


@pytest.mark.parametrize("settings", [VRPR(12, 20, 2, 8), FIELDS])
def test_one_setting_holds_for_every_length(settings: Any) -> None:
    profile = Profile(21, vrpr=settings)
    assert profile.settings(0, 41)["vrpr"] == profile.settings(0, 99)["vrpr"] == VRPR(12, 20, 2, 8)


def test_settings_by_target_frames_leave_the_rest_to_the_solver() -> None:
    profile = Profile(21, vrpr={41: FIELDS}, tsa={41: TSA(4, 8, 9)}, temperature={1: 1.5})
    assert profile.settings(0, 41) == {"vrpr": VRPR(12, 20, 2, 8), "tsa": TSA(4, 8, 9), "temperature": None}
    assert profile.settings(1, 81) == {"vrpr": None, "tsa": None, "temperature": 1.5}


def test_tokens_restrict_tsa_to_one_resolution() -> None:
    profile = Profile(21, tsa={"d1": 8, "d2": 24, "ds": 195, "tokens": 1560})
    assert profile.tsa == SizedTSA(TSA(8, 24, 195), 1560)
    assert profile.settings(0, 81, 1560)["tsa"] == TSA(8, 24, 195)
    assert profile.settings(0, 81, 3600)["tsa"] is None
    assert profile.settings(0, 81)["tsa"] is None
    assert Profile(21, tsa=TSA(8, 24, 195)).settings(0, 81, 3600)["tsa"] == TSA(8, 24, 195)


def test_separable_applies_to_what_is_solved_and_what_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(trained: int, frames: int, quantise: str) -> VRPR:
        asked.append((trained, frames, quantise))
        return VRPR(1, 2, 3, 4, "separable")

    monkeypatch.setattr(solve, "vrpr", fake)
    profile = Profile(21, {0: "vrpr", 1: "tsa"}, vrpr={41: FIELDS, 61: VRPR(12, 20, 2, 8)}, quantise="separable")
    assert profile.settings(0, 81)["vrpr"] == VRPR(1, 2, 3, 4, "separable")
    assert profile.settings(0, 41)["vrpr"] == VRPR(12, 20, 2, 8, "separable")
    assert profile.settings(0, 61)["vrpr"] == VRPR(12, 20, 2, 8, "pair")
    assert profile.settings(1, 81)["vrpr"] is None  # no vrpr in its strategy
    assert profile.settings(0, 21)["vrpr"] is None  # within the trained length
    assert asked == [(21, 81, "separable")]


def test_settings_build_a_strategy() -> None:
    profile = Profile(21, "vrpr+tsa+temp", vrpr=FIELDS, tsa={"d1": 8, "d2": 24, "ds": 2}, temperature=1.5)
    strategy = build(profile.strategy_name(0), Geometry(21, 41, 3, 4), profile.settings(0, 41, 12))
    assert (strategy.positions, strategy.visibility) == (VRPR(12, 20, 2, 8), TSA(8, 24, 2))
    assert strategy.temperature == 1.5


def test_settings_of_parts_reach_the_strategy() -> None:
    profile = Profile(21, "riflex+window", parts={"riflex": {"k": 4}, "window": {"window": 3}, "clip": {"bound": 9}})
    found = profile.settings(0, 81)
    assert found == {"vrpr": None, "tsa": None, "temperature": None, **profile.parts}  # type: ignore[dict-item]
    strategy = build(profile.strategy_name(0), Geometry(21, 81, 3, 4), found)
    assert (strategy.frequencies, strategy.visibility) == (RIFLEx(21, k=4), Window(3))
    assert Profile(21, parts={}) == Profile(21)
    assert profile.with_layers("clip").parts == profile.parts
    with pytest.raises(TypeError):
        profile.parts["riflex"]["k"] = 5  # type: ignore[index]


def test_with_layers_changes_the_strategies_only() -> None:
    profile = full()
    other = profile.with_layers("direct")
    assert other.strategy_name(0) == "direct"
    assert (other.vrpr, other.tsa, other.model) == (profile.vrpr, profile.tsa, profile.model)
    assert other.name == "full, direct"
    assert other.provenance == {
        "source": "layers replaced",
        "base": "full",
        "base_provenance": profile.provenance,
    }
    assert profile.with_layers({1: "vrpr"}, name="mine").name == "mine"
    assert {**vars(other), "layers": 0, "lengths": 0, "temperature": 0, "name": 0, "provenance": 0} == {
        **vars(profile), "layers": 0, "lengths": 0, "temperature": 0, "name": 0, "provenance": 0
    }  # fmt: skip
    with pytest.raises(ProfileError, match=r"^layers: unknown strategy 'rubbish'"):
        profile.with_layers("rubbish")


@pytest.mark.parametrize("layers", ["window", (Window(5), "temp"), {0: "clip+temp", 2: "tsa"}])
def test_other_layers_hold_in_every_step(layers: Any) -> None:
    stages = [{"steps": 3, "layers": "vrpr"}, {"steps": 2, "layers": {1: "direct"}}]
    other = Profile(16, "vrpr+tsa", schedule=stages).with_layers(layers)
    assert other.schedule is None and other.stages(0) == other.stages(1) == ()
    assert other == Profile(16, layers, name=other.name, provenance=other.provenance)
    again = dataclasses.replace(other, schedule=stages)  # one for the new strategies, on purpose
    assert again.stages(1) == ((3, "vrpr"), (5, "direct")) and again.layers == other.layers


@pytest.mark.parametrize("layers", ["tsa+temp", (Window(5), "temp"), {0: "clip+temp", 2: "temp+tsa"}])
def test_other_layers_have_the_temperature_of_the_length(layers: Any) -> None:
    probed = {32: {"layers": "vrpr", "temperature": {0: 1.07, 2: 1.2}}, 150: {"layers": "clip", "temperature": 1.4}}
    profile = Profile(16, "vrpr", temperature=1.07, lengths={**probed, 320: {"layers": "vrpr+temp"}})
    other = profile.with_layers(layers)
    for frames in (20, 32, 60, 80, 150, 200, 320, 999):
        there = other.at(frames)
        assert there.layers == Profile(16, layers).layers
        for layer in (0, 2):
            found = there.settings(layer, frames)["temperature"]
            assert found == profile.at(frames).settings(layer, frames)["temperature"], frames
    assert other.at(999).temperature is None  # solved, not that of another length
    assert other.strategy_names == Profile(16, layers).strategy_names
    only = {n: {"layers": "vrpr"} for n in (32, 150)}
    solved = Profile(16, "vrpr+temp", temperature=1.07, lengths=only).with_layers(layers)
    assert solved.temperature is None and solved.lengths is None
    assert Profile(16, "vrpr", temperature=1.3).with_layers(layers).at(99).temperature == 1.3  # it stands for all


# It is plain, immutable data


def test_copies_pickles_and_hashes() -> None:
    profile = full()
    for twin in (copy.deepcopy(profile), pickle.loads(pickle.dumps(profile)), dataclasses.replace(profile), full()):
        assert twin == profile
        assert hash(twin) == hash(profile)
    assert profile != dataclasses.replace(profile, temperature=None)


def test_nothing_can_be_changed() -> None:
    layers = {0: "vrpr"}
    profile = Profile(16, layers)
    layers[0] = "tsa"
    assert profile.strategy_name(0) == "vrpr"
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.trained_frames = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        profile.layers[0] = "tsa"  # type: ignore[index]


def test_order_of_keys_does_not_matter() -> None:
    one, two = Profile(16, {0: "vrpr", 1: "tsa"}), Profile(16, {1: "tsa", 0: "vrpr"})
    assert one == two and hash(one) == hash(two)


# Bad values

BAD: list[tuple[dict[str, Any], str]] = [
    ({"trained_frames": 1}, "trained_frames: expected an integer of at least 2 latent frames, found 1"),
    ({"trained_frames": True}, "trained_frames: expected an integer of at least 2 latent frames, found True"),
    ({"trained_frames": 21.0}, "trained_frames: expected an integer of at least 2 latent frames, found 21.0"),
    ({"trained_frames": None}, "trained_frames: expected an integer of at least 2 latent frames, found None"),
    ({"layers": "rubbish"}, "layers: unknown strategy 'rubbish'"),
    ({"vrpr": {"w1": 1, "w2": 7**500, "g1": 1, "g2": 2}}, "vrpr.w2: expected an integer of at most 2**53, found"),
    ({"temperature": 10**350}, "temperature: expected a finite number, found 1000"),
    ({"sensitivities": {1: {"position": 1, "context": -(10**400)}}}, "sensitivities.1.context: expected a finite"),
    ({"parts": {"yarn": {"beta_fast": 9**999}}}, "parts.yarn.beta_fast: expected a number above 0"),
    ({"layers": "tsa+window"}, "layers: strategy 'tsa+window': two parts set the visibility"),
    ({"lengths": {40: {"layers": {2: "longdiff+clip"}}}}, "lengths.40.layers.2: strategy 'longdiff+clip': two parts"),
    ({"schedule": [{"steps": 1, "layers": "ntk+riflex"}]}, "schedule.0.layers: strategy 'ntk+riflex': two parts"),
    ({"layers": {3: "vrpr+rubbish"}}, "layers.3: unknown strategy 'vrpr+rubbish'"),
    ({"layers": {3: None}}, "layers.3: strategy: expected a name, found None"),
    ({"layers": None}, "layers: strategy: expected a name, found None"),
    ({"layers": {-1: "vrpr"}}, "layers: expected layer indices (integers from 0) as keys, found -1"),
    ({"layers": {"3": "vrpr"}}, "layers: expected layer indices (integers from 0) as keys, found '3'"),
    ({"layers": {4: "vrpr"}, "layer_count": 4}, "layers.4: expected a layer of 0 to 3, found 4"),
    ({"layer_count": 0}, "layer_count: expected an integer of at least 1, found 0"),
    ({"vrpr": {41: FIELDS | {"w1": "12"}}}, "vrpr.41.w1: expected an integer, found '12'"),
    ({"vrpr": {41: FIELDS | {"w1": 30}}}, "vrpr.41: expected 0 <= w1 <= w2, found w1=30, w2=20"),
    ({"vrpr": FIELDS | {"g1": 0}}, "vrpr: expected 1 <= g1 <= g2, found g1=0, g2=8"),
    ({"vrpr": FIELDS | {"quantise": "both"}}, "vrpr.quantise: expected 'pair' or 'separable', found 'both'"),
    ({"vrpr": FIELDS | {"w3": 1}}, "vrpr.w3: unknown key; expected w1, w2, g1, g2, quantise"),
    ({"vrpr": {41: {"w1": 1}}}, "vrpr.41.w2: missing"),
    ({"vrpr": {41: 8}}, "vrpr.41: expected VRPR or a mapping of its fields, found 8"),
    ({"vrpr": {16: FIELDS}}, "vrpr.16: expected target latent frames above the trained 16"),
    ({"vrpr": {41: FIELDS, "w1": 1}}, "vrpr: expected target latent frames (integers from 0) as keys, found 'w1'"),
    ({"vrpr": "best"}, "vrpr: expected VRPR or a mapping of its fields, found 'best'"),
    ({"vrpr": TSA(1, 2, 3)}, "vrpr: expected VRPR or a mapping of its fields, found TSA("),
    ({"tsa": {41: {"d1": 0, "d2": 1, "ds": 1}}}, "tsa.41: expected 1 <= d1 <= d2, found d1=0, d2=1"),
    ({"tsa": {"d1": 1, "d2": 1, "ds": 0}}, "tsa.ds: expected at least 1 token, found 0"),
    ({"tsa": {"d1": 1, "d2": 1, "ds": 1, "sink": 1}}, "tsa.sink: expected true or false, found 1"),
    ({"tsa": {"d1": 1, "d2": 1, "ds": 1, "tokens": 0}}, "tsa.tokens: expected an integer of at least 1, found 0"),
    ({"tsa": SizedTSA(TSA(1, 1, 1), 0)}, "tsa.tokens: expected an integer of at least 1, found 0"),
    ({"temperature": 0}, "temperature: expected a number above 0 and at most 1e+12, found 0"),
    ({"temperature": {1: 1e38}}, "temperature.1: expected a number above 0 and at most 1e+12, found 1e+38"),
    ({"temperature": float("nan")}, "temperature: expected a finite number, found nan"),
    ({"temperature": {2: "hot"}}, "temperature.2: expected a finite number, found 'hot'"),
    ({"temperature": {2: None}}, "temperature.2: expected a finite number, found None"),
    ({"parts": "riflex"}, "parts: expected a mapping from parts of strategy names to their settings, found 'riflex'"),
    ({"parts": {"rubbish": {}}}, "parts.rubbish: unknown key; expected"),
    ({"parts": {"vrpr": FIELDS}}, "parts.vrpr: unknown key; expected"),
    ({"parts": {3: {}}}, "parts.3: unknown key; expected"),
    ({"parts": {"riflex": 4}}, "parts.riflex: expected a mapping of k, repeats, found 4"),
    ({"parts": {"riflex": {"K": 4}}}, "parts.riflex.K: unknown key; expected k, repeats"),
    ({"parts": {"riflex": {"k": 0}}}, "parts.riflex.k: expected an integer of at least 1, found 0"),
    ({"parts": {"riflex": {"k": None}}}, "parts.riflex.k: expected an integer of at least 1, found None"),
    ({"parts": {"ultravico": {"alpha": 1.5}}}, "parts.ultravico.alpha: expected a number above 0 and at most 1"),
    ({"parts": {"window": {"sink": 1}}}, "parts.window.sink: expected true or false, found 1"),
    ({"parts": {"freelong++": {"windows": [21, 0]}}}, "parts.freelong++.windows.1: expected an integer of at least 1"),
    ({"quantise": "both"}, "quantise: expected 'pair' or 'separable', found 'both'"),
    ({"name": ""}, "name: expected a non-empty string, found ''"),
    ({"name": 3}, "name: expected a string, found 3"),
    ({"name": "\ud800"}, "name: expected text that UTF-8 can hold, found '\\ud800'"),
    ({"model": "Wan"}, "model: expected a mapping with class and config, found 'Wan'"),
    ({"model": {"config": {}}}, "model.class: missing"),
    ({"model": {"class": "A", "layers": 3}}, "model.layers: unknown key; expected class, config"),
    ({"model": {"class": 3}}, "model.class: expected a string, found 3"),
    ({"model": {"class": "A", "config": [1]}}, "model.config: expected a JSON object, found [1]"),
    ({"sensitivities": 3}, "sensitivities: expected a mapping of layers, found 3"),
    ({"sensitivities": {1: 3}}, "sensitivities.1: expected Sensitivity or a mapping of its fields, found 3"),
    ({"lengths": {"a": {"layers": "vrpr"}}}, "lengths: expected target latent frames"),
    ({"lengths": {16: {"layers": "vrpr"}}}, "lengths.16: expected target latent frames above the trained"),
    ({"lengths": {40: {}}}, "lengths.40.layers: missing"),
    ({"lengths": {40: {"layers": None}}}, "lengths.40.layers: strategy: expected a name, found None"),
    ({"lengths": {40: {"layers": {0: "no"}}}}, "lengths.40.layers.0: unknown strategy 'no'"),
    ({"lengths": {40: {"layers": {-1: "vrpr"}}}}, "lengths.40.layers: expected layer indices"),
    ({"lengths": {40: {"layers": "vrpr", "temperature": 0}}}, "lengths.40.temperature: expected a number above 0"),
    ({"lengths": {40: {"layers": {5: "vrpr"}}}, "layer_count": 5}, "lengths.40.layers.5: expected a layer of 0 to 4"),
    ({"lengths": "vrpr"}, "lengths: expected a mapping from target latent frames"),
    ({"sensitivities": {1: {"position": 3}}}, "sensitivities.1.context: missing"),
    ({"sensitivities": {1: {"position": 3, "context": None}}}, "sensitivities.1.context: expected a finite number"),
    ({"sensitivities": {1: Sensitivity(float("inf"), 1)}}, "sensitivities.1.position: expected a finite number"),
    ({"provenance": "paper"}, "provenance: expected a JSON object, found 'paper'"),
    ({"provenance": {"a": [0, {"b": float("nan")}]}}, "provenance.a.1.b: expected a finite number, found nan"),
    ({"provenance": {"a": object}}, "provenance.a: expected JSON data, found <class 'object'>"),
    ({"provenance": {"a": {1: 2}}}, "provenance.a: expected strings as keys, found 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message.split(",")[0] for _, message in BAD])
def test_bad_values_name_the_field(change: dict[str, Any], message: str) -> None:
    values = {"trained_frames": 16} | change
    with pytest.raises(ProfileError, match="^" + re.escape(message)):
        Profile(**values)
