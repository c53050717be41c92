"""The search over assignments: halving, coordinate ascent, the budget; the bench scripts with generations made up."""

from __future__ import annotations

import argparse
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import probe_agreement
import probe_cost
import pytest
import search as search_script
from clips import prompt_of
from halving import Candidate, OutOfBudget, bootstrap, groups_of, halve, neighbours, search, summary
from hypothesis import given, settings
from hypothesis import strategies as st
from search import Library

from freeloc_fx.method import solve
from freeloc_fx.method.positions import VRPR
from freeloc_fx.planning.profile import Profile
from freeloc_fx.probing.statistics import spearman

NAMES = ("direct", "vrpr", "vrpr+tsa")
GROUPS = groups_of(4, 3)


class Scored:
    """What the scripts read of a `GroundTruthScore`."""

    def __init__(self, composite: float) -> None:
        self.composite = composite

    def as_dict(self) -> dict[str, Any]:
        return {"composite": self.composite, "loop": 0.0, "shapes": []}


def value(candidate: Candidate, seed: int) -> float:
    """Additive over groups, the same noise for every candidate: the best is the best of each group."""
    best = ("vrpr", "vrpr+tsa", "direct")
    return sum(a == b for a, b in zip(candidate.layers, best, strict=True)) + math.sin(seed)


def moves(candidate: Candidate) -> list[list[Candidate]]:
    found = neighbours(candidate, NAMES, 5, 17, (solve.vrpr(5, 17), solve.tsa(5, 2, 2)), 4)
    return [[c for c in line if c.vrpr is None and c.tsa is None] for line in found]


def test_an_additive_score_is_maximised_group_by_group() -> None:
    starts = [Candidate((name,) * 3) for name in NAMES]
    found = search(starts, moves, range(3), value, 1000)
    assert found.best.layers == ("vrpr", "vrpr+tsa", "direct")
    assert found.complete
    assert found.mean == pytest.approx(3 + np.mean(np.sin(range(3))))
    means = [mean for _, mean in found.path]
    assert means == sorted(means)
    assert found.evaluations < 3 * len(NAMES) ** 3  # fewer than every candidate on every seed


@given(st.integers(3, 80))
@settings(max_examples=20)
def test_the_budget_is_kept_and_what_is_returned_was_scored_on_every_seed(budget: int) -> None:
    asked = []

    def score(candidate: Candidate, seed: int) -> float:
        asked.append((candidate, seed))
        return value(candidate, seed)

    found = search([Candidate((name,) * 3) for name in NAMES], moves, range(3), score, budget)
    assert len(asked) == len(set(asked)) == found.evaluations <= budget
    assert {(found.best, seed) for seed in range(3)} <= set(asked)
    assert found.mean == pytest.approx(np.mean([value(found.best, seed) for seed in range(3)]))


def test_a_budget_below_one_candidate_is_refused() -> None:
    with pytest.raises(OutOfBudget, match="budget of 2 scores is spent"):
        search([Candidate(("vrpr",) * 3)], moves, range(3), value, 2)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=9))
@settings(max_examples=40)
def test_halving_never_returns_worse_than_what_it_keeps(table: list[list[int]]) -> None:
    candidates = [Candidate((f"{i}",)) for i in range(len(table))]
    best = halve(candidates, range(4), lambda c, seed: table[int(c.layers[0])][seed], keep=candidates[0])
    row = table[int(best.layers[0])]
    assert best == candidates[0] or sum(row) > sum(table[0])


def test_halving_finds_the_best_where_seeds_agree() -> None:
    candidates = [Candidate((f"{i}",)) for i in range(9)]
    assert halve(candidates, range(5), lambda c, seed: int(c.layers[0]) + seed, keep=candidates[4]) == candidates[8]


@given(st.integers(3, 21), st.integers(2, 16), st.data())
@settings(max_examples=25)
def test_every_neighbour_differs_and_stays_within_the_trained_positions(
    trained: int, times: int, data: st.DataObject
) -> None:
    frames = (trained - 1) * times + 1
    solved = solve.vrpr(trained, frames), solve.tsa(trained, 2, 3)
    candidate = Candidate(("vrpr+tsa", "direct"))
    for _ in range(3):
        lines = neighbours(candidate, NAMES, trained, frames, solved, 6)
        flat = [c for line in lines for c in line]
        assert candidate not in flat
        assert len(set(flat)) == len(flat)
        for other in flat:
            if other.vrpr is not None:
                assert VRPR(*other.vrpr).reach(frames) <= trained - 1
            other.profile(Profile(trained_frames=trained), [[0], [1]])  # valid settings
        candidate = data.draw(st.sampled_from(flat))


def test_a_candidate_becomes_a_profile() -> None:
    base = Profile(trained_frames=5, layers="direct", temperature={0: 1.5}, layer_count=4)
    made = Candidate(("vrpr+temp", "tsa", "direct"), (1, 2, 2, 8), (1, 3, 2)).profile(base, GROUPS)
    assert dict(made.layers) == {0: "vrpr+temp", 1: "vrpr+temp", 2: "tsa", 3: "direct"}  # type: ignore[arg-type]
    assert made.settings(0, 17)["vrpr"] == VRPR(1, 2, 2, 8)
    assert made.settings(0, 17)["temperature"] == 1.5
    assert summary(Candidate(("vrpr", "tsa", "direct")), GROUPS)["layers"]["1"] == "vrpr"
    assert [layer for group in groups_of(10, 4) for layer in group] == list(range(10))


@given(st.lists(st.integers(0, 5), min_size=3, max_size=8), st.data())
@settings(max_examples=40)
def test_spearman_is_the_correlation_of_ranks(x: list[int], data: st.DataObject) -> None:
    y = data.draw(st.lists(st.integers(0, 5), min_size=len(x), max_size=len(x)))

    def ranks(values: list[int]) -> list[float]:
        return [sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]

    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(spearman(np.array(x), np.array(y)))
    else:
        expected = np.corrcoef(ranks(x), ranks(y))[0, 1]
        assert spearman(np.array(x), np.array(y)) == pytest.approx(expected)


def test_the_bootstrap_interval_holds_the_mean() -> None:
    mean, low, high = bootstrap([0.0, 1.0, 2.0, 3.0])
    assert low < mean == 1.5 < high
    assert bootstrap([2.0, 2.0]) == [2.0, 2.0, 2.0]


class Pipe:
    """Carries what `apply` gave it."""

    transformer: Any = argparse.Namespace()
    profile: Profile | None = None


def apply(pipe: Any, profile: Profile | None = None, strategy: str | None = None) -> None:
    pipe.profile = profile


def library(**stand_ins: Any) -> Library:
    """Generations that cost nothing; each test adds what makes and judges its clips."""
    return Library(load=lambda model: Pipe(), weights_digest=lambda model: "weights", apply=apply, **stand_ins)


def test_the_script_searches_resumes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []
    fuse = [7]

    def generate(pipe: Any, prompt: str, *, seed: int, **_: Any) -> Any:
        fuse[0] -= 1
        if fuse[0] == 0:
            raise KeyboardInterrupt
        made.append(seed)
        return argparse.Namespace(frames=(pipe.profile, seed))

    def score(frames: Any, prompt: str) -> Any:
        profile, seed = frames
        names = [profile.strategy_name(layer) for layer in range(10)]
        right = sum(name == ("vrpr" if layer < 5 else "vrpr+tsa") for layer, name in enumerate(names))
        return Scored(right / 10 + 0.01 * math.sin(seed))

    used = library(generate=generate, score=score)

    def run(*more: str) -> str:
        arguments = [f"--work={tmp_path}", "--clips=2", "--groups=2", "--names=vrpr,vrpr+tsa", *more]
        capsys.readouterr()
        search_script.main(arguments, used, tmp_path / "results")
        return capsys.readouterr().out

    with pytest.raises(KeyboardInterrupt):
        run()
    first = len(made)
    with (tmp_path / "scores.jsonl").open("ab") as file:
        file.write(b'{"plan": [{"0": "vr')  # a kill in the middle of a write
    run()
    total = len(made)
    assert total > first
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == total  # nothing was generated twice
    text = run("--report")
    assert len(made) == total
    assert "no single change was better" in text
    assert "| best found | 1.0" in text
    assert (tmp_path / "results" / "search.json").is_file()
    with pytest.raises(SystemExit, match="nothing to report yet"):
        run("--report", "--frames=801")
    of_before = [{k: v for k, v in json.loads(line).items() if k != "measure"} for line in lines]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_before))
    with pytest.raises(SystemExit, match="nothing to report yet"):  # composites of another kind are none of these
        run("--report")


def test_the_rule_is_the_profiles_at_the_length_of_the_search(tmp_path: Path) -> None:
    """A profile may have other layers for other lengths, and rows are known by the layers that made them."""
    path = tmp_path / "p.json"
    Profile(
        trained_frames=21, layer_count=10, layers="vrpr", lengths={41: {"layers": "vrpr"}, 201: {"layers": "tsa"}}
    ).save(path)
    prompts: set[str] = set()

    def generate(pipe: Any, prompt: str, *, seed: int, **_: Any) -> Any:
        prompts.add(prompt)
        return argparse.Namespace(frames=pipe.profile)

    def score(profile: Any, prompt: str) -> Any:
        return Scored({"tsa": 0.7, "vrpr": 0.4}[profile.strategy_name(0)])

    for frames, expected in ((801, 0.7), (161, 0.4)):
        arguments = ["--clips=1", "--groups=1", "--names=vrpr,tsa", "--budget=4", "--open", f"--frames={frames}"]
        arguments += [f"--work={tmp_path}", f"--profile={path}"]
        search_script.main(arguments, library(generate=generate, score=score), tmp_path / "results")
        rows = json.loads((tmp_path / "results" / "search.json").read_text())["rows"]
        assert {row["what"]: row["composite"][0] for row in rows}["the probe's rule"] == expected
    assert prompts == {prompt_of(seed, True) for seed in (0, search_script.HELD_OUT)}


def test_the_grid_of_all_assignments_is_what_the_search_could_choose() -> None:
    seen = {Candidate(("direct",) * 3)}
    frontier = list(seen)
    while frontier:
        fresh = {c for line in moves(frontier.pop()) for c in line} - seen
        seen |= fresh
        frontier += fresh
    assert {c.layers for c in seen} == set(product(NAMES, repeat=3))


def test_the_agreement_script_finds_the_effects_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Correcting layer l adds l/100 to the composite; observe mode ranks layers so, full mode the other way round."""
    made: list[int] = []

    def generate(pipe: Any, prompt: str, *, seed: int, **_: Any) -> Any:
        made.append(seed)
        return argparse.Namespace(frames=(pipe.profile, seed))

    def score(frames: Any, prompt: str) -> Any:
        profile, seed = frames
        corrected = [layer for layer in range(10) if profile and profile.strategy_name(layer) != "direct"]
        return Scored(0.1 + sum(corrected) / 100 + 0.01 * math.sin(seed))

    def probe(pipe: Any, *, mode: str, seeds: list[int], **_: Any) -> Profile:
        sign = 1 if mode == "observe" else -1
        found = {i: {"position": 20 + sign * i, "context": 20 + sign * i + seeds[0]} for i in range(10)}
        matched = {"81": {name: {str(i): 1.0 + i / 10 for i in range(10)} for name in ("matched_temperature", "ald")}}
        return Profile(trained_frames=21, sensitivities=found, provenance={"lengths": matched})  # type: ignore[arg-type]

    used = library(generate=generate, score=score, probe=probe)

    def run(*more: str) -> str:
        arguments = [f"--work={tmp_path}", "--clips=2", "--corrections=vrpr", "--random=3", *more]
        capsys.readouterr()
        probe_agreement.main(arguments, used, tmp_path / "results")
        return capsys.readouterr().out

    run()
    total = len(made)
    assert total == len((tmp_path / "scores.jsonl").read_text().splitlines())
    text = run("--report")
    assert len(made) == total
    assert "| context | -1.000 [-1.000, -1.000] |" in text  # observe against full
    assert "| observe position | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] |" in text
    assert "| observe ald | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] |" in text
    assert "full ald" not in text
    assert "| full position | -1.000 [-1.000, -1.000] | -1.000 [-1.000, -1.000] |" in text
    data = json.loads((tmp_path / "results" / "probe_agreement.json").read_text())
    for name in ("vrpr alone", "vrpr left out"):
        np.testing.assert_allclose(data["figures"][name], [[layer / 100 for layer in range(10)]] * 2, atol=1e-12)
    assert (tmp_path / "results" / "probe_agreement.png").is_file()


def test_the_cost_script_compares_within_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clip n takes n + 1 seconds, a fifth more when observed, and one second more for the capture."""
    watched = argparse.Namespace()
    calls: list[Any] = []

    def watched_copy(model: Any, recorder: Any) -> Any:
        recorder.rows[0] = []
        recorder.fresh = True
        watched.recorder = recorder
        return watched

    def timed(pipe: Any, model: Any, args: Any, seed: int) -> float:
        calls.append(model)
        if model is not watched:
            return seed + 1.0
        extra, watched.recorder.fresh = float(watched.recorder.fresh), False
        return 1.2 * (seed + 1) + extra

    used = probe_cost.Library(load=lambda model: Pipe(), watched_copy=watched_copy, timed=timed)
    for more in ([], ["--report"]):
        probe_cost.main([f"--work={tmp_path}", "--clips=3", *more], used, tmp_path / "results")
        assert "| observed | 2.4 | 1.200 | 1.200 | 1.200 |" in capsys.readouterr().out
    assert len(calls) == 1 + 3 * 3
    assert calls[1] is not watched and calls[4] is watched  # the order turns
