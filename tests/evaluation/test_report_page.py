"""`freeloc report`'s page: what is in it, that it needs nothing else, and that a browser runs it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_results import FOUR, GOOD, GROUPS, results
from typer.testing import CliRunner, Result

from freeloc_fx.cli.app import app
from freeloc_fx.evaluation.report import COLUMNS, Results
from freeloc_fx.evaluation.report import claims as rules
from freeloc_fx.evaluation.report.page import PageError, render
from freeloc_fx.evaluation.report.rows import COMPANIONS
from freeloc_fx.generation.video import write_video


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
    assert page.count("<svg") == 5  # two groups, curves, trade, cost


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
    for most, words in ((3 * 2**20, "3 MB"), (2**20 // 2, "0.5 MB")):
        (tmp_path / "long.mp4").write_bytes(b"\0\0\0\0ftyp" + bytes(most))
        with pytest.raises(PageError, match=f"larger than the page's {words}"):
            render([], tmp_path, most)
    (tmp_path / "long.mp4").unlink()
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
