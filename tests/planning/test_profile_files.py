"""Profiles as files, the shipped profiles, and fingerprints of models."""

from __future__ import annotations

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
from profile_examples import FIELDS, WAN, WanTransformer3DModel, full

from freeloc_fx.errors import PlanError, ProfileError
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.method.visibility import TSA
from freeloc_fx.planning.profile import Profile
from freeloc_fx.planning.settings import SizedTSA

ROOT = Path(__file__).parents[2]

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
FACTORS = st.floats(1e-300, 1e12)
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
    temperature=st.none() | FACTORS | st.dictionaries(LAYERS, FACTORS, max_size=3),
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
    shipped = ROOT / "profiles" / f"{name}.json"
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
    files = sorted(path.stem for path in (ROOT / "profiles").glob("*.json"))
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
