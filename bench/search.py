"""How far is the probe's rule from the best that a search finds? Layers' strategies and settings on an embedded model.

    python bench/search.py --profile probed.json                   # 4x, four clips, 400 generations
    python bench/search.py --frames 801 --groups 10 --budget 1000  # layer by layer, at ten times the trained length

Starts are the uniform assignments and the profile's own (the probe's rule). Then one group of layers, or the settings
of VRPR (W1, W2, G1) or TSA (D1, D2, D_s), changes at a time; successive halving over the clips decides. Groups are runs
of neighbouring layers; settings hold for all layers. What was found is then scored on clips the search never saw.

Each score is one line of a journal, so a search that was killed takes the same way again without generating twice.
Writes results/search.json and search.md; at several lengths, give each its own --name.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clips import prompt_of
from common import RESULTS, environment, results_name, save
from halving import Candidate, OutOfBudget, bootstrap, groups_of, neighbours, search, summary

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.evaluation.metrics import COMPOSITE, score
from freeloc_fx.files import Journal, write_text
from freeloc_fx.generation.pipelines import apply, generate, load_pipeline
from freeloc_fx.method import solve
from freeloc_fx.probing.run import weights_digest

NAMES = ("direct", "vrpr", "tsa", "vrpr+tsa", "vrpr+temp")
HELD_OUT = 1000  # first seed of the clips that no choice was made on


@dataclass(frozen=True)
class Library:
    """What the scripts ask of freeloc_fx to make and to judge clips; a test gives stand-ins.

    Args:
        load: name of a model -> its pipeline.
        weights_digest: transformer -> a name for its weights.
        apply: gives a pipeline a profile, or with strategy="direct" takes it away.
        generate: as `freeloc_fx.generation.pipelines.generate`.
        score: (video, prompt) -> its `GroundTruthScore`.
        probe: as `freeloc_fx.probe`.
    """

    load: Callable[[str], Any] = load_pipeline
    weights_digest: Callable[[Any], str] = weights_digest
    apply: Callable[..., Any] = apply
    generate: Callable[..., Any] = generate
    score: Callable[[Any, str], Any] = score
    probe: Callable[..., Profile] = freeloc_fx.probe


LIBRARY = Library()


class Scorer:
    """Composites of generated clips, each kept as a line of a journal under everything that its pixels depend on."""

    def __init__(
        self, args: argparse.Namespace, journal: Path, library: Library = LIBRARY, leaves_open: bool = False
    ) -> None:
        """leaves_open: whether the clips' prompts leave things open."""
        self.args, self.library, self.lines, self.leaves_open = args, library, Journal(journal), leaves_open
        self.pipe = None if args.report else library.load(args.model)
        self.weights = library.weights_digest(self.pipe.transformer) if self.pipe is not None else self._last("weights")
        self.known = {self._key(row): row for row in self.lines.rows}

    def _last(self, field: str) -> Any:
        if not self.lines.rows:
            raise SystemExit(f"--report: the journal {self.lines.path} is empty")
        return self.lines.rows[-1][field]

    @staticmethod
    def _key(row: dict[str, Any]) -> str:
        # Rows of before the measure had a name are of another one, so their key is another.
        fields = ("plan", "seed", "frames", "steps", "guidance", "weights", "measure", "open")
        return json.dumps([row.get(field) for field in fields], sort_keys=True)

    def __call__(self, profile: Profile | None, seed: int, frames: int | None = None) -> float:
        """The composite of one clip; see `row`."""
        return float(self.row(profile, seed, frames)["composite"])

    def row(self, profile: Profile | None, seed: int, frames: int | None = None) -> dict[str, Any]:
        """What the journal keeps of one clip: what made it, "composite", "scores" (a field of `GroundTruthScore` ->
        float, None where unmeasurable), "seconds". A profile of None is the untransformed model.

        Raises:
            OutOfBudget: with --report, where the journal does not have it.
        """
        args = self.args
        row = {
            "plan": None if profile is None else content(profile),
            "seed": seed,
            "frames": args.frames if frames is None else frames,
            "steps": args.steps,
            "guidance": args.guidance,
            "weights": self.weights,
            "measure": COMPOSITE,
            "open": self.leaves_open or None,  # rows of before there were such clips do not say
        }
        if (key := self._key(row)) not in self.known:
            prompt = prompt_of(seed, self.leaves_open)
            if self.pipe is None:
                raise OutOfBudget(f"the journal {self.lines.path} does not have {key}")
            if profile is None:
                self.library.apply(self.pipe, strategy="direct")
            else:
                self.library.apply(self.pipe, profile)
            started = time.monotonic()
            video = self.library.generate(
                self.pipe, prompt, frames=row["frames"], steps=args.steps, guidance=args.guidance, seed=seed
            )
            found = self.library.score(video.frames, prompt).as_dict()
            composite = found["composite"]
            if not math.isfinite(composite):
                raise SystemExit(f"clip {seed}: expected a finite composite, found {composite}")
            scores = {k: v if math.isfinite(v) else None for k, v in found.items() if isinstance(v, float)}
            seconds = time.monotonic() - started
            self.known[key] = self.lines.add({**row, "composite": composite, "scores": scores, "seconds": seconds})
            print(f"{len(self.lines.rows)}: clip {seed}, composite {composite:.3f}, {row['plan']}", flush=True)
        return self.known[key]


def content(profile: Profile) -> list[Any]:
    """What of a profile decides the pixels, as JSON data."""
    layers = profile.layers if isinstance(profile.layers, str) else dict(profile.layers)
    settings = (profile.vrpr, profile.tsa, profile.temperature, profile.parts, profile.quantise)
    return json.loads(json.dumps([layers, profile.trained_frames, *(None if s is None else str(s) for s in settings)]))


def of_rule(profile: Profile, groups: Sequence[Sequence[int]]) -> Candidate:
    """The probe's assignment as a start: the most frequent strategy of each group, settings solved."""
    names = [[profile.strategy_name(layer) for layer in group] for group in groups]
    return Candidate(tuple(max(dict.fromkeys(group), key=group.count) for group in names))


def report(
    args: argparse.Namespace, groups: Sequence[Sequence[int]], base: Profile, scorer: Scorer, folder: Path
) -> str:
    trained, latent = base.trained_frames, (args.frames - 1) // 4 + 1
    grid = latent_grid(args.model, args.frames)
    solved = solve.vrpr(trained, latent), solve.tsa(trained, *grid)
    rule = of_rule(base, groups)
    starts = [rule, *(Candidate((name,) * len(groups)) for name in args.names)]
    found = search(
        starts,
        lambda c: neighbours(c, args.names, trained, latent, solved, grid[0] * grid[1]),
        range(args.clips),
        lambda c, seed: scorer(c.profile(base, groups), seed),
        args.budget,
    )
    held_out = range(HELD_OUT, HELD_OUT + (args.held_out or args.clips))
    rows, best_scores = [], [scorer(found.best.profile(base, groups), seed) for seed in held_out]
    compared: dict[str, Profile] = {"best found": found.best.profile(base, groups), "the probe's rule": base}
    compared |= {f"uniform {name}": Candidate((name,) * len(groups)).profile(base, groups) for name in args.names}
    for label, profile in compared.items():
        scores = [scorer(profile, seed) for seed in held_out]
        behind = [best - other for best, other in zip(best_scores, scores, strict=True)]
        rows.append({"what": label, "composite": bootstrap(scores), "behind_best": bootstrap(behind)})
    data = {
        "frames": args.frames, "open": args.open, "clips": args.clips, "held_out": len(held_out), "budget": args.budget,
        "evaluations": found.evaluations, "complete": found.complete, "mean_on_search_clips": found.mean,
        "best": summary(found.best, groups), "rows": rows, "groups": [list(group) for group in groups],
        "path": [{"mean": mean, **summary(candidate, groups)} for candidate, mean in found.path],
    }  # fmt: skip
    save(args.name, data, folder)
    lines = [
        f"{args.frames} frames{', prompts that leave things open' * args.open}; "
        f"{found.evaluations} of {args.budget} generations on {args.clips} clips, "
        + ("no single change was better." if found.complete else "the budget ran out first."),
        f"Best found: {found.best.key}, groups {[list(group) for group in groups]}.",
        "",
        f"Composite on {len(held_out)} other clips, and how far it is behind the best found on the same clips, means "
        "with 95% bootstrap intervals:",
        "",
        "| assignment | composite | behind the best |",
        "|---|---|---|",
    ]
    for row in rows:
        cells = [f"{m:.3f} [{low:.3f}, {high:.3f}]" for m, low, high in (row["composite"], row["behind_best"])]
        lines.append(f"| {row['what']} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def latent_grid(model: str, frames: int) -> tuple[int, int]:
    """Height and width in tokens of a model's usual size, from its configuration."""
    from freeloc_fx.generation.request import Facts, check_request, defaults

    facts, usual = Facts.read(model), defaults(model=model)
    check_request(facts, frames, usual.height, usual.width)
    return usual.height // facts.multiple[0], usual.width // facts.multiple[1]


def main(arguments: Sequence[str] | None = None, library: Library = LIBRARY, folder: Path = RESULTS) -> None:
    """The script, with its command line, what it asks of the library, and the folder of its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-wan", help="tiny-wan or tiny-joint")
    parser.add_argument("--clips", type=int, default=4, help="that the search decides on")
    parser.add_argument("--held-out", type=int, help="clips of the final comparison, default as many as --clips")
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--open", action="store_true", help="clips whose prompts leave things open")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--budget", type=int, default=400, help="generations of the search, final clips not counted")
    parser.add_argument("--groups", type=int, default=5, help="runs of layers that change together")
    parser.add_argument("--names", type=lambda s: s.split(","), default=list(NAMES), help="strategies to try")
    parser.add_argument("--profile", help="the rule's: a probed profile, by name or path, default the model's")
    parser.add_argument("--work", type=Path, default=Path("bench-search"), help="journal")
    parser.add_argument("--report", action="store_true", help="no generation: what the journal holds")
    parser.add_argument("--name", help="name of the result files, default search, or search and the model")
    args = parser.parse_args(arguments)
    args.name = args.name or results_name("search", args.model)
    # As it is for this length: rows are known by the layers of the profile, not by those it has for other lengths.
    base = Profile.load(args.profile or args.model).at((args.frames - 1) // 4 + 1)
    count = base.layer_count or len(base.sensitivities or ()) or 10
    scorer = Scorer(args, args.work / "scores.jsonl", library, args.open)
    try:
        markdown = report(args, groups_of(count, args.groups), base, scorer, folder)
    except OutOfBudget as reason:
        raise SystemExit(f"nothing to report yet: {reason}") from None
    folder.mkdir(exist_ok=True)
    text = f"{markdown}\n\nfreeloc_fx {freeloc_fx.__version__}. Measured: {json.dumps(environment())}\n"
    write_text(folder / f"{args.name}.md", text)
    print(markdown)


if __name__ == "__main__":
    main()
