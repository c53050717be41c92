"""Intervals, differences within clips, verdicts on claims, tables, plots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_results import FOUR, GOOD, SHORT, TEN, results, row

from freeloc_fx.evaluation.report import COLUMNS, Results, ResultsError, judge_claims, markdown, plots, summarise
from freeloc_fx.evaluation.report import claims as rules
from freeloc_fx.evaluation.report.plots import curve, draw_all
from freeloc_fx.evaluation.report.rows import COMPANIONS, interval, with_companions
from freeloc_fx.evaluation.report.summary import TRUTH, VBENCH

# Averages


def test_a_contestant_counts_once_in_each_clip() -> None:
    rows = [row("random", FOUR, 0, d, composite=v) for d, v in enumerate((0.1, 0.3))]
    rows += [row("random", FOUR, 1, composite=0.6), row("random", FOUR, 2, composite=None)]
    found = Results("m", SHORT, rows, {})
    assert found.per_clip("random", FOUR, "composite") == pytest.approx({0: 0.2, 1: 0.6})
    mean, low, high = found.mean("random", FOUR, "composite")
    assert mean == pytest.approx(0.4) and (low, high) == pytest.approx((0.2, 0.6))
    assert found.clips("random", FOUR) == 3


def test_differences_are_within_clips_that_have_both() -> None:
    rows = [row("a", FOUR, s, composite=0.5 + s / 10) for s in (0, 1, 2)]
    rows += [row("b", FOUR, s, composite=0.4 + s / 10) for s in (1, 2, 3)]
    rows += [row("b", SHORT, 1, composite=1.0)]
    found = Results("m", SHORT, rows, {})
    assert found.differences("a", "b", FOUR, "composite") == pytest.approx({1: 0.1, 2: 0.1})
    assert found.differences("a", "b", FOUR, "composite", short=True, factor=0.5) == pytest.approx({1: 0.1})


def test_a_capture_counts_in_no_time_but_in_every_score() -> None:
    rows = [row("a", FOUR, 0, captured=True, seconds=9.0), row("a", FOUR, 1, seconds=2.0)]
    found = Results("m", SHORT, rows, {})
    assert found.per_clip("a", FOUR, "seconds") == {1: 2.0}
    assert set(found.per_clip("a", FOUR, "composite")) == {0, 1}
    alone = Results("m", SHORT, rows[:1], {})
    assert alone.per_clip("a", FOUR, "seconds") == {0: 9.0}


def test_intervals_leave_out_what_was_not_measurable() -> None:
    assert interval([None, float("nan")]) == (None, None, None)
    assert interval([0.2, None]) == (0.2, None, None)  # one clip says nothing about others
    assert interval([0.2, None, 0.2]) == pytest.approx((0.2, 0.2, 0.2))


@pytest.mark.parametrize(("count", "least"), [(5, 0.87), (8, 0.92), (40, 0.92)])  # no resampling of 5 reaches 0.94
def test_intervals_cover_the_truth_about_as_often_as_they_say(count: int, least: float) -> None:
    random = np.random.default_rng(count)
    found = [interval(random.normal(size=count), draws=1000) for _ in range(400)]
    covered = np.mean([low is not None and high is not None and low < 0 < high for _, low, high in found])
    assert least <= covered <= 0.98


@given(st.lists(st.sampled_from(sorted(COLUMNS)), max_size=8))
def test_consistency_is_never_without_its_companions(columns: list[str]) -> None:
    found = with_companions(columns)
    assert [c for c in found if c in columns] == list(dict.fromkeys(columns))
    if any("consistency" in c or "smoothness" in c for c in columns):
        assert set(COMPANIONS) <= set(found)
    else:
        assert found == list(dict.fromkeys(columns))


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(ResultsError, match="beauty"):
        with_companions(["beauty"])
    assert set(TRUTH) | set(VBENCH) == set(COLUMNS)


# Verdicts

bounds = st.floats(-1, 1)


@given(bounds, bounds, st.integers(0, 9), st.sampled_from(get_args(rules.Sense)))
def test_verdicts(one: float, two: float, clips: int, sense: Any) -> None:
    low, high = sorted((one, two))
    word = rules.judge(((low + high) / 2, low, high), clips, sense)
    if clips < rules.FEWEST:
        assert word == "undecided"
        return
    mirror = {"above": "below", "below": "above", "not below": "not above", "not above": "not below"}
    assert rules.judge((-(low + high) / 2, -high, -low), clips, mirror[sense]) == word  # type: ignore[arg-type]
    if sense == "above":
        assert (word == "holds") == (low > 0)
        assert (word == "does not hold") == (low <= 0 and high < rules.MARGIN)
    if sense == "not below":
        assert (word == "holds") == (low > -rules.MARGIN)
        assert (word == "does not hold") == (high < -rules.MARGIN)


def test_nothing_measured_is_no_verdict() -> None:
    assert rules.judge((None, None, None), 9, "above") == "not measured"
    assert rules.judge((0.5, None, None), 1, "above") == "undecided"
    verdicts = {v.claim.key: v for v in judge_claims(Results("m", SHORT, [], {}))}
    assert {v.overall for v in verdicts.values()} == {"not measured"}


def verdict(key: str, found: Results) -> rules.Verdict:
    return next(v for v in judge_claims(found) if v.claim.key == key)


def test_every_claim_can_hold_and_every_claim_can_fail() -> None:
    good = results(GOOD, noise=0.003)
    # Consistency runs against motion in the paper's world, and a window loses what things were.
    flattered = [
        {
            **r,
            "scores": {
                **r["scores"],
                "subject_consistency": 1 - r["scores"]["motion"],
                "constancy": 0.6 if r["contestant"] == "window" else 0.9,
            },
        }
        for r in good.rows
    ]
    assert {v.claim.key: v.overall for v in judge_claims(replace(good, rows=flattered))} == {
        c.key: "holds" for c in rules.CLAIMS
    }
    bad = results({name: 1.0 - value for name, value in GOOD.items()} | {"vrpr-separable": 0.9, "riflex": 0.9})
    bad = replace(
        bad,
        rows=[{**r, "scores": {**r["scores"], "subject_consistency": r["scores"]["motion"] - 1}} for r in bad.rows],
    )
    found = {v.claim.key: v.overall for v in judge_claims(bad)}
    assert set(found.values()) == {"does not hold"}, found


def test_claims_between_equals_are_undecided_or_fail_by_the_margin() -> None:
    level = {name: 0.6 for name in GOOD if "squeeze" not in name}
    equal = results(level, noise=0.1, seeds=12)
    assert verdict("vrpr", equal).overall == "undecided"
    assert verdict("vrpr", results(level, noise=0.001)).overall == "does not hold"
    assert verdict("peers", results(level, noise=0.001)).overall == "holds"


def test_a_claim_about_one_length_looks_at_no_other() -> None:
    found = results(GOOD)
    assert list(verdict("riflex", found).lengths) == [FOUR] and list(verdict("target", found).lengths) == [TEN]
    assert verdict("target", results(GOOD, lengths=(FOUR,))).overall == "not measured"
    assert list(verdict("vrpr", found).lengths) == [FOUR, TEN]


def test_the_peer_that_wins_is_named() -> None:
    found = verdict("peers", results(GOOD | {"window": 0.8}))
    assert found.overall == "does not hold"
    assert [f.comparison.against for f in found.exceptions] == ["window"]


def test_pooled_each_clip_counts_once() -> None:
    rows = [row("direct", n, s, motion=0.2) for n in (FOUR, TEN) for s in range(5)]
    rows += [row("vrpr", FOUR, s, motion=0.3) for s in range(5)] + [row("vrpr", TEN, s, motion=0.7) for s in range(5)]
    (finding,) = verdict("vrpr", Results("m", SHORT, rows, {})).findings
    assert finding.clips == 5 and finding.difference[0] == pytest.approx(0.3)
    assert finding.values == pytest.approx((0.5, 0.2))


def test_layerwise_is_the_contestant_that_the_results_name() -> None:
    found = results(GOOD | {"split": 0.9, "profile": 0.1})
    assert verdict("layerwise", found).overall == "does not hold"
    assert verdict("layerwise", replace(found, layerwise="split")).overall == "holds"
    assert verdict("layerwise", replace(found, layerwise=None)).overall == "not measured"


def test_few_clips_decide_nothing() -> None:
    words = {v.overall for v in judge_claims(results(GOOD, seeds=rules.FEWEST - 1))}
    assert words <= {"undecided", "not measured"}


# Tables and plots


def test_records_and_markdown_have_every_contestant() -> None:
    found = results(GOOD)
    records = summarise(found)
    assert len(records) == 1 + 2 * len(GOOD)
    one = next(r for r in records if r["contestant"] == "vrpr" and r["frames"] == TEN)
    assert one["differences"]["direct"]["composite"][0] == pytest.approx(0.2, abs=0.02)
    assert set(one["differences"]) == {"direct", "profile"} and set(one["means"]) == set(COLUMNS)
    text = markdown(found, records, judge_claims(found))
    lines = [line for line in text.splitlines() if line.startswith("| 321 | vrpr |")]
    assert len(lines) == 2  # of the ablation: against the prompt, and VBench's kind
    assert "RIFLEx does not help" in text and "nan" not in text


def test_the_curve_is_the_mean_over_videos(tmp_path: Path) -> None:
    found = results(GOOD)
    at, values = curve(found, "vrpr", FOUR, "composite")
    assert at == [20.0, 60.0] and values == pytest.approx([0.5, 0.4])
    assert np.isnan(curve(found, "vrpr", FOUR, "motion")[1][0])
    pytest.importorskip("matplotlib")
    names = {p.name for p in draw_all(found, tmp_path)}
    assert names == {"lengths-main.png", "lengths-ablation.png", "curves.png", "cost.png", "trade.png"}
    assert all((tmp_path / n).read_bytes().startswith(b"\x89PNG") for n in names)


def test_no_two_contestants_look_alike() -> None:
    """The profile's red is the fourth of matplotlib's colours, which another contestant had, too."""
    mpl = pytest.importorskip("matplotlib.colors")
    names = ["direct", "profile", *(f"peer{i}" for i in range(20))]
    found = results({name: next(iter(GOOD.values())) for name in names})
    looks = {name: plots._style(found, name) for name in names}
    assert len({(mpl.to_hex(look["color"]), look["linestyle"]) for look in looks.values()}) == len(names)
    assert [n for n in names if mpl.to_hex(looks[n]["color"]) == mpl.to_hex("tab:red")] == ["profile"]


def test_rows_of_before_load_and_show_what_they_have(tmp_path: Path) -> None:
    """Results that know no constancy: they load, and their tables have no column of it."""
    new = ("composite_before", "constancy", "permanence", "pops", "frozen")
    found = results(GOOD)
    rows = [{**r, "scores": {n: v for n, v in r["scores"].items() if n not in new}} for r in found.rows]
    (tmp_path / "tables.json").write_text(json.dumps(replace(found, rows=rows).as_dict()))
    old = Results.load(tmp_path)
    text = markdown(old, summarise(old), judge_claims(old))
    assert "| constancy |" not in text and "| composite |" in text
    (tmp_path / "tables.json").write_text(json.dumps(found.as_dict()))
    known = Results.load(tmp_path)
    assert "| constancy |" in markdown(known, summarise(known), judge_claims(known))


@pytest.mark.parametrize("name", ["composite_before", "repeated"])
def test_composites_of_two_kinds_are_refused(tmp_path: Path, name: str) -> None:
    found = results(GOOD)
    rows = [dict(r) for r in found.rows]
    rows[3] = {**rows[3], "scores": {n: v for n, v in rows[3]["scores"].items() if n != name}}
    (tmp_path / "tables.json").write_text(json.dumps(replace(found, rows=rows).as_dict()))
    with pytest.raises(ResultsError, match=rf"rows\[3\] without and rows\[0\] with scores.{name}"):
        Results.load(tmp_path)
