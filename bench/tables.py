"""The paper's tables on a model whose truth is known: every contestant at 1x to 16x the trained length, with intervals.

    python bench/tables.py --model tiny-wan                                 # all groups, 81 to 1281 frames, 5 clips
    python bench/tables.py --model tiny-wan --groups main,ablation --frames 321
    python bench/tables.py --model tiny-wan & python bench/tables.py --model tiny-wan & wait    # two processes share it
    python bench/tables.py --model tiny-wan --report                        # no generation: what the journal holds
    python bench/tables.py --model tiny-wan --published     # on another machine: go on from what results/ holds
    python bench/tables.py --model tiny-joint --groups text --only profile,vrpr+tsa+hold --output held-out
    python bench/tables.py --groups main,ablation --seeds 0-7 --also main,ablation:321,801:0-19 --also peers:321:0-7

Groups: main, peers, ablation, temperature, positions, text (`contestants.py`). Each finished video is one line of a
journal, so a run that was killed goes on where it stopped, and the same seeds give the same figures. A clip is a seed,
its prompt and its noise; contestants are compared within clips. Writes results/tables-MODEL/: tables.json, tables.md,
plots, and with --keep-videos the videos that `freeloc report` shows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clips import prompt_of
from common import RESULTS, environment
from contestants import ABOUT, GROUPS, Contestant, contestants
from studio import REAL, REFERENCE, Job, Pipeline, Studio

from freeloc_fx.errors import FreelocError
from freeloc_fx.evaluation.metrics import evaluate
from freeloc_fx.evaluation.report import Results, judge_claims, markdown, summarise
from freeloc_fx.evaluation.report.plots import draw_all
from freeloc_fx.files import Journal, write_text
from freeloc_fx.generation.video import write_video

TRUTH = {
    name: name
    for name in (
        "composite", "composite_before", "quality", "constancy", "permanence", "pops", "motion", "identity", "presence",
        "shape_accuracy", "sharpness", "area", "speed", "psnr", "foreign", "scroll_error", "loop", "repeated",
    )
} | {"freeze": "frozen"}  # fmt: skip
"""Field of `metrics.GroundTruthScore` -> column; freeze is a column of the pixels already."""
PROXIES = {
    "subject_consistency": "subject_consistency",
    "background_consistency": "background_consistency",
    "motion_smoothness": "motion_smoothness",
    "dynamic_degree": "dynamic_degree",
    "motion": "flow",
    "freeze": "freeze",
    "loop": "recurrence",
    "imaging_quality": "imaging_quality",
}
"""Measure of `metrics.Evaluation` -> column; its motion and loop look at pixels, not at the prompt's shapes."""
CURVE = ("composite", "quality", "constancy", "permanence", "motion", "sharpness", "psnr")
STRETCH = 40  # frames of a point of the curve over time: speeds need about 24
MACHINE = ("seconds", "memory")  # scores that say something of the machine, the others only of the video
KIND = ("cpu", "cores", "threads", "gpu", "torch")  # of a machine: alike, its times may stand beside this one's


def measure(
    video: np.ndarray, prompt: str, period: int | None = None
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Every score of a video, and its curve over time: {"at": middle frames of the stretches, column: values}."""
    frames = len(video)
    segments = max(1, round(frames / STRETCH))
    usable = period if period is not None and 2 <= period < frames else None
    found = evaluate(np.clip(video, 0, 1), prompt=prompt, fps=16.0, period=usable, segments=segments)
    assert found.ground_truth is not None  # a prompt was given
    scores = {column: _plain(getattr(found.ground_truth, name)) for name, column in TRUTH.items()}
    scores |= {column: _plain(getattr(found, name).value) for name, column in PROXIES.items()}
    if found.no_repeat is not None:
        scores["no_repeat"] = float(not found.no_repeat.repeats)
    edges = np.linspace(0, frames, segments + 1)
    curve: dict[str, Any] = {"at": ((edges[1:] + edges[:-1]) / 2).tolist()}
    curve |= {name: [_plain(getattr(s, name)) for s in found.ground_truth_segments] for name in CURVE}
    return scores, curve


def _is_scored(row: dict[str, Any]) -> bool:
    """Whether a row has all of today's scores; one that lacks some has a composite of another kind."""
    return set(TRUTH.values()) <= set(row["scores"])


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def jobs_of(
    known: dict[str, list[Contestant]],
    groups: Sequence[str],
    frames: Iterable[int],
    seeds: Sequence[int],
    short: int,
    only: Sequence[str] | None = None,
    leaves_open: bool = False,
) -> list[Job]:
    """In the order in which they are done: by length, contestant, seed, so that one capture serves all seeds.

    only: of the groups' contestants; at the trained length the untouched model makes its clips in any case.
    leaves_open: whether the clips' prompts leave things open.
    """
    names = [n for n in dict.fromkeys(n for group in groups for n in GROUPS[group]) if only is None or n in only]
    jobs = []
    for length in sorted(frames):
        if length <= short:  # within the trained length every strategy is the untouched model
            who = [Contestant(REFERENCE, None)] if length == short else []
            who = [Contestant(REAL, None), *who, *known["direct"]]
        else:
            who = [Contestant(REAL, None), *(c for n in names for c in known.get(n, ()))]
        jobs += [Job(c, length, s, leaves_open) for c in who for s in seeds]
    return jobs


class Run:
    """What is asked for, and the journal of what there is."""

    def __init__(
        self,
        journal: Journal,
        model: str,
        weights: str,
        short: int,
        jobs: Sequence[Job],
        steps: int,
        guidance: float,
        temporal: int,
        measure: Callable[..., tuple[dict[str, Any], dict[str, Any]]] = measure,
    ) -> None:
        """temporal: frames of a latent frame after the first. measure: gives scores and curve, as `measure` does."""
        self.journal, self.model, self.weights, self.short = journal, model, weights, short
        self.steps, self.guidance, self.temporal, self.measure = steps, guidance, temporal, measure
        self.jobs = list({self.key(job): job for job in jobs}.values())  # each once, however often it is asked for
        self.machine = {name: value for name, value in environment().items() if name != "command"}

    def key(self, job: Job) -> str:
        """Everything that the pixels depend on."""
        who = job.contestant
        content = who.content(job.latent(self.temporal))
        values = (self.model, self.weights, who.name, who.draw, content, job.frames, job.seed, self.steps)
        return json.dumps([*values, self.guidance, *(["open"] if job.leaves_open else [])])

    def _known(self) -> dict[str, dict[str, Any]]:
        return {row["key"]: row for row in self.journal.rows if "refused" in row or _is_scored(row)}

    def adopt(self, published: dict[str, Any]) -> int:
        """Take over a published table's rows of the jobs asked for; their times and memory only from a like machine.

        Returns how many were new.
        """
        wanted, known = {self.key(job) for job in self.jobs}, self._known()
        rows = [row for row in published["rows"] if _is_scored(row)]
        taken = [row for row in rows if (key := row.get("key")) in wanted and key not in known]
        machines = published["environment"].get("machines", [published["environment"]])
        for row in taken:
            machine = {n: v for n, v in machines[row.get("machine", 0)].items() if n != "command"}
            scores = dict(row["scores"])
            if any(machine.get(name) != self.machine[name] for name in KIND):
                scores |= dict.fromkeys(MACHINE)
            self.journal.add({**row, "model": self.model, "machine": machine, "scores": scores})
        return len(taken)

    def work(self, studio: Studio, keep: Path | None = None, kept: Iterable[tuple[str, int]] = ()) -> int:
        """Make what is missing; returns how many videos other processes are at work on.

        keep: folder for the videos of the (contestant, seed) pairs `kept`.
        """
        busy, wanted = 0, set(kept)
        tried: set[str] = set()  # what was refused before is tried once more
        for job in self.jobs:
            key = self.key(job)
            filming = keep if (job.contestant.name, job.seed) in wanted and job.contestant.draw == 0 else None
            if self._finished(key, filming, tried):
                continue
            with self.journal.claim(key) as mine:
                if not mine:
                    busy += 1
                elif not self._finished(key, filming, tried):
                    tried.add(key)
                    self.journal.add({"key": key, **self._make(studio, job, filming)})
        return busy

    def _finished(self, key: str, keep: Path | None, tried: set[str]) -> bool:
        row = self._known().get(key)
        if row is None or ("refused" in row and key not in tried):
            return False
        return keep is None or "refused" in row or ("video" in row and (keep / row["video"]).is_file())

    def _make(self, studio: Studio, job: Job, keep: Path | None) -> dict[str, Any]:
        who, facts = job.contestant, {"contestant": job.contestant.name, "draw": job.contestant.draw}
        facts |= {"model": self.model, "machine": self.machine, "frames": job.frames, "seed": job.seed}
        try:
            film = studio.film(job, self.steps, self.guidance)
        except FreelocError as error:
            print(who.name, job.frames, job.seed, "refused:", error, flush=True)
            return {**facts, "refused": str(error)}
        scores, curve = self.measure(film.frames, prompt_of(job.seed, job.leaves_open), studio.period)
        if who.name not in (REFERENCE, REAL):
            scores |= {"seconds": film.seconds, "memory": None if film.memory is None else film.memory / 1e6}
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            facts["video"] = f"{who.name}-{job.frames}-{job.seed}.mp4"
            write_video(keep / facts["video"], film.frames, scale=2, crf=23)
        words = " ".join(f"{n} {v:.3f}" for n in ("composite", "motion", "loop") if (v := scores[n]) is not None)
        print(f"{who.name} {who.draw}: {job.frames} frames, clip {job.seed}, {film.seconds:.1f} s, {words}", flush=True)
        return {**facts, "captured": film.captured, "scores": scores, "curve": curve}

    def results(self, layerwise: str | None, absent: dict[str, str], groups: Sequence[str]) -> Results:
        """Of the jobs asked for that are finished, in their order, whatever order they were made in."""
        known = self._known()
        found = [known[key] for job in self.jobs if (key := self.key(job)) in known]
        machines: list[Any] = []
        rows = []
        for r in (r for r in found if "scores" in r):
            if (machine := r.get("machine", self.machine)) not in machines:
                machines.append(machine)
            rows.append({k: v for k, v in r.items() if k != "model"} | {"machine": machines.index(machine)})
        refused = {r["contestant"]: r["refused"] for r in found if "refused" in r}
        videos = [
            {"contestant": r["contestant"], "frames": r["frames"], "seed": r["seed"], "file": f"videos/{r['video']}"}
            for r in rows
            if "video" in r
        ]
        return Results(
            model=self.model,
            short=self.short,
            rows=rows,
            groups={g: GROUPS[g] for g in groups},
            settings={
                "steps": self.steps,
                "guidance": self.guidance,
                "seeds": sorted({j.seed for j in self.jobs}),
                "prompts": {str(j.seed): prompt_of(j.seed, j.leaves_open) for j in self.jobs},
                "weights": self.weights,
                "videos missing": len(self.jobs) - len(found),
            },
            environment={**environment(), "machines": machines},
            layerwise=layerwise,
            refused={**absent, **refused},
            models=ABOUT,
            videos=videos,
        )


def write_results(results: Results, folder: Path, draw: Callable[[Results, Path], Any] = draw_all) -> str:
    """tables.json (which `freeloc report` reads), tables.md and plots; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    records, verdicts = summarise(results), judge_claims(results)
    text = markdown(results, records, verdicts)
    data = {**results.as_dict(), "summary": records, "claims": [v.as_dict() for v in verdicts]}
    write_text(folder / "tables.json", json.dumps(data, indent=1) + "\n")
    write_text(folder / "tables.md", text)
    draw(results, folder)
    return text


def numbers(text: str) -> list[int]:
    """Whole numbers, with commas between them, and 0-3 for 0,1,2,3."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        some = range(int(first), int(last or first) + 1)
        if not some:
            raise argparse.ArgumentTypeError(f"{part}: expected the smaller number first")
        found += some
    return found


def further(text: str) -> tuple[list[str], list[int], list[int]]:
    """Groups, lengths and seeds out of GROUPS:FRAMES:SEEDS."""
    groups, frames, seeds = text.split(":")
    return checked_groups(groups), numbers(frames), numbers(seeds)


def checked_groups(text: str) -> list[str]:
    """Groups with commas between them, all of which there are."""
    groups = text.split(",")
    if unknown := [group for group in groups if group not in GROUPS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(GROUPS)}, found {', '.join(unknown)}")
    return groups


def main(arguments: Sequence[str] | None = None, open_studio: Callable[..., Pipeline] = Pipeline) -> None:
    """The script, with its command line and what makes the studio of a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-wan", help="tiny-wan, tiny-joint or a folder")
    parser.add_argument("--profile", help="a probed profile, by name or path; default the model's shipped one")
    parser.add_argument("--groups", type=checked_groups, default=list(GROUPS), help="of contestants")
    parser.add_argument("--only", help="contestants of the groups; default all")
    parser.add_argument("--frames", type=numbers, default=[81, 161, 321, 801, 1281])
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2, 3, 4], help="clips; fewer than 5 decide no claim")
    parser.add_argument("--open", action="store_true", help="clips whose prompts leave things open")
    parser.add_argument("--also", type=further, action="append", default=[], metavar="GROUPS:FRAMES:SEEDS",
                        help="further videos, as of more clips at some lengths; more than once")  # fmt: skip
    parser.add_argument("--draws", type=int, default=3, help="of the random assignment")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="eager", help="of transform")
    parser.add_argument("--work", type=Path, default=Path("bench-tables"), help="journal and its claims")
    parser.add_argument("--keep-videos", action="store_true", help="of group main and the first seed, as .mp4")
    parser.add_argument("--published", action="store_true", help="begin with the rows that --output holds already")
    parser.add_argument("--report", action="store_true", help="no generation: results of what the journal holds")
    parser.add_argument("--output", type=Path, help="folder, default bench/results/tables-MODEL, or open-MODEL")
    args = parser.parse_args(arguments)
    asked = [(args.groups, args.frames, args.seeds), *args.also]
    groups = list(dict.fromkeys(group for some, *_ in asked for group in some))
    named = {n for g in groups for n in GROUPS[g]}
    only = args.only.split(",") if args.only else None
    if unknown := [n for n in only or () if n not in named]:
        raise SystemExit(f"--only: expected some of {', '.join(sorted(named))}, found {', '.join(unknown)}")
    name = Path(args.model).name
    folder = args.output or RESULTS / f"{'open' if args.open else 'tables'}-{name}"
    studio = open_studio(args.model, args.profile, args.device, args.backend)
    known, absent = contestants(studio.profile, studio.layers, args.draws, text=bool(studio.site.grid.text))
    jobs = [job for some in asked for job in jobs_of(known, *some, studio.short, only, args.open)]
    run = Run(
        Journal(args.work / f"{name}.jsonl"), name, studio.weights, studio.short, jobs, args.steps, args.guidance,
        studio.temporal,
    )  # fmt: skip
    if args.published:
        if not (folder / "tables.json").exists():
            raise SystemExit(f"--published: expected tables.json in {folder}, found none")
        published = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
        print(f"{run.adopt(published)} published rows taken over")
    if not args.report:
        kept = [(n, args.seeds[0]) for n in (*GROUPS["main"], REFERENCE)] if args.keep_videos else []
        busy = run.work(studio, folder / "videos" if kept else None, kept)
        if busy:
            print(f"{busy} videos are being made by other processes; --report when they have ended")
    layer = "split" if "split" in known else "profile" if "random" in known else None
    results = run.results(layer, {n: why for n, why in absent.items() if n in named}, groups)
    if not results.rows:
        raise SystemExit(f"nothing to report: {run.journal.path} has none of the {len(jobs)} videos asked for")
    print(write_results(results, folder))
    os.sync()


if __name__ == "__main__":
    main()
