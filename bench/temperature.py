"""Does an entropy-matched temperature a layer replace TSA, or add to it? On tiny-wan, 2x to 16x the trained length.

    python bench/temperature.py --clips 2                      # resumes from its journals
    python bench/temperature.py --frames 321,801 --report      # what the journals hold

The temperature of a layer is the factor on its scores that gives its attention the entropy at the target length that it
has at the trained one: measured by `freeloc_fx.probe` in observe mode on other clips than those that are scored. Beside
it stands the closed formula sqrt(ln S_long / ln S_trained), one number for all layers, S = visible tokens. Each clip is
one prompt and one noise for all contestants. Writes results/temperature.json, .md and .png.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from clips import prompt_of
from common import RESULTS, mark_lengths, results_name, save, save_table
from halving import OutOfBudget, bootstrap
from search import HELD_OUT, Scorer

from freeloc_fx import Profile
from freeloc_fx.files import Journal, save_figure

BASES = ("direct", "vrpr", "tsa", "vrpr+tsa")
SHOWN = ("composite", "presence", "shape_accuracy", "sharpness", "area", "speed", "motion", "loop")


def temperatures(args: argparse.Namespace, scorer: Scorer, base: Profile) -> dict[int, dict[int, float]]:
    """Frames -> layer -> matched temperature, from a probe on clips that no contestant is scored on."""
    lines = Journal(args.work / "temperatures.jsonl")
    job = [args.frames, args.steps, args.guidance, args.probe_clips, scorer.weights]
    row = next((r for r in lines.rows if r["job"] == job), None)
    if row is None:
        if scorer.pipe is None:
            raise OutOfBudget(f"the journal {lines.path} does not have {job}")
        seeds = list(range(HELD_OUT, HELD_OUT + args.probe_clips))
        latent = [(frames - 1) // 4 + 1 for frames in args.frames]
        profile = scorer.library.probe(
            scorer.pipe, prompts=[prompt_of(seed) for seed in seeds], trained_frames=base.trained_frames,
            target_frames=latent[0], lengths=latent, seeds=seeds, steps=args.steps, guidance=args.guidance,
            journal=args.work / "-".join(map(str, ["probe", *latent, *job[1:]])),
            on_unit=lambda done, total, name: print(f"{done} of {total}: {name}", flush=True),
        )  # fmt: skip
        lengths: Any = (profile.provenance or {})["lengths"]
        found = {str(f): dict(lengths[str(n)]["matched_temperature"]) for f, n in zip(args.frames, latent, strict=True)}
        row = lines.add({"job": job, "matched": found})
    return {int(f): {int(layer): t for layer, t in v.items()} for f, v in row["matched"].items()}


def contestants(base: Profile, matched: dict[int, float]) -> dict[str, Profile | None]:
    """Name -> profile; None is the untransformed model."""
    made: dict[str, Profile | None] = {}
    for name in BASES:
        made[name] = None if name == "direct" else base.with_layers(name)
        hot = base.with_layers(f"{name}+temp")
        made[f"{name}+temp, closed formula"] = replace(hot, temperature=None)
        made[f"{name}+temp, matched"] = replace(hot, temperature=matched)
    return made


def plot(records: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, field in zip(axes, ("composite", "speed", "area"), strict=True):
        for index, name in enumerate(dict.fromkeys(r["what"] for r in records)):
            line = [r for r in records if r["what"] == name]
            style = ("-", "--", ":")[index % 3]
            axis.plot([round(r["frames"] / 81) for r in line], [r[field][0] for r in line], f"{style}o", ms=3,
                      color=f"C{index // 3}", label=name)  # fmt: skip
        axis.set(title=field, xlabel="length, multiples of the trained length", xscale="log")
        mark_lengths(axis, [{"extension": round(r["frames"] / 81)} for r in records])
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    save_figure(figure, path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-wan", help="tiny-wan or tiny-joint")
    parser.add_argument(
        "--clips", type=lambda s: [int(n) for n in s.split(",")], default=[2], help="one number, or one for each length"
    )
    parser.add_argument("--probe-clips", type=int, default=2)
    parser.add_argument(
        "--frames", type=lambda s: [int(n) for n in s.split(",")], default=[161, 321, 801, 1281], help="target lengths"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--work", type=Path, default=Path("bench-temperature"), help="journals")
    parser.add_argument("--report", action="store_true", help="no generation: what the journals hold")
    args = parser.parse_args()
    base = Profile.load(args.model)
    scorer = Scorer(args, args.work / "scores.jsonl")
    records, missing = [], 0
    try:
        matched = temperatures(args, scorer, base)
    except OutOfBudget as reason:
        raise SystemExit(f"nothing to report yet: {reason}") from None
    clips = args.clips * len(args.frames) if len(args.clips) == 1 else args.clips
    for frames, count in zip(args.frames, clips, strict=True):
        for name, profile in contestants(base, matched[frames]).items():
            try:
                rows = [scorer.row(profile, seed, frames) for seed in range(count)]
            except OutOfBudget:
                missing += 1
                continue
            values = {k: [r["scores"][k] for r in rows if r["scores"][k] is not None] for k in SHOWN}
            scores = {k: bootstrap(v) if v else [math.nan] * 3 for k, v in values.items()}
            records.append({"frames": frames, "what": name, "clips": len(rows), **scores})
    lines = ["| frames | strategy | clips | composite [95%] | " + " | ".join(SHOWN[1:]) + " |"]
    lines.append("|---" * (len(SHOWN) + 3) + "|")
    for r in records:
        cells = [f"{r['composite'][0]:.3f} [{r['composite'][1]:.3f}, {r['composite'][2]:.3f}]"]
        cells += [f"{r[k][0]:.2f}" for k in SHOWN[1:]]
        lines.append(f"| {r['frames']} | {r['what']} | {r['clips']} | " + " | ".join(cells) + " |")
    lines += ["", "| matched temperature of layer | " + " | ".join(map(str, matched[args.frames[0]])) + " |"]
    lines.append("|---" * (len(matched[args.frames[0]]) + 1) + "|")
    lines += [f"| at {f} frames | " + " | ".join(f"{t:.2f}" for t in v.values()) + " |" for f, v in matched.items()]
    if missing:
        lines += ["", f"{missing} rows are not in the journal yet."]
    markdown = "\n".join(lines)
    name = results_name("temperature", args.model)
    save(
        name, {"model": args.model, "steps": args.steps, "guidance": args.guidance, "matched": matched, "rows": records}
    )
    save_table(name, markdown)
    if records:
        plot(records, RESULTS / f"{name}.png")
    print(markdown)


if __name__ == "__main__":
    main()
