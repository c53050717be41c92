"""Intervals, differences within clips, verdicts, and the HTML page."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from freeloc_fx.cli.app import app
from freeloc_fx.report import COLUMNS, Results, ResultsError, judge_claims, markdown, summarise
from freeloc_fx.report import claims as rules
from freeloc_fx.report.page import PageError, render
from freeloc_fx.report.plots import curve, draw_all
from freeloc_fx.report.rows import COMPANIONS, interval, with_companions
from freeloc_fx.report.summary import TRUTH, VBENCH
from freeloc_fx.video import write_video

SHORT, FOUR, TEN = 81, 321, 801
GROUPS = {"main": ("direct", "riflex", "profile"), "ablation": ("direct", "vrpr", "random")}
Value = Callable[[str, int, int, int], float]


def row(
    name: str, frames: int, seed: int, draw: int = 0, captured: bool = False, **scores: float | None
) -> dict[str, Any]:
    return {
        "contestant": name, "draw": draw, "frames": frames, "seed": seed, "captured": captured,
        "scores": {**dict.fromkeys(COLUMNS, 0.5), **scores},
        "curve": {"at": [20.0, 60.0], "composite": [0.5, 0.4], "quality": [0.5, 0.5], "motion": [None, 0.3]},
    }  # fmt: skip


def results(
    means: Mapping[str, float],
    columns: tuple[str, ...] = ("composite", "quality", "motion", "flow", "sharpness", "identity"),
    seeds: int = 6,
    lengths: tuple[int, ...] = (FOUR, TEN),
    short: float = 0.6,
    noise: float = 0.01,
    **others: Any,
) -> Results:
    """Rows whose columns have these means; a clip's own level (0.1 either way) drops out of differences."""
    random = np.random.default_rng(0)
    level = random.uniform(-0.1, 0.1, seeds)

    def made(name: str, frames: int, seed: int, mean: float, draw: int = 0) -> dict[str, Any]:
        value = mean + level[seed] + random.normal() * noise
        return row(name, frames, seed, draw, **dict.fromkeys(columns, value))

    rows = [made("direct", SHORT, s, short) for s in range(seeds)]
    for frames in lengths:
        for name, mean in means.items():
            draws = 2 if name == "random" else 1
            rows += [made(name, frames, s, mean, d) for s in range(seeds) for d in range(draws)]
    return Results("m", SHORT, rows, GROUPS, layerwise="profile", **others)


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


GOOD = {
    "direct": 0.3, "vrpr": 0.5, "tsa": 0.5, "vrpr+tsa": 0.6, "random": 0.6, "profile": 0.7, "clip": 0.4, "group": 0.4,
    "riflex": 0.3, "window": 0.6, "direct+temp": 0.5, "vrpr+temp": 0.6, "vrpr-separable": 0.5,
}  # fmt: skip


def test_every_claim_can_hold_and_every_claim_can_fail() -> None:
    good = results(GOOD, noise=0.003)
    # Consistency runs against motion in the paper's world.
    flattered = [{**r, "scores": {**r["scores"], "subject_consistency": 1 - r["scores"]["motion"]}} for r in good.rows]
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
    equal = results(dict.fromkeys(GOOD, 0.6), noise=0.1, seeds=12)
    assert verdict("vrpr", equal).overall == "undecided"
    assert verdict("vrpr", results(dict.fromkeys(GOOD, 0.6), noise=0.001)).overall == "does not hold"
    assert verdict("peers", results(dict.fromkeys(GOOD, 0.6), noise=0.001)).overall == "holds"


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
    assert names == {"lengths-main.png", "lengths-ablation.png", "curves.png", "cost.png"}
    assert all((tmp_path / n).read_bytes().startswith(b"\x89PNG") for n in names)


# The page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two lengths with two videos."""
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("results")
    (path / "videos").mkdir()
    videos = []
    for name in ("direct", "profile"):
        frames = np.random.default_rng(len(name)).random((24, 16, 16, 3)).astype(np.float32)
        file = f"videos/{name}-321-0.mp4"
        write_video(path / file, frames, scale=2)
        videos.append({"contestant": name, "frames": FOUR, "seed": 0, "file": file})
    found = results(
        GOOD | {"<script>alert(1)</script>": 0.5},
        videos=videos,
        settings={"steps": 2, "prompts": {"0": "a red circle & a <b>"}},
        environment={"cpu": "a processor", "torch": "2", "date": "2026-01-01"},
        refused={"pi": "no <room>"},
        models={"direct": "the untouched model"},
    )
    groups = {**GROUPS, "main": (*GROUPS["main"], "<script>alert(1)</script>")}
    (path / "tables.json").write_text(json.dumps(replace(found, groups=groups).as_dict()))
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return render([Results.load(folder)])


class Page(HTMLParser):
    """Tables as rows of texts, the sources of all elements, and every tag that was left open."""

    VOID = ("meta", "input", "br", "hr", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.sources: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.scripts = 0
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        self.sources += [(tag, v or "") for k, v in attrs if k in ("src", "href", "xlink:href", "data", "poster")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [(tag, v or "") for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data


def test_the_page_needs_no_other_file(page: str) -> None:
    found = Page(page)
    assert not found.open
    outside = [s for _, s in found.sources if not s.startswith(("data:", "#"))]
    assert not outside
    assert not re.findall(r"url\((?!#)", page) and "@import" not in page
    assert set(re.findall(r"https?://[^\s\"<)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_what_is_embedded_is_the_files(page: str, folder: Path) -> None:
    sources = [s for tag, s in Page(page).sources if tag == "video"]
    assert all(s.startswith("data:video/mp4;base64,") for s in sources)
    data = [base64.b64decode(s.split(",", 1)[1], validate=True) for s in sources]
    assert data == [(folder / "videos" / f"{n}-321-0.mp4").read_bytes() for n in ("direct", "profile")]
    assert page.count("<svg") == 4  # two groups, curves, cost


def test_the_tables_have_their_rows_and_claims(page: str) -> None:
    claims, *tables = Page(page).tables
    assert [r[0] for r in claims[1:]] != [] and len(claims) == 1 + len(rules.CLAIMS)
    for line, claim in zip(claims[1:], rules.CLAIMS, strict=True):
        assert line[0].startswith(claim.text) and line[1] == claim.source
    head, *body = tables[0]
    assert head[0] == "contestant" and "composite" in head
    assert [(r[0], r[1]) for r in body if r[0] in ("direct", "riflex", "profile")] == [
        ("direct", "81"), ("direct", "321"), ("riflex", "321"), ("profile", "321"), ("direct", "801"),
        ("riflex", "801"), ("profile", "801"),
    ]  # fmt: skip
    cell = body[1][head.index("composite")]
    mean, low, high = (float(n) for n in re.findall(r"-?\d+\.\d+", cell))
    assert low <= mean <= high and mean == pytest.approx(0.3, abs=0.06)


def test_consistency_is_shown_with_dynamics_and_loop_only(page: str) -> None:
    heads = [t[0] for t in Page(page).tables if t and t[0] and t[0][0] == "contestant"]
    shown = [h for h in heads if any("cons." in label for label in h)]
    assert len(heads) == 4 and len(shown) == 2
    for head in shown:
        assert {COLUMNS[c].label for c in COMPANIONS} <= set(head)


def test_names_and_prompts_are_text_not_markup(page: str) -> None:
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "a red circle &amp; a &lt;b&gt;" in page and "no &lt;room&gt;" in page
    assert Page(page).scripts == 1


def test_hardware_versions_and_date_are_on_it(page: str) -> None:
    cells = {r[0]: r[1] for t in Page(page).tables for r in t if len(r) == 2}
    assert cells["cpu"] == "a processor" and cells["torch"] == "2" and cells["date"] == "2026-01-01"


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["report", *(str(a) for a in arguments)])


def test_the_command(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    found = run("--results", folder, "--videos", folder / "videos", "-o", output)
    assert found.exit_code == 0, found.output
    text = output.read_text()
    assert text.count("<video ") == 4 and text.count('class="model"') == 1
    assert run("--videos", folder / "videos", "-o", output).exit_code == 0
    assert output.read_text().count("<video ") == 2


def test_bad_input_is_one_line_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "tables.json"
    cases: list[tuple[list[Any], str, str | None]] = [
        (["-o", tmp_path / "r.html"], "--results", None),
        (["--results", folder, "-o", tmp_path / "r.txt"], ".html", None),
        (["--results", tmp_path, "-o", tmp_path / "r.html"], "bench/tables.py", None),
        (["--results", tmp_path, "-o", tmp_path / "r.html"], "expected JSON", "{"),
        (["--results", tmp_path, "-o", tmp_path / "r.html"], "schema", '{"schema": 7}'),
        (["--results", tmp_path, "-o", tmp_path / "r.html"], "layout", '{"schema": 1, "model": "m"}'),
        (["--videos", tmp_path, "-o", tmp_path / "r.html"], "none", None),
    ]
    for arguments, words, content in cases:
        if content is None:
            broken.unlink(missing_ok=True)
        else:
            broken.write_text(content)
        found = run(*arguments)
        assert found.exit_code == 2 and words in found.stderr, (arguments, found.output)
    assert not (tmp_path / "r.html").exists()


def test_videos_that_are_missing_too_large_or_none_are_refused(folder: Path, tmp_path: Path) -> None:
    found = Results.load(folder)
    with pytest.raises(PageError, match="larger than the page's"):
        render([found], most=1000)
    with pytest.raises(PageError, match=r"direct-321-0\.mp4"):
        render([replace(found, folder=tmp_path)])
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(PageError, match="expected an mp4"):
        render([], tmp_path)
    with pytest.raises(PageError, match="neither"):
        render([])


def test_results_are_read_back_as_they_were(folder: Path) -> None:
    found = Results.load(folder)
    assert found.as_dict() == json.loads((folder / "tables.json").read_text())


CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)

PROBE = """<script>
const table = document.querySelector("table.sortable");
const names = () => [...table.tBodies[0].rows].map(r => r.cells[3].dataset.sort);
table.tHead.rows[0].cells[3].querySelector("button").click();
const down = names(); table.tHead.rows[0].cells[3].querySelector("button").click(); const up = names();
document.querySelector('[data-show="801"]').click();
const shown = [...table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.dataset.frames);
const videos = [...document.querySelectorAll("video")];
const done = () => { document.title = JSON.stringify({down, up, shown, errors: videos.map(v => v.error && v.error.code),
  ready: videos.map(v => v.readyState), seconds: videos.map(v => v.duration),
  times: videos.map(v => v.currentTime)}); };
Promise.all(videos.map(v => v.readyState >= 2 || new Promise(r => v.addEventListener("loadeddata", r)))).then(() => {
  const slider = document.querySelector(".sync input"); slider.value = 0.5;
  slider.dispatchEvent(new Event("input")); setTimeout(done, 500); });
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_sorts_filters_and_plays(page: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE + "</body>"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000",
        "--dump-dom", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", text)
    assert title is not None and title[1].startswith("{"), "the page's script did not end"
    found = json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&"))
    down = [float(v) for v in found["down"]]
    assert down == sorted(down, reverse=True) and [float(v) for v in found["up"]] == sorted(down)
    assert set(found["shown"]) == {"801"}
    assert found["errors"] == [None, None] and min(found["ready"]) >= 2
    assert found["seconds"] == pytest.approx([1.5, 1.5], abs=0.01)
    assert found["times"] == pytest.approx([0.75, 0.75], abs=0.1)  # both moved by one slider
