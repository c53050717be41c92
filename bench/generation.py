"""How long does a whole generation take, and how does it grow with length? tiny-wan, direct beside VRPR+TSA.

    python bench/generation.py                                        # 4x, 10x, 16x, 5 runs each, in turn
    python bench/generation.py --size 128 --frames 801 --steps 4      # four times as many tokens a frame
    python bench/generation.py --frames 81,161 --steps 2 --runs 1     # to see it work
    python bench/generation.py --backend inductor                     # as users get it who do not say otherwise
    python bench/generation.py --report                               # no generation: all that the journal holds

Prompt to frames, VAE included (in chunks with both, `freeloc_fx/generation/decoding.py`); the strategies alternate,
medians. The exponent is the slope of log time over log frames from 4x on. tiny-wan has 16 tokens a frame at its own 64
pixels, 64 at 128: the wider, the more of the time is attention, as in real models (1560 tokens). Threads are torch's
(OMP_NUM_THREADS). Each finished run is one line of a journal (--work), so a run that was killed goes on where it
stopped. Held to: at 10x at most 0.4 of direct, exponent at most 1.1. Writes results/generation.json, generation.md and
generation.png.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, save, save_table
from contestants import originals_of

from freeloc_fx.files import Journal, save_figure
from freeloc_fx.generation.pipelines import apply, generate, load_pipeline

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
LIMITS = {"of_direct_at_10x": 0.4, "exponent": 1.1}


KIND = ("size", "steps", "guidance", "backend", "threads")
"""What two rows share whose times are compared."""
KEY = ("strategy", "frames", *KIND, "run")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    journal = Journal(args.work / "generation.jsonl")
    if args.report:
        return journal.rows
    done = {tuple(r[name] for name in KEY) for r in journal.rows}
    threads = torch.get_num_threads()
    pipe: Any = None
    applied: dict[str, dict[str, Any]] = {}  # strategy -> the pipeline's transformers with it, captured and compiled
    warm: set[tuple[str, int]] = set()
    for frames in args.frames:
        for turn in range(args.runs):
            for strategy in args.strategies:
                values = (strategy, frames, args.size, args.steps, args.guidance, args.backend, threads, turn)
                entry: dict[str, Any] = dict(zip(KEY, values, strict=True))
                if values in done:
                    continue
                pipe = pipe or load_pipeline("tiny-wan")
                if strategy not in applied:
                    apply(pipe, strategy=strategy, backend=args.backend)
                    applied[strategy] = originals_of(pipe)
                for name, model in applied[strategy].items():
                    setattr(pipe, name, model)
                options: dict[str, Any] = {"frames": frames, "guidance": args.guidance, "seed": turn}
                options |= {"height": args.size, "width": args.size}
                if (strategy, frames) not in warm:  # capture, compilation, tables and masks of this length: once
                    generate(pipe, PROMPT, steps=1, **options)
                    warm.add((strategy, frames))
                entry["seconds"] = generate(pipe, PROMPT, steps=args.steps, **options).seconds
                journal.add(entry)
                print(f"{frames:5} frames  {strategy:10} run {turn}: {entry['seconds']:.2f} s", flush=True)
    return journal.rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by kind, length and strategy with ratios to direct, and the exponents from 4x on."""
    times: dict[tuple[Any, ...], list[float]] = {}
    for r in rows:
        times.setdefault((*(r[name] for name in KIND), r["frames"], r["strategy"]), []).append(r["seconds"])
    medians = {key: statistics.median(found) for key, found in times.items()}
    records = []
    for key, seconds in sorted(medians.items()):
        *kind, frames, strategy = key
        direct = medians.get((*kind, frames, "direct"))
        record: dict[str, Any] = dict(zip(KIND, kind, strict=True)) | {"frames": frames, "strategy": strategy}
        record |= {"runs": len(times[key]), "seconds": seconds}
        records.append(record | {"of_direct": None if direct is None else seconds / direct})
    exponents = []
    for line in dict.fromkeys((*(r[name] for name in KIND), r["strategy"]) for r in records):
        found = [(r["frames"], r["seconds"]) for r in records if (*(r[name] for name in KIND), r["strategy"]) == line]
        points = [(f, s) for f, s in found if f >= 321]
        if len(points) > 1:
            x, y = np.log(np.array(points)).T
            exponent = float(np.polyfit(x, y, 1)[0])
            exponents.append(dict(zip((*KIND, "strategy"), line, strict=True)) | {"exponent": exponent})
    return {"medians": records, "exponents": exponents}


def report(found: dict[str, Any]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    lines = [
        "| pixels | steps | backend | threads | frames | strategy | runs | seconds | of direct |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["medians"]:
        ratio = "" if r["of_direct"] is None else f"{r['of_direct']:.3f}"
        lines.append(
            f"| {r['size']} | {r['steps']} | {r['backend']} | {r['threads']} | {r['frames']} | {r['strategy']} "
            f"| {r['runs']} | {r['seconds']:.2f} | {ratio} |"
        )
    for e in found["exponents"]:
        lines += [
            "",
            f"{e['strategy']}, {e['size']} pixels, {e['backend']}, threads {e['threads']}, {e['steps']} steps: "
            f"time grows with frames to the power of {e['exponent']:.2f}, from 4x on.",
        ]
    save_table("generation", "\n".join(lines))
    print("\n".join(lines))
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name in dict.fromkeys(tuple(r[n] for n in (*KIND, "strategy")) for r in found["medians"]):
        of = [r for r in found["medians"] if tuple(r[n] for n in (*KIND, "strategy")) == name]
        points = sorted((r["frames"], r["seconds"]) for r in of)
        size, steps, _, backend, threads, strategy = name
        label = f"{strategy}, {size} pixels, {steps} steps, {backend}, threads {threads}"
        axis.loglog(*zip(*points, strict=True), "o-", label=label)
    axis.set(xlabel="frames", ylabel="seconds")
    for line, ticks in (
        (axis.xaxis, sorted({r["frames"] for r in found["medians"]})),
        (axis.yaxis, (5, 10, 20, 50, 100)),
    ):
        line.set_ticks(ticks, labels=[str(t) for t in ticks])
        line.set_minor_locator(NullLocator())
    axis.legend(fontsize=6)
    save_figure(figure, RESULTS / "generation.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", type=lambda s: s.split(","), default=["direct", "vrpr+tsa"])
    parser.add_argument("--frames", type=lambda s: [int(n) for n in s.split(",")], default=[321, 801, 1281])
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("bench-generation"), help="journal")
    parser.add_argument("--report", action="store_true", help="no generation: results of what the journal holds")
    args = parser.parse_args()
    found = summary(run(args))
    save("generation", {"limits": LIMITS, **found})
    report(found)


if __name__ == "__main__":
    main()
