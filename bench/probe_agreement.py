"""Does the probe say the truth? Observe mode against full mode, and both against what correcting a layer does.

    python bench/probe_agreement.py --clips 4              # tiny-wan, 4x; resumes from its journals
    python bench/probe_agreement.py --frames 801 --modes observe --assignments-only --name assignments_801

The truth of a layer is measured on the ground-truth composite at the target length, for each correction (VRPR alone,
TSA alone, both): "alone", the composite with that layer corrected and no other, less that of none; "left out", the
composite with every layer corrected, less that with all but this one. Each is paired within a clip (prompt and seed).

Agreement is Spearman's rank correlation over layers of means over clips, its interval from resampling clips. Random
assignments (as many layers with TSA as the rule has, or half of them where the rule makes no difference) and uniform
ones are generated on the same clips. Writes results/probe_agreement.json, .md and .png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clips import prompt_of
from common import RESULTS, results_name, save, save_table
from halving import OutOfBudget, bootstrap
from search import LIBRARY, Library, Scorer

from freeloc_fx import Profile
from freeloc_fx.evaluation.metrics import COMPOSITE
from freeloc_fx.files import Journal, save_figure
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.probing.rule import assign
from freeloc_fx.probing.statistics import ProbeSettings, spearman

CORRECTIONS = ("vrpr", "tsa", "vrpr+tsa")
KINDS = ("position", "context")
PREDICTORS = {"observe": (*KINDS, "ald", "temperature"), "full": (*KINDS, "temperature")}
"""What a mode says of a layer: the two sensitivities, the paper's ALD (from logits; observe mode's position looks at
outputs), and the score factor that undoes the rise of its entropy."""
Figures = dict[str, np.ndarray]


def probed(args: argparse.Namespace, scorer: Scorer, trained: int) -> Figures:
    """ "observe position", ..., "full temperature": what the probe says, float64 (clips, layers)."""
    lines = Journal(args.work / "probes.jsonl")
    found: dict[str, list[list[float]]] = {f"{mode} {kind}": [] for mode in args.modes for kind in PREDICTORS[mode]}
    for seed in range(args.clips):
        for mode in args.modes:
            job = [mode, seed, args.frames, args.steps, args.guidance, args.every, args.shifts, scorer.weights]
            job += ["ald"] * ("ald" in PREDICTORS[mode])  # rows without it are of another measure of position
            rewards = {"reward": _reward(scorer, prompt_of(seed)), "reward_name": COMPOSITE} if mode == "full" else {}
            job += [COMPOSITE] * (mode == "full")
            row = next((r for r in lines.rows if r["job"] == job), None)
            if row is None:
                if scorer.pipe is None:
                    raise OutOfBudget(f"the journal {lines.path} does not have {job}")
                prompt = prompt_of(seed)
                settings = ProbeSettings.for_length(trained)
                if args.shifts is not None:
                    settings = ProbeSettings(settings.rows, tuple(args.shifts), settings.window)
                profile = scorer.library.probe(
                    scorer.pipe, prompts=[prompt], trained_frames=trained, target_frames=(args.frames - 1) // 4 + 1,
                    mode=mode, seeds=[seed], steps=args.steps, guidance=args.guidance, every=args.every,
                    settings=settings, **rewards,
                    journal=args.work
                    / f"probe-{mode}-{seed}-{args.frames}-{args.steps}-{args.guidance}-{scorer.weights}",
                    on_unit=lambda done, total, name: print(f"{done} of {total}: {name}", flush=True),
                )  # fmt: skip
                measured = profile.sensitivities or {}
                lengths: Any = (profile.provenance or {})["lengths"]
                (at_target,) = lengths.values()
                row = lines.add({"job": job, **{kind: [getattr(s, kind) for s in measured.values()] for kind in KINDS},
                           "ald": list(at_target["ald"].values()),
                           "temperature": list(at_target["matched_temperature"].values())})  # fmt: skip
            for kind in PREDICTORS[mode]:
                found[f"{mode} {kind}"].append(row[kind])
    return {name: np.array(values) for name, values in found.items()}


def _reward(scorer: Scorer, prompt: str) -> Callable[[Any, int], float]:
    """Composites against one prompt, as full mode asks for them."""
    return lambda video, seed: float(scorer.library.score(video, prompt).composite)


def truths(args: argparse.Namespace, scorer: Scorer, base: Profile, layers: list[int]) -> Figures:
    """ "vrpr alone", "vrpr left out", ...: the effect of each layer on the composite, float64 (clips, layers)."""
    found: dict[str, list[list[float]]] = {}
    for seed in range(args.clips):
        none = scorer(None, seed)
        for name in args.corrections:
            every = scorer(base.with_layers(name), seed)
            alone = [scorer(base.with_layers({layer: name}), seed) - none for layer in layers]
            without = [{other: name for other in range(args.count) if other != layer} for layer in layers]
            left_out = [every - scorer(base.with_layers(rest), seed) for rest in without]
            found.setdefault(f"{name} alone", []).append(alone)
            found.setdefault(f"{name} left out", []).append(left_out)
    return {name: np.array(values) for name, values in found.items()}


def correlation(x: np.ndarray, y: np.ndarray) -> list[float | None]:
    """Spearman over layers of means over clips, with the 95% interval over resampled clips; (clips, layers) each."""
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(x), len(x)) for _ in range(1000)]
    values = np.array([spearman(x[d].mean(0), y[d].mean(0)) for d in draws])
    values = values[np.isfinite(values)]
    whole = spearman(x.mean(0), y.mean(0))
    if not np.isfinite(whole) or not len(values):
        return [None, None, None]
    return [whole, *(float(q) for q in np.quantile(values, [0.025, 0.975]))]


def assignments(args: argparse.Namespace, probes: Figures, base: Profile) -> dict[str, Profile]:
    """The rule on each mode's sensitivities, uniform assignments, and random ones."""
    made = {f"uniform {name}": base.with_layers(name) for name in args.corrections}
    counts = []
    for mode in args.modes:
        position, context = (probes[f"{mode} {kind}"].mean(0) for kind in KINDS)
        pairs = enumerate(zip(position, context, strict=True))
        layers = assign({layer: Sensitivity(float(p), float(c)) for layer, (p, c) in pairs})
        made[f"rule, {mode}"] = base.with_layers(layers)
        counts.append(sum(name == "vrpr+tsa" for name in layers.values()))
    dense = counts[0] if 0 < counts[0] < args.count else args.count // 2
    random = np.random.default_rng(0)
    for index in range(args.random):
        chosen = set(random.permutation(args.count)[:dense].tolist())
        layers = {layer: "vrpr+tsa" if layer in chosen else "vrpr" for layer in range(args.count)}
        made[f"random {index}"] = base.with_layers(layers)
    return made


def plot(probes: Figures, truth: Figures, layers: list[int], path: Path) -> None:
    """Standardised means over clips by layer, with standard errors: modes above, effects below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    panels: list[Figures] = [{n: v for n, v in probes.items() if n.endswith(kind)} for kind in KINDS]
    panels += [{n: v for n, v in truth.items() if n.endswith(end)} for end in ("alone", "left out")]
    for axis, panel, title in zip(axes.flat, panels, (*KINDS, "corrected alone", "left out"), strict=True):
        for name, values in panel.items():
            mean, unit = values.mean(0), 1.0
            error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(layers))
            if title in KINDS:
                mean, unit = mean - mean.mean(), float(mean.std()) or 1.0
            axis.errorbar(layers, mean / unit, yerr=error / unit, marker="o", ms=4, capsize=2, label=name)
        axis.axhline(0, color="gray", lw=0.6)
        axis.set(title=title, xlabel="layer", xticks=layers)
        axis.set_ylabel("standard deviations" if title in KINDS else "change of composite")
        axis.legend(fontsize=8)
    save_figure(figure, path, dpi=110)


def cell(values: Sequence[float | None]) -> str:
    mean, low, high = values
    return "-" if mean is None or low is None or high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _against_table(against: dict[str, dict[str, list[float | None]]]) -> list[str]:
    titles = list(next(iter(against.values()), {}))
    if not titles:
        return []
    rows = (f"| {name} | " + " | ".join(map(cell, values.values())) + " |" for name, values in against.items())
    return ["| predictor | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|", *rows, ""]


def run(args: argparse.Namespace, scorer: Scorer, base: Profile, folder: Path) -> str:
    layers = list(range(args.count)) if args.layers is None else args.layers
    probes = probed(args, scorer, base.trained_frames)
    truth = truths(args, scorer, base, layers) if not args.assignments_only else {}
    seen = {name: values[:, layers] for name, values in probes.items()}
    modes = {}
    if len(args.modes) == 2:
        modes = {kind: correlation(seen[f"observe {kind}"], seen[f"full {kind}"]) for kind in KINDS}
    against = {name: {t: correlation(x, y) for t, y in truth.items()} for name, x in seen.items()}
    made = assignments(args, probes, base)
    scores = {name: [scorer(profile, seed) for seed in range(args.clips)] for name, profile in made.items()}
    random = [float(np.mean(v)) for v in zip(*(scores[f"random {i}"] for i in range(args.random)), strict=True)]
    if random:
        scores = {**{n: s for n, s in scores.items() if not n.startswith("random ")}, "random, mean of all": random}
    scores["direct"] = [scorer(None, seed) for seed in range(args.clips)]
    rule = scores[f"rule, {args.modes[0]}"]
    table = {
        name: {"composite": bootstrap(s), "behind_rule": bootstrap([r - v for r, v in zip(rule, s, strict=True)])}
        for name, s in scores.items()
    }
    plain = {name: values.tolist() for name, values in {**probes, **truth}.items()}
    save(args.name, {"frames": args.frames, "clips": args.clips, "layers": layers, "modes": modes,
                             "against_truth": against, "assignments": table, "random_assignments": args.random,
                             "rule_layers": {n: str(made[n].layers) for n in made if n.startswith("rule")},
                             "figures": plain}, folder)  # fmt: skip
    if truth:
        plot(seen, truth, layers, folder / f"{args.name}.png")
    lines = [
        f"{args.frames} frames, {args.clips} clips, {len(layers)} layers. Rank correlations over layers, 95% intervals "
        "over resampled clips.",
        "",
        "| observe against full | Spearman |",
        "|---|---|",
        *(f"| {kind} | {cell(value)} |" for kind, value in modes.items()),
        "",
        *_against_table(against),
        "| assignment | composite | behind the rule |",
        "|---|---|---|",
        *(f"| {name} | {cell(v['composite'])} | {cell(v['behind_rule'])} |" for name, v in table.items()),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, library: Library = LIBRARY, folder: Path = RESULTS) -> None:
    """The script, with its command line, what it asks of the library, and the folder of its results."""

    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-wan", help="tiny-wan or tiny-joint")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--modes", type=words, default=["observe", "full"], help="the first one's rule is compared")
    parser.add_argument("--corrections", type=words, default=list(CORRECTIONS))
    parser.add_argument("--layers", type=numbers, help="of the truth, default all")
    parser.add_argument("--shifts", type=numbers, help="latent frames, default the paper's, scaled to the model")
    parser.add_argument("--random", type=int, default=8, help="random assignments")
    parser.add_argument("--assignments-only", action="store_true", help="no truth layer by layer")
    parser.add_argument("--name", help="name of the result files, default probe_agreement, or that and the model")
    parser.add_argument("--work", type=Path, default=Path("bench-probe-agreement"), help="journals")
    parser.add_argument("--report", action="store_true", help="no generation: what the journals hold")
    args = parser.parse_args(arguments)
    args.name = args.name or results_name("probe_agreement", args.model)
    base: Any = Profile.load(args.model)
    args.count = base.layer_count
    scorer = Scorer(args, args.work / "scores.jsonl", library)
    folder.mkdir(exist_ok=True)
    try:
        markdown = run(args, scorer, base, folder)
    except OutOfBudget as reason:
        raise SystemExit(f"nothing to report yet: {reason}") from None
    save_table(args.name, markdown, folder)
    print(markdown)


if __name__ == "__main__":
    main()
