"""How long does a whole generation take, and how does it grow with length? tiny-wan, direct beside VRPR+TSA.

    python bench/generation.py                                        # 4x, 10x, 16x, 3 runs each, in turn
    python bench/generation.py --frames 81,161 --steps 2 --runs 1     # to see it work

Prompt to frames, VAE included; the strategies alternate, medians. The exponent is the slope of log time over log
frames from 4x on. Each finished run is one line of a journal (--work), so a run that was killed goes on where it
stopped. Held to: at 10x at most 0.4 of direct, exponent at most 1.1. Writes results/generation.json, generation.md and
generation.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, save

from freeloc_fx.generate import apply, generate, load_pipeline

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
LIMITS = {"of_direct_at_10x": 0.4, "exponent": 1.1}


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    args.work.mkdir(parents=True, exist_ok=True)
    journal = args.work / "generation.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    key = ("strategy", "frames", "steps", "guidance", "backend", "run")
    done = {tuple(r[name] for name in key) for r in rows}
    pipe: Any = None
    warm: set[tuple[str, int]] = set()
    for frames in args.frames:
        for turn in range(args.runs):
            for strategy in args.strategies:
                entry = dict(zip(key, (strategy, frames, args.steps, args.guidance, args.backend, turn), strict=True))
                if tuple(entry.values()) in done:
                    continue
                pipe = pipe or load_pipeline("tiny-wan")
                apply(pipe, strategy=strategy, backend=args.backend)
                options: dict[str, Any] = {"frames": frames, "guidance": args.guidance, "seed": turn}
                if (strategy, frames) not in warm:  # tables and masks of this length are made once in a process
                    generate(pipe, PROMPT, steps=1, **options)
                    warm.add((strategy, frames))
                entry["seconds"] = generate(pipe, PROMPT, steps=args.steps, **options).seconds
                rows.append(entry)
                with journal.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                print(f"{frames:5} frames  {strategy:10} run {turn}: {entry['seconds']:.2f} s", flush=True)
    wanted = (args.steps, args.guidance, args.backend)
    return [r for r in rows if (r["steps"], r["guidance"], r["backend"]) == wanted]


def summary(rows: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Medians by strategy and length, ratios to direct, and the exponent from 4x on."""
    medians = {
        (s, f): statistics.median(found)
        for s in args.strategies
        for f in args.frames
        if (found := [r["seconds"] for r in rows if (r["strategy"], r["frames"]) == (s, f)])
    }
    records, exponents = [], {}
    for (strategy, frames), seconds in medians.items():
        direct = medians.get(("direct", frames))
        ratio = None if direct is None else seconds / direct
        records.append({"strategy": strategy, "frames": frames, "seconds": seconds, "of_direct": ratio})
    for strategy in args.strategies:
        points = [(f, s) for (name, f), s in medians.items() if name == strategy and f >= 321]
        if len(points) > 1:
            x, y = np.log(np.array(points)).T
            exponents[strategy] = float(np.polyfit(x, y, 1)[0])
    return {"medians": records, "exponents": exponents}


def report(found: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = ["| frames | strategy | seconds | of direct |", "|---|---|---|---|"]
    for r in sorted(found["medians"], key=lambda r: r["frames"]):
        ratio = "" if r["of_direct"] is None else f"{r['of_direct']:.3f}"
        lines.append(f"| {r['frames']} | {r['strategy']} | {r['seconds']:.2f} | {ratio} |")
    for strategy, exponent in found["exponents"].items():
        lines += ["", f"{strategy}: time grows with frames to the power of {exponent:.2f}, from 4x on."]
    (RESULTS / "generation.md").write_text("\n".join(lines) + f"\n\nMeasured: {json.dumps(environment())}\n")
    print("\n".join(lines))
    figure, axis = plt.subplots(figsize=(5, 3.6), constrained_layout=True)
    for strategy in dict.fromkeys(r["strategy"] for r in found["medians"]):
        line = sorted((r["frames"], r["seconds"]) for r in found["medians"] if r["strategy"] == strategy)
        axis.loglog(*zip(*line, strict=True), "o-", label=strategy)
    axis.set(xlabel="frames", ylabel="seconds")
    axis.legend()
    figure.savefig(RESULTS / "generation.png", dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", type=lambda s: s.split(","), default=["direct", "vrpr+tsa"])
    parser.add_argument("--frames", type=lambda s: [int(n) for n in s.split(",")], default=[321, 801, 1281])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("bench-generation"), help="journal")
    args = parser.parse_args()
    rows = run(args)
    found = summary(rows, args)
    save("generation", {"settings": {"steps": args.steps, "guidance": args.guidance}, "limits": LIMITS, **found})
    report(found)


if __name__ == "__main__":
    main()
