"""Profiles: validation, files, fingerprints, and what a layer gets."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx import solve
from freeloc_fx.errors import PlanError, ProfileError
from freeloc_fx.peers import RIFLEx, Window
from freeloc_fx.positions import VRPR
from freeloc_fx.profile import Profile, Sensitivity, SizedTSA
from freeloc_fx.strategy import Geometry, build
from freeloc_fx.visibility import TSA

FIELDS = {"w1": 12, "w2": 20, "g1": 2, "g2": 8}


class WanTransformer3DModel:
    def __init__(self, **config: Any) -> None:
        self.config = config


WAN = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "eps": 1e-6}


def full() -> Profile:
    return Profile(
        21,
        {0: "vrpr+tsa", 3: "direct+temp"},
        vrpr={41: FIELDS, 81: VRPR(10, 14, 2, 8, "separable")},
        tsa={41: {"d1": 8, "d2": 24, "ds": 195, "tokens": 1560}, 81: TSA(8, 24, 100, False, "2d")},
        temperature={3: 1.25},
        parts={"riflex": {"k": 4}, "freelong++": {"windows": [81, 41, 21], "cutoff": 0.5}},
        lengths={81: {"layers": "vrpr+tsa"}, 41: {"layers": {0: "vrpr+temp"}, "temperature": {0: 1.5}}},
        quantise="separable",
        name="full",
        model={"class": "Some", "config": {"patch_size": [1, 2, 2], "eps": 1e-6, "flag": True, "none": None}},
        layer_count=4,
        sensitivities={0: Sensitivity(0.5, 0.25, 0.01), 1: {"position": 1, "context": 2, "context_error": 0.5}},
        provenance={"source": "test", "seeds": [1, 2], "nested": {"é": [{"a": 1.5}]}},
    )


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
    with pytest.raises(ProfileError, match=r"^layers: unknown strategy 'rubbish'"):
        profile.with_layers("rubbish")


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
    ({"temperature": 0}, "temperature: expected a number above 0, found 0"),
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


# Files


def test_round_trip(tmp_path: Path) -> None:
    full().save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == full()
    assert Profile.load(str(tmp_path / "p.json")) == full()
    data = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert data["schema"] == 1
    assert data["vrpr"]["41"] == FIELDS | {"quantise": "separable"}
    assert data["tsa"]["41"]["tokens"] == 1560
    assert data["layers"] == {"0": "vrpr+tsa", "3": "direct+temp"}
    assert data["parts"] == {"riflex": {"k": 4}, "freelong++": {"windows": [81, 41, 21], "cutoff": 0.5}}


def test_a_file_from_before_parts_loads(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(document(layers="vrpr+tsa", vrpr={"41": FIELDS}), encoding="utf-8")
    loaded = Profile.load(tmp_path / "old.json")
    assert loaded.parts is None and loaded == Profile(21, vrpr={41: FIELDS})
    loaded.save(tmp_path / "new.json")
    assert "parts" not in json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))


NAMES = st.sampled_from([name + temp for name in ("direct", "vrpr", "tsa", "vrpr+tsa") for temp in ("", "+temp")])
LAYERS = st.integers(0, 60)
NUMBERS = st.floats(1e-300, 1e300)
QUANTISE = st.sampled_from(["pair", "separable"])


@st.composite
def vrprs(draw: st.DrawFn) -> VRPR:
    w1, g1 = draw(st.integers(0, 90)), draw(st.integers(1, 40))
    return VRPR(w1, w1 + draw(st.integers(0, 90)), g1, g1 + draw(st.integers(0, 40)), draw(QUANTISE))


@st.composite
def tsas(draw: st.DrawFn) -> TSA | SizedTSA:
    d1 = draw(st.integers(1, 90))
    spatial = draw(st.sampled_from(["raster", "2d"]))
    tsa = TSA(d1, d1 + draw(st.integers(0, 90)), draw(st.integers(1, 10**6)), draw(st.booleans()), spatial)
    return SizedTSA(tsa, draw(st.integers(1, 10**6))) if draw(st.booleans()) else tsa


def by_frames(entries: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | entries | st.dictionaries(st.integers(100, 999), entries, max_size=3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "riflex": st.fixed_dictionaries({}, optional={"k": st.integers(1, 9)}),
        "window": st.fixed_dictionaries({}, optional={"window": st.integers(0, 99), "sink": st.booleans()}),
        "ultravico": st.fixed_dictionaries({}, optional={"alpha": st.floats(1e-300, 1)}),
        "freelong++": st.fixed_dictionaries({"windows": st.lists(st.integers(1, 99), min_size=1, max_size=3)}),
    },
)
PROFILES = st.builds(
    Profile,
    st.integers(2, 99),
    NAMES | st.dictionaries(LAYERS, NAMES, max_size=5),
    vrpr=by_frames(vrprs()),
    tsa=by_frames(tsas()),
    temperature=st.none() | NUMBERS | st.dictionaries(LAYERS, NUMBERS, max_size=3),
    parts=st.none() | PARTS,
    quantise=QUANTISE,
    name=st.text(min_size=1),
    model=st.none() | st.fixed_dictionaries({"class": st.text(min_size=1), "config": OBJECTS}),
    layer_count=st.none() | st.integers(61, 99),
    sensitivities=st.none()
    | st.dictionaries(
        LAYERS, st.builds(Sensitivity, FINITE, FINITE, st.none() | FINITE, st.none() | FINITE), max_size=3
    ),
    provenance=st.none() | OBJECTS,
)


@given(PROFILES)
def test_every_profile_round_trips(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    profile.save(path)
    loaded = Profile.load(path)
    assert loaded == profile
    assert hash(loaded) == hash(profile)
    assert pickle.loads(pickle.dumps(profile)) == profile


def document(**change: Any) -> str:
    return json.dumps({"schema": 1, "trained_frames": 21, **change})


BAD_FILES: list[tuple[str | bytes, str]] = [
    ('{\n  "schema": 1,\n  "trained_frames" 21\n}', "line 3, column 20: not valid JSON: "),
    (b'{"schema": 1,\n "name": "\xff"}', "line 2, column 11: not valid JSON: not UTF-8"),
    ("", "line 1, column 1: not valid JSON: "),
    ("[]", "expected a JSON object, found list"),
    ("[" * 100_000, "not readable as JSON: "),
    ('{"schema": ' + "1" * 10_000 + "}", "not readable as JSON: "),
    ('{"trained_frames": 21}', "schema: expected version 1, found none"),
    ('{"schema": true, "trained_frames": 21}', "schema: expected version 1, found True"),
    ('{"schema": 2, "trained_frames": 21}', "schema: expected version 1, found 2"),
    ('{"schema": 1}', "trained_frames: missing"),
    (document(trained_frame=21), "trained_frame: unknown key; expected trained_frames, layers, "),
    (document(layers={"3": "rubbish"}), "layers.3: unknown strategy 'rubbish'"),
    (document(layers={"x": "vrpr"}), "layers: expected layer indices (integers from 0) as keys, found 'x'"),
    (document(layers={"03": "vrpr"}), "layers.03: expected an integer without leading zeros as key"),
    (document(layers=["vrpr"]), "layers: strategy: expected a name, found ['vrpr']"),
    (document(vrpr={"41": FIELDS | {"w1": 1.5}}), "vrpr.41.w1: expected an integer, found 1.5"),
    (document(tsa={"41": {"d1": 1}}), "tsa.41.d2: missing"),
    (document(temperature=float("nan")), "temperature: expected a finite number, found nan"),
    ('{"schema": 1, "trained_frames": 21, "temperature": 1e999}', "temperature: expected a finite number, found inf"),
    (document(provenance={"a": [float("inf")]}), "provenance.a.0: expected a finite number, found inf"),
    ('{"schema": 1, "trained_frames": 21, "trained_frames": 21}', "trained_frames: the key occurs twice"),
    (
        '{"schema": 1, "trained_frames": 21, "vrpr": {"41": {"w1": 1, "w1": 2}}}',
        "vrpr.41.w1: the key occurs twice in one object",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[message for _, message in BAD_FILES])
def test_bad_files_name_field_and_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ProfileError, match="^" + re.escape(message)) as caught:
        Profile.load(path)
    assert str(caught.value).endswith(f"(in {path})")


@given(st.binary() | st.text().map(str.encode) | JSON.map(json.dumps).map(str.encode))
def test_no_content_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.json"
    path.write_bytes(data)
    with pytest.raises(ProfileError):
        Profile.load(path)


@pytest.mark.parametrize("name", ["wan9", "nowhere/wan9.json", "\0", ""])
def test_an_unknown_name_lists_the_shipped_ones(name: str) -> None:
    with pytest.raises(ProfileError, match=r"the name of a shipped profile \(") as caught:
        Profile.load(name)
    assert repr(name) in str(caught.value)
    assert ", ".join(Profile.names()) in str(caught.value)


def test_save_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.json"
    Profile(16).save(path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "replace", fail)
        full().save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.json"]
    full().save(path)
    assert Profile.load(path) == full()
    with pytest.raises(FileNotFoundError):
        full().save(tmp_path / "nowhere" / "p.json")


# Shipped profiles and fingerprints


@pytest.mark.parametrize("name", Profile.names())
def test_shipped_profiles_are_as_save_writes_them(name: str, tmp_path: Path) -> None:
    profile = Profile.load(name)
    assert profile.name == name
    assert profile.model is not None and profile.provenance is not None
    # A profile without layer_count serves models of several sizes, with one strategy for all layers.
    assert isinstance(profile.layers, str) or profile.layer_count is not None
    if {"num_layers"} == {key for key in profile.model["config"] if key.endswith("layers")} and profile.layer_count:
        assert profile.model["config"]["num_layers"] == profile.layer_count
    profile.save(tmp_path / "again.json")
    shipped = Path(__file__).parent.parent / "profiles" / f"{name}.json"
    assert (tmp_path / "again.json").read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")


def test_wan_has_the_settings_of_the_paper() -> None:
    profile = Profile.load("wan2.1-t2v-1.3b")
    names = [profile.strategy_name(i) for i in range(30)]
    assert [i for i, name in enumerate(names) if name == "vrpr"] == [2, 3, 5, 8, 12, 17, 19, 20, 21, 26, 27, 28, 29]
    assert names.count("vrpr+tsa") == 17
    assert profile.settings(0, 41, 1560) == {"vrpr": VRPR(12, 20, 2, 8), "tsa": TSA(8, 24, 195), "temperature": None}
    assert profile.settings(2, 81, 1560)["vrpr"] == VRPR(10, 14, 2, 8)
    assert profile.settings(2, 61, 3600) == {"vrpr": None, "tsa": None, "temperature": None}


def test_names_lists_what_is_shipped() -> None:
    files = sorted(path.stem for path in (Path(__file__).parent.parent / "profiles").glob("*.json"))
    assert list(Profile.names()) == files
    assert {"tiny-wan", "wan2.1-t2v-1.3b", "hunyuanvideo", "cogvideox-5b", "ltx-video"} <= set(files)


def test_for_model_reads_the_fingerprint() -> None:
    assert Profile.for_model(WanTransformer3DModel(**WAN)).name == "wan2.1-t2v-1.3b"
    compiled = SimpleNamespace(_orig_mod=WanTransformer3DModel(**WAN))
    assert Profile.for_model(compiled).name == "wan2.1-t2v-1.3b"


def test_for_model_prefers_the_narrower_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Profile(16, name="wide", model={"class": "WanTransformer3DModel"})
    narrow = Profile(16, name="narrow", model={"class": "WanTransformer3DModel", "config": {"num_layers": 30}})
    shipped = {"a": wide, "b": narrow, "c": Profile(16, name="any")}
    monkeypatch.setattr(Profile, "names", staticmethod(lambda: tuple(shipped)))
    monkeypatch.setattr(Profile, "load", classmethod(lambda cls, name: shipped[name]))
    assert Profile.for_model(WanTransformer3DModel(**WAN)).name == "narrow"


@pytest.mark.parametrize("model", [WanTransformer3DModel(**(WAN | {"num_layers": 40})), object(), None])
def test_for_model_says_how_to_make_one(model: Any) -> None:
    with pytest.raises(ProfileError, match=f"no shipped profile is for this {type(model).__name__}") as caught:
        Profile.for_model(model)
    assert 'freeloc_fx.Profile(trained_frames=16, layers="vrpr+tsa")' in str(caught.value)
    assert "freeloc_fx.probe" in str(caught.value)


def test_check_model_names_key_expected_and_found() -> None:
    profile = Profile.load("wan2.1-t2v-1.3b")
    profile.check_model(WanTransformer3DModel(**WAN))
    Profile(16).check_model(object())
    with pytest.raises(PlanError, match=r"^model.config.num_layers: .*wan2.* expects 30, the model has 40$"):
        profile.check_model(WanTransformer3DModel(**(WAN | {"num_layers": 40})))
    with pytest.raises(PlanError, match=r"^model.config.num_layers: .* expects 30, the model has 'no such key'$"):
        profile.check_model(WanTransformer3DModel())
    with pytest.raises(PlanError, match=r"^model.class: .* is for WanTransformer3DModel, the model is a object$"):
        profile.check_model(object())
    with pytest.raises(PlanError, match=r"^model.config: expected a model with a config"):
        profile.check_model(type("WanTransformer3DModel", (), {})())


def test_check_model_takes_any_spelling_of_config() -> None:
    profile = Profile(16, model={"class": "Net", "config": {"patch_size": (1, 2, 2)}})
    for config in ({"patch_size": [1, 2, 2]}, {"patch_size": (1, 2, 2)}, SimpleNamespace(patch_size=(1, 2, 2))):
        net = type("Finetuned", (type("Net", (), {}),), {"config": config})
        profile.check_model(net())


def test_check_layers() -> None:
    Profile(16).check_layers(5)
    Profile(16, {4: "vrpr"}).check_layers(5)
    with pytest.raises(ProfileError, match=r"^layers.4: expected a layer of 0 to 3, found 4$"):
        Profile(16, {4: "vrpr"}).check_layers(4)
    with pytest.raises(ProfileError, match=r"^temperature.4: expected a layer of 0 to 3, found 4$"):
        Profile(16, temperature={4: 1.5}).check_layers(4)
    with pytest.raises(ProfileError, match=r"^layer_count: profile 'x' is for 30 layers, the model has 12$"):
        Profile(16, layer_count=30, name="x").check_layers(12)
