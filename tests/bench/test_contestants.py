"""Who takes part in bench/tables.py, and what decides a contestant's pixels."""

from __future__ import annotations

from collections import Counter

import contestants as people

from freeloc_fx import Profile
from freeloc_fx.generation.noise import default_stride
from freeloc_fx.method.sensitivity import Sensitivity

PROFILE = Profile.load("tiny-wan")


def test_every_member_of_a_group_takes_part_or_is_absent_for_a_reason() -> None:
    names = {n for members in people.GROUPS.values() for n in members}
    made, absent = people.contestants(PROFILE, 10, 3)
    assert set(made) | set(absent) == names and not set(made) & set(absent)
    assert len(made["random"]) == 3 and all(len(m) == 1 for n, m in made.items() if n != "random")
    hashes = [c.content(81) for n, m in made.items() for c in m if n not in ("profile", "profile+temp")]
    assert len(set(hashes)) == len(hashes)
    # tiny-wan's profile gives every layer one strategy, so the profile's pixels are those of that strategy.
    assert "freenoise" in made and made["freenoise"][0].noise and made["freenoise"][0].stride == default_stride(21)
    assert made["freelong"][0].noise and not made["context-windows"][0].noise
    windows = [made[name][0].profile for name in ("window", "window-no-sink")]
    sinks = [w.settings(0, 81).get("window", {}).get("sink", True) for w in windows if w is not None]
    assert sinks == [True, False]
    _, cross = people.contestants(PROFILE, 10, 3, text=False)
    assert set(cross) - set(absent) == {n for n in names if "squeeze" in n or "hold" in n}


def test_content_is_what_decides_the_pixels() -> None:
    from dataclasses import replace

    usual = replace(PROFILE, layers="vrpr+tsa", lengths=None)
    one = people.Contestant("a", usual)
    assert one.content(81) == people.Contestant("b", replace(usual, name="other", provenance=None)).content(81)
    assert one.content(81) != people.Contestant("a", replace(usual, temperature=1.1)).content(81)
    assert one.content(81) != people.Contestant("a", usual, noise=True).content(81)
    # What was learnt for one length leaves the rows of the others as they are.
    names = {41: "vrpr+tsa", 81: "vrpr+temp", 201: "vrpr+tsa"}
    taught = people.Contestant("a", replace(PROFILE, lengths={n: {"layers": name} for n, name in names.items()}))
    assert [taught.content(n) == one.content(n) for n in (41, 81, 321)] == [True, False, True]


def test_a_temperature_is_added_at_every_length_of_a_profile() -> None:
    from dataclasses import replace

    taught = replace(
        PROFILE, lengths={41: {"layers": "tsa"}, 81: {"layers": "vrpr+temp"}, 201: {"layers": {0: "vrpr"}}}
    )
    made = people.contestants(taught, 10, 1)[0]["profile+temp"][0].profile
    assert made is not None
    names = {n: {made.at(n).strategy_name(i) for i in range(10)} for n in (41, 81, 201)}
    assert names == {41: {"tsa+temp"}, 81: {"vrpr+temp"}, 201: {"vrpr+temp", "direct+temp"}}


def test_layers_are_dealt_in_the_profiles_proportions() -> None:
    mixed = PROFILE.with_layers({**dict.fromkeys(range(4), "vrpr"), **dict.fromkeys(range(4, 10), "tsa")})
    made, absent = people.contestants(mixed, 10, 4)
    assert "split" in absent
    draws = [c.profile for c in made["random"] if c.profile is not None]
    assert all(Counter(p.strategy_name(i) for i in range(10)) == {"vrpr": 4, "tsa": 6} for p in draws)
    assert len({c.content(81) for c in made["random"]}) == 4
    assert [c.content(81) for c in people.contestants(mixed, 10, 4)[0]["random"]] == [
        c.content(81) for c in made["random"]
    ]


def test_a_uniform_profile_is_split_by_its_sensitivities_as_the_paper_does() -> None:
    found = {i: Sensitivity(1.0, float(i)) for i in range(30)}
    made = people.split(Profile(trained_frames=21, layers="vrpr", sensitivities=found), 30)
    assert made is not None
    assert [i for i in range(30) if made.strategy_name(i) == "vrpr+tsa"] == list(range(13, 30))
    known, _ = people.contestants(Profile(trained_frames=21, layers="vrpr", sensitivities=found), 30, 1)
    names = {name: [one.profile.strategy_name(i) for i in range(30) if one.profile] for name, (one,) in known.items()}
    assert names["split"] == ["vrpr"] * 13 + ["vrpr+tsa"] * 17 == sorted(names["random"])
    assert names["split-code"] == ["vrpr"] * 13 + ["tsa"] * 17
    made_by, absent = people.contestants(Profile(trained_frames=21, layers="vrpr"), 30)
    assert {"random", "split", "split-code"} == set(absent) and "random" not in made_by


def test_the_split_is_made_of_the_strategies_of_the_papers_profile() -> None:
    wan = Profile.load("wan2.1-t2v-1.3b")
    given = Counter(wan.strategy_name(i) for i in range(30))
    made = people.split(Profile(21, "vrpr", sensitivities={i: Sensitivity(1.0, float(i)) for i in range(30)}), 30)
    assert made is not None and Counter(made.strategy_name(i) for i in range(30)) == given


def test_separable_settings_and_temperature() -> None:
    wan = Profile.load("wan2.1-t2v-1.3b")
    made = people.separable(wan)
    assert made.quantise == "separable"
    assert isinstance(made.vrpr, people.Mapping) and {v.quantise for v in made.vrpr.values()} == {"separable"}
    known, _ = people.contestants(wan, 30)
    with_temp = known["profile+temp"][0].profile
    assert with_temp is not None and all(with_temp.strategy_name(i).endswith("+temp") for i in range(30))
