"""`freeloc report` on results that are not all there: what is missing is left out, what is wrong is named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_results import GOOD, GROUPS, SHORT, TEN, results
from slow import slow

from freeloc_fx.evaluation.report import Results, ResultsError
from freeloc_fx.evaluation.report.claims import judge_claims
from freeloc_fx.evaluation.report.page import render
from freeloc_fx.evaluation.report.summary import markdown, summarise

pytest.importorskip("matplotlib")

WHOLE = results({name: GOOD[name] for name in ("direct", "riflex", "vrpr", "profile")}, seeds=2)
Rows = list[dict[str, Any]]


def without(rows: Any, *names: str) -> Rows:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


PARTS: dict[str, Callable[[Rows], Rows]] = {
    "no rows": lambda rows: [],
    "one row": lambda rows: rows[-1:],
    "no trained length": lambda rows: [r for r in rows if r["frames"] != SHORT],
    "the trained length only": lambda rows: [r for r in rows if r["frames"] == SHORT],
    "no curves": lambda rows: without(rows, "curve"),
    "curves that are null": lambda rows: [{**r, "curve": None} for r in rows],
    "curves of one score": lambda rows: [{**r, "curve": {"at": [1.0], "composite": [0.5]}} for r in rows],
    "curves that end early": lambda rows: [{**r, "curve": {"at": [1.0, 2.0], "motion": [0.5]}} for r in rows],
    "no draw": lambda rows: without(rows, "draw"),
    "no scores": lambda rows: [{**r, "scores": {}} for r in rows],
    "no measurable scores": lambda rows: [{**r, "scores": dict.fromkeys(r["scores"])} for r in rows],
}  # fmt: skip


def read_back(found: Results, folder: Path) -> Results:
    (folder / "tables.json").write_text(json.dumps(found.as_dict()))
    return Results.load(folder)


@pytest.mark.parametrize("what", [what if index % 3 == 0 else slow(what) for index, what in enumerate(PARTS)])
def test_partial_rows_make_a_page(what: str, tmp_path: Path) -> None:
    found = read_back(replace(WHOLE, rows=PARTS[what](list(WHOLE.rows))), tmp_path)
    page = render([found])
    text = markdown(found, summarise(found), judge_claims(found))
    assert "</html>" in page and "## Claims" in text


def test_names_that_read_as_formulas_and_cells(tmp_path: Path) -> None:
    rows = [{**row, "contestant": f"$\\x|{row['contestant']}$"} for row in WHOLE.rows]
    found = read_back(replace(WHOLE, rows=rows, groups={"main": ("$\\x|profile$", "$\\x|direct$")}), tmp_path)
    assert r"| $\x\|profile$ |" in markdown(found, summarise(found), judge_claims(found))
    page = render([found])
    assert page.count(r"$\x|profile$") >= 3  # in the tables, and as it is in the plots


def test_rows_thinned_at_random_make_a_table() -> None:
    chance = random.Random(0)
    for _ in range(20):
        rows = [dict(r) for r in WHOLE.rows if chance.random() < 0.3]
        for row in rows:
            row["scores"] = {k: v for k, v in row["scores"].items() if chance.random() < 0.6}
        found = replace(WHOLE, rows=rows)
        assert "## Claims" in markdown(found, summarise(found), judge_claims(found))


def test_a_video_of_a_contestant_without_rows_is_shown(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"\0\0\0\0ftypisom")
    video = {"contestant": "ghost", "frames": TEN, "seed": 0, "file": "x.mp4"}
    assert "ghost" in render([read_back(replace(WHOLE, videos=[video]), tmp_path)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["rows"][3].pop("captured"), r"rows\[3\] without 'captured'"),
        (lambda d: d["rows"][1].update(frames="81"), r"rows\[1\]\.frames: '81' in place of int"),
        (lambda d: d["rows"].__setitem__(2, None), r"rows\[2\]: None in place of an object"),
        (lambda d: d["rows"][0]["scores"].update(composite="high"), r"rows\[0\]\.scores\.composite: 'high'"),
        (lambda d: d["rows"][0].update(curve=[1]), r"rows\[0\]\.curve: \[1\] in place of an object"),
        (lambda d: d["rows"][0].update(curve={"at": [1.0], "motion": 3}), r"rows\[0\]\.curve\.motion: 3"),
        (lambda d: d["videos"].append({"contestant": "a"}), r"videos\[0\] without 'frames'"),
        (lambda d: d.update(groups={"main": "direct"}), r"groups\.main: 'direct' in place of a list of names"),
        (lambda d: d["settings"].update(prompts=["a"]), r"settings\.prompts: \['a'\] in place of dict"),
        (lambda d: d.pop("models"), "found no 'models'"),
        (lambda d: d.update(rows={}), r"results\.rows: {} in place of list"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    data = json.loads(json.dumps(replace(WHOLE, groups=GROUPS).as_dict()))
    change(data)
    (tmp_path / "tables.json").write_text(json.dumps(data))
    with pytest.raises(ResultsError, match=rf"tables\.json: expected the layout of bench/tables\.py, .*{message}"):
        Results.load(tmp_path)
