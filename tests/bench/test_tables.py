"""bench/tables.py with a stand-in studio: jobs, journal, kills, two processes, and what it measures."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips
import contestants as people
import numpy as np
import pytest
import tables
from studio import Film, Job

from freeloc_fx import Profile
from freeloc_fx.errors import StrategyError
from freeloc_fx.evaluation.report import COLUMNS
from freeloc_fx.files import Journal

PROFILE = Profile.load("tiny-wan")
SHORT = 9


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class StandIn:
    """A studio whose videos say nothing but which job they are of."""

    period = None

    def __init__(self, on_film: Callable[[Job], None] = lambda job: None) -> None:
        self.on_film, self.made = on_film, []

    def film(self, job: Job, steps: int, guidance: float) -> Film:
        self.on_film(job)
        self.made.append((job.contestant.name, job.contestant.draw, job.frames, job.seed))
        text = f"{self.made[-1]} {steps} {guidance}"
        value = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
        return Film(np.full((job.frames, 8, 8, 3), value, np.float32), 1.0, 10**6, False)


def quick(video: np.ndarray, prompt: str, period: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    value = float(video.mean())
    scores = dict.fromkeys(COLUMNS, value) | {"no_repeat": None}
    return scores, {"at": [1.0, 2.0], **{name: [value, None] for name in tables.CURVE}}


def run_of(folder: Path, groups: tuple[str, ...] = ("main", "ablation"), seeds: tuple[int, ...] = (0, 1)) -> tables.Run:
    known, _ = people.contestants(PROFILE, 10, 2)
    jobs = tables.jobs_of(known, groups, [17, SHORT], seeds, SHORT)
    return tables.Run(Journal(folder / "m.jsonl"), "m", "w", SHORT, jobs, 2, 3.0, 1, quick)


def figures(run: tables.Run, folder: Path) -> dict[str, Any]:
    found = run.results("split", {}, ["main", "ablation"])
    tables.write_results(
        found, folder, lambda results, folder: []
    )  # tests/evaluation/test_report.py looks at the plots
    data: dict[str, Any] = json.loads((folder / "tables.json").read_text())
    del data["environment"]
    return data


# The journal


def test_a_journal_cuts_off_a_torn_line_and_keeps_what_others_add(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a":')
    one, two = Journal(path), Journal(path)
    assert one.rows == [{"a": 1}, {"a": 2}]
    one.add({"a": 3})
    two.add({"a": 4})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n{"a": 4}\n'
    assert one.refresh() == two.rows == [{"a": n} for n in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="JSON compliant"):
        one.add({"a": float("nan")})
    assert len(Journal(path).rows) == 4


def test_a_claim_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "j.jsonl"), Journal(tmp_path / "j.jsonl")
    with one.claim("x") as mine, two.claim("x") as yours, two.claim("y") as other:
        assert (mine, yours, other) == (True, False, True)
        one.add({"done": "x"})
    with two.claim("x") as mine:
        assert mine and two.rows == [{"done": "x"}]


@pytest.mark.parametrize("alike", [True, False])
def test_published_rows_are_gone_on_from_their_times_only_of_a_like_machine(tmp_path: Path, alike: bool) -> None:
    whole = run_of(tmp_path / "one")
    if not alike:
        whole.machine = {**whole.machine, "cpu": "another"}
    whole.work(StandIn())
    figures(whole, tmp_path / "results")
    published = json.loads((tmp_path / "results" / "tables.json").read_text())
    assert [m["cpu"] for m in published["environment"]["machines"]] == [whole.machine["cpu"]]
    other, studio = run_of(tmp_path / "two", seeds=(0, 1, 2)), StandIn()
    rows = published["rows"]
    known = {**rows[0], "key": "of other settings"}
    assert other.adopt({**published, "rows": [*rows, known]}) == len(rows) and other.adopt(published) == 0
    other.work(studio)
    assert studio.made and {seed for *_, seed in studio.made} == {2}
    both = other.results("split", {}, ["main", "ablation"])
    assert len(both.environment["machines"]) == 2 - alike  # the clip of this machine is told apart from another's
    again = run_of(tmp_path / "two").results("split", {}, ["main", "ablation"])
    assert again.environment["machines"] == [whole.machine] and len(again.rows) == len(rows)
    assert any(row["scores"].get("seconds") for row in rows)
    for row, before in zip(again.rows, rows, strict=True):
        gone = {} if alike else {"seconds": None, "memory": None}
        assert {**row, "scores": dict(row["scores"])} == {**before, "scores": {**before["scores"], **gone}}


# Kills


@pytest.mark.parametrize("at", [0, 1, 7])
def test_killed_and_resumed_it_gives_the_same_figures(tmp_path: Path, at: int) -> None:
    whole = run_of(tmp_path / "whole")
    whole.work(StandIn())
    expected = figures(whole, tmp_path / "a")

    def kill(job: Job) -> None:
        if len(studio.made) == at:
            raise Killed

    journal = tmp_path / "cut" / "m.jsonl"
    made: Counter[Any] = Counter()
    for _ in range(100):
        studio = StandIn(kill)
        run = run_of(tmp_path / "cut")
        try:
            run.work(studio)
        except Killed:
            made.update(studio.made)
            with journal.open("a") as file:  # the kill came within a line
                file.write('{"key": "tor')
            if at == 0:
                break
            continue
        made.update(studio.made)
        break
    if at == 0:
        run = run_of(tmp_path / "cut")
        run.work(second := StandIn())
        made.update(second.made)
    assert set(made.values()) == {1} and len(made) == len(run.jobs)
    assert figures(run, tmp_path / "b") == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="claims and this test need a POSIX system")
def test_two_processes_share_the_work_though_one_is_killed(tmp_path: Path) -> None:
    alone = run_of(tmp_path / "alone")
    alone.work(StandIn())

    def work() -> None:
        run_of(tmp_path / "shared").work(StandIn(lambda job: time.sleep(0.01)))

    def hang() -> None:
        run_of(tmp_path / "shared").work(StandIn(lambda job: time.sleep(60 if job.frames == 17 else 0.01)))

    fork = multiprocessing.get_context("fork")
    victim, helper = fork.Process(target=hang), fork.Process(target=work)
    victim.start()
    path = tmp_path / "shared" / "m.jsonl"
    started = time.monotonic()
    while not path.exists() and time.monotonic() - started < 20:
        time.sleep(0.01)
    helper.start()
    run = run_of(tmp_path / "shared")
    run.work(StandIn(lambda job: time.sleep(0.01)))
    helper.join(30)
    assert helper.exitcode == 0
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(30)
    assert run.work(StandIn()) == 0  # its claim went with it
    keys = [row["key"] for row in Journal(path).rows]
    assert sorted(keys) == sorted({run.key(job) for job in run.jobs})
    assert figures(run, tmp_path / "a") == figures(alone, tmp_path / "b")


def test_what_changed_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.work(StandIn())
    again = StandIn()
    run_of(tmp_path).work(again)
    assert not again.made
    retrained = run_of(tmp_path)
    retrained.weights = "other"
    retrained.work(again)
    assert len(again.made) == len(run.jobs)
    rows = run_of(tmp_path).results(None, {}, ["main"]).rows
    assert len(rows) == len(run.jobs)  # those of the other weights are no part of it


def test_a_contestant_that_cannot_run_is_reported_and_tried_again(tmp_path: Path) -> None:
    def refuse(job: Job) -> None:
        if job.contestant.name == "window":
            raise StrategyError("no room")

    run = run_of(tmp_path)
    run.work(StandIn(refuse))
    results = run.results(None, {}, ["main"])
    assert results.refused == {"window": "no room"} and "window" not in results.contestants()
    run.work(second := StandIn())
    assert {name for name, *_ in second.made} == {"window"}
    assert "window" in run.results(None, {}, ["main"]).contestants()


def test_kept_videos_are_written_once_and_made_up_for(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    run, keep = run_of(tmp_path, ("main",), (0,)), tmp_path / "out" / "videos"
    run.work(StandIn())
    run.work(second := StandIn(), keep, [("direct", 0)])
    assert [m[:3] for m in second.made] == [("direct", 0, SHORT), ("direct", 0, 17)]
    run.work(third := StandIn(), keep, [("direct", 0)])
    assert not third.made
    videos = run.results(None, {}, ["main"]).videos
    assert sorted(v["file"] for v in videos) == ["videos/direct-17-0.mp4", f"videos/direct-{SHORT}-0.mp4"]
    assert all((tmp_path / "out" / v["file"]).is_file() for v in videos)


# Which videos are asked for


def test_within_the_trained_length_there_is_one_contestant() -> None:
    known, _ = people.contestants(PROFILE, 10, 2)
    jobs = tables.jobs_of(known, list(people.GROUPS), [321, 81], [5, 6], 81)
    short = [(j.contestant.name, j.seed) for j in jobs if j.frames == 81]
    assert short == [(n, s) for n in ("real", "reconstruction", "direct") for s in (5, 6)]
    assert [j.frames for j in jobs] == sorted(j.frames for j in jobs)
    keys = [(j.contestant.name, j.contestant.draw, j.frames, j.seed) for j in jobs]
    assert len(set(keys)) == len(keys)  # a contestant of two groups is filmed once


def test_only_some_contestants_of_the_groups() -> None:
    known, _ = people.contestants(PROFILE, 10, 2)
    jobs = tables.jobs_of(known, ["main", "ablation"], [321, 81], [5, 6], 81, ["profile", "tsa"])
    assert {j.contestant.name for j in jobs if j.frames == 321} == {"profile", "tsa", "real"}
    assert {j.contestant.name for j in jobs if j.frames == 81} == {"real", "reconstruction", "direct"}


def test_clips_whose_prompts_leave_things_open_are_other_videos(tmp_path: Path) -> None:
    """The same seed is another prompt, another real clip and another line of the journal."""
    told, opened = run_of(tmp_path), run_of(tmp_path)
    opened.jobs = [dataclasses.replace(job, leaves_open=True) for job in opened.jobs]
    assert not {told.key(job) for job in told.jobs} & {opened.key(job) for job in opened.jobs}
    prompts = [run.results(None, {}, ["main"]).settings["prompts"] for run in (told, opened)]
    assert set(prompts[0]) == set(prompts[1]) and all(prompts[0][seed] != prompts[1][seed] for seed in prompts[0])
    for seed in range(6):
        scene = clips.scene_of(seed, leaves_open=True)
        assert clips.prompt_of(seed, leaves_open=True) == scene.prompt
        assert np.array_equal(clips.real_clip(seed, 3, leaves_open=True), scene.render(3))


def test_rows_of_before_are_made_again() -> None:
    """Their composite is of another kind, so they may not stand beside today's."""
    now = {"key": "a", "scores": dict.fromkeys(tables.TRUTH.values(), 0.5)}
    before = {"key": "b", "scores": {"composite": 0.5, "loop": 0.0}}
    refused = {"key": "c", "refused": "why"}

    class Rows:
        rows = (now, before, refused)

    run = tables.Run.__new__(tables.Run)
    run.journal = Rows()  # type: ignore[assignment]
    assert set(run._known()) == {"a", "c"}


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("--only", "profile,hold", "hold"),
        ("--groups", "main,all", "all"),
        ("--also", "all:321:0", "all"),
        ("--also", "main:321", "invalid further value"),
        ("--seeds", "7-0", "7-0: expected the smaller number first"),
    ],
)
def test_what_cannot_be_asked_for_fails_before_the_model_is_loaded(
    option: str, value: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a model was loaded")

    with pytest.raises(SystemExit) as ended:
        tables.main([option, value], never)
    told = f"{ended.value} {capsys.readouterr().err}"
    assert option in told and found in told


def test_more_clips_at_some_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each video once, however often it is asked for; a group that only --also names is a table, too."""
    grid = SimpleNamespace(grid=SimpleNamespace(text=0))
    about = {"profile": PROFILE, "layers": 10, "site": grid, "short": SHORT, "weights": "w", "temporal": 1}
    studio = StandIn()
    vars(studio).update(about)
    monkeypatch.setattr(tables, "Run", functools.partial(tables.Run, measure=quick))
    written: list[Any] = []
    monkeypatch.setattr(tables, "write_results", lambda results, folder: written.append(results))
    asked = ["--groups", "main", "--frames", "9,17,33", "--seeds", "0-1", "--also", "main:17:0-3", "--also"]
    asked += ["positions:33:1", "--only", "direct,window,clip", "--work", str(tmp_path)]
    tables.main(asked, lambda *_: studio)  # type: ignore[arg-type,return-value]
    assert len(studio.made) == len(set(studio.made))
    (results,) = written
    assert list(results.groups) == ["main", "positions"]
    counts = {(name, n): results.clips(name, n) for name in ("real", "direct", "window", "clip") for n in (9, 17, 33)}
    assert counts == {
        **{("real", n): c for n, c in ((9, 2), (17, 4), (33, 2))},
        **{("direct", n): c for n, c in ((9, 2), (17, 4), (33, 2))},
        **{("window", n): c for n, c in ((9, 0), (17, 4), (33, 2))},
        **{("clip", n): c for n, c in ((9, 0), (17, 0), (33, 1))},
    }
