"""How does each strategy hold up with length? Ground-truth scores of an embedded model's videos, 1x to 16x its length.

    python bench/lengths.py                                       # every strategy, 81 to 1281 frames, 4 clips each
    python bench/lengths.py --strategies direct --frames 81,321   # part of it
    python bench/lengths.py --strategies window,riflex,freelong   # peers
    python bench/lengths.py --model tiny-joint --strategies direct,vrpr+tsa,vrpr+tsa+squeeze
    python bench/lengths.py --seeds 0 & python bench/lengths.py --seeds 1 & wait; python bench/lengths.py --report

Each finished video is one line of a journal, so a run that was killed goes on where it stopped and the same seeds
give the same figures. Writes results/lengths.json (rows, means with bootstrap intervals), lengths.md and lengths.png;
another model's are named after it, as lengths_tiny_joint.json. Rows of other weights are left out.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from clips import prompt_of, real_clip, reconstruct
from common import RESULTS, environment, results_name, save
from journal import Journal

from freeloc_fx.generate import TINY_WAN, apply, generate, load_pipeline
from freeloc_fx.metrics import score
from freeloc_fx.probe.run import fingerprint
from freeloc_fx.report.rows import interval

STRATEGIES = ("direct", "direct+temp", "vrpr", "vrpr+temp", "tsa", "vrpr+tsa", "profile")
SCORES = ("composite", "presence", "shape_accuracy", "sharpness", "area", "speed", "motion", "psnr", "foreign", "loop")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    journal = Journal(args.work / f"{results_name('lengths', args.model)}.jsonl")
    pipe = load_pipeline(args.model, transformer_only=args.report)
    weights = fingerprint(pipe.transformer)

    def rows() -> list[dict[str, Any]]:
        return [r for r in journal.rows if r.get("weights") == weights]

    done = {(r["strategy"], r["frames"], r["seed"], r["steps"], r["guidance"]) for r in rows()}

    def add(strategy: str, frames: int, seed: int, video: np.ndarray, seconds: float) -> None:
        scores = {k: v for k, v in score(video, prompt_of(seed)).as_dict().items() if k in SCORES}
        scores = {k: v if math.isfinite(v) else None for k, v in scores.items()}
        row = {"strategy": strategy, "frames": frames, "seed": seed, "steps": args.steps, "guidance": args.guidance,
               "weights": weights, "seconds": seconds, **scores}  # fmt: skip
        journal.add(row)
        if args.keep:
            np.save(args.work / f"{strategy}-{frames}-{seed}.npy", (video * 255).round().astype(np.uint8))
        print(strategy, frames, seed, f"{seconds:.1f} s", {k: v and round(v, 3) for k, v in scores.items()}, flush=True)

    for seed in args.seeds if not args.report else ():
        for frames in args.frames:
            for strategy in ("reconstruction", *args.strategies):
                if (strategy, frames, seed, args.steps, args.guidance) in done:
                    continue
                if strategy == "reconstruction":
                    if frames == 81:
                        add(strategy, frames, seed, reconstruct(pipe, real_clip(seed, frames)), 0.0)
                    continue
                if frames == 81 and strategy != "direct":
                    continue  # within the trained length every strategy is direct
                apply(pipe, strategy=strategy)
                video = generate(
                    pipe, prompt_of(seed), frames=frames, steps=args.steps, guidance=args.guidance, seed=seed
                )
                add(strategy, frames, seed, video.frames, video.seconds)
    wanted = set(args.seeds)
    asked = (args.steps, args.guidance)
    return [r for r in rows() if r["seed"] in wanted and (r["steps"], r["guidance"]) == asked]


def table(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Means with intervals per strategy and length, as records and as a Markdown table."""
    columns = (
        "composite",
        "presence",
        "shape_accuracy",
        "sharpness",
        "area",
        "speed",
        "motion",
        "psnr",
        "loop",
        "seconds",
    )
    records, lines = (
        [],
        ["| frames | strategy | clips | " + " | ".join(columns) + " |", "|---" * (len(columns) + 3) + "|"],
    )
    order = list(dict.fromkeys(["reconstruction", *STRATEGIES, *sorted({r["strategy"] for r in rows})]))
    keys = sorted({(r["frames"], r["strategy"]) for r in rows}, key=lambda k: (k[0], order.index(k[1])))
    for frames, strategy in keys:
        part = [r for r in rows if (r["frames"], r["strategy"]) == (frames, strategy)]
        means = {c: list(interval(r[c] for r in part)) for c in columns}
        records.append({"frames": frames, "strategy": strategy, "clips": len(part), **means})
        cells = []
        for c in columns:
            mean, low, high = means[c]
            if mean is None:
                cells.append("-")
            elif c == "composite" and low is not None:
                cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
            else:
                cells.append(f"{mean:.1f}" if c in ("psnr", "seconds") else f"{mean:.2f}")
        lines.append(f"| {frames} | {strategy} | {len(part)} | " + " | ".join(cells) + " |")
    return records, "\n".join(lines)


def plot(records: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("composite", "sharpness", "speed", "area")
    figure, axes = plt.subplots(1, len(names), figsize=(15, 3.6), constrained_layout=True)
    best = next((r for r in records if r["strategy"] == "reconstruction"), None)
    for axis, name in zip(axes, names, strict=True):
        for strategy in dict.fromkeys(r["strategy"] for r in records if r["strategy"] != "reconstruction"):
            start = [r for r in records if r["strategy"] == "direct" and r["frames"] == 81]
            points = start + [r for r in records if r["strategy"] == strategy and r["frames"] > 81]
            points = [p for p in points if p[name][0] is not None]
            if len(points) > 2:  # a strategy measured at one length only is in the table
                x = [p["frames"] / 81 for p in points]
                axis.plot(x, [p[name][0] for p in points], marker="o", ms=3, label=strategy)
                ends = ([p[name][0] if p[name][i] is None else p[name][i] for p in points] for i in (1, 2))
                axis.fill_between(x, *ends, alpha=0.08)  # one clip has no interval
        if best is not None:
            axis.axhline(best[name][0], color="gray", ls=":", lw=1, label="VAE of real clips")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("length, multiples of the trained 81 frames")
        axis.set_title(name)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY_WAN, help="tiny-wan or tiny-joint")
    parser.add_argument("--strategies", type=lambda s: s.split(","), default=list(STRATEGIES))
    parser.add_argument("--frames", type=lambda s: [int(n) for n in s.split(",")], default=[81, 161, 321, 801, 1281])
    parser.add_argument("--seeds", type=lambda s: [int(n) for n in s.split(",")], default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--work", type=Path, default=Path("bench-lengths"), help="journal, and videos with --keep")
    parser.add_argument("--keep", action="store_true", help="keep every video as uint8 .npy")
    parser.add_argument("--report", action="store_true", help="no generation: results of what the journal holds")
    parser.add_argument("--name", help="name of the result files, default lengths, or lengths and the model")
    args = parser.parse_args()
    args.name = args.name or results_name("lengths", args.model)
    rows = run(args)
    records, markdown = table(rows)
    save(
        args.name,
        {
            "settings": {"model": args.model, "steps": args.steps, "guidance": args.guidance},
            "means": records,
            "clips": rows,
        },
    )
    (RESULTS / f"{args.name}.md").write_text(markdown + "\n\n" + f"Measured: {json.dumps(environment())}\n")
    plot(records, RESULTS / f"{args.name}.png")
    print(markdown)


if __name__ == "__main__":
    main()
