"""Does compile time grow with strategies or with layers? First call and second shape of a Wan transformer, caches off.

    python bench/compile_time.py                                  # 10, 20, 30 layers, 5 runs: a quarter of an hour
    python bench/compile_time.py --layers 4 --contestants repeated,whole,one,two,one-whole,two-whole

Each measurement is a process of its own with Inductor's caches off and a fresh cache folder; the contestants take
turns, `--runs` times, medians. Contestants: `repeated` is diffusers' compile_repeated_blocks, `whole` torch.compile
of the model, `one` and `two` ours with one and two strategies in turn over the layers, pieces compiled once;
`one-whole` and `two-whole` the same without cutting the graph. All run 2x and 2.5x the trained length. Each measurement
is a line of a journal (--work), so a run that was killed goes on where it stopped. Held to: `two` at most 1.5x of
`repeated`. Writes results/compile_time.json, compile_time.md and compile_time.png. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, save, save_table
from denoising_step import make_inputs, make_model

from freeloc_fx.files import Journal, save_figure

LIMIT = 1.5
CONTESTANTS = ("repeated", "whole", "one", "two", "one-whole", "two-whole")
FRAMES = (41, 51)


def contestant(name: str, model: Any, layers: int) -> tuple[Any, Any]:
    """(model to call, function that says how many pieces were compiled)."""
    from freeloc_fx import Profile, transform
    from freeloc_fx.compiler.repeat import Artefacts, compile_repeated

    if name == "repeated":
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
        return model, lambda: None
    if name == "whole":
        return torch.compile(model, fullgraph=True, dynamic=False), lambda: None
    kinds = ("tsa", "vrpr+tsa") if name.startswith("two") else ("vrpr+tsa",)
    profile = Profile(trained_frames=21, layers={i: kinds[i % len(kinds)] for i in range(layers)})
    inductor = torch._TorchCompileInductorWrapper("default", None, False)
    if name.endswith("-whole"):
        return transform(model, profile, backend=lambda module, inputs: inductor(module, inputs)), lambda: None
    artefacts = Artefacts()
    changed = transform(
        model, profile, backend=lambda module, inputs: compile_repeated(module, inputs, inductor, artefacts)
    )
    return changed, lambda: artefacts.compiled


def once(name: str, layers: int) -> dict[str, Any]:
    """One measurement, in this process."""
    model = make_model(layers, 2, 24, max(FRAMES))
    call, compiled = contestant(name, model, layers)
    seconds = []
    with torch.no_grad():
        for frames in (*FRAMES, FRAMES[0]):
            inputs = make_inputs(frames, 2, 2)
            started = time.perf_counter()
            call(**inputs)
            seconds.append(time.perf_counter() - started)
    return {"first": seconds[0], "second_shape": seconds[1], "again": seconds[2], "pieces": compiled()}


def separate(name: str, layers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--once", name, "--layers", str(layers)],
            env={**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "TORCHINDUCTOR_CACHE_DIR": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians of `args.runs` processes a contestant and number of layers, in turn; not of what the journal holds."""
    journal = Journal(args.work / "compile_time.jsonl")
    names, rows = args.contestants.split(","), []
    for layers in map(int, args.layers.split(",")):
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for turn in range(args.runs):
            for name in names:
                key = {"layers": layers, "contestant": name, "run": turn, "threads": torch.get_num_threads()}
                entry = next((r for r in journal.rows if all(r[k] == v for k, v in key.items())), None)
                if entry is None:
                    entry = key | separate(name, layers)
                    journal.add(entry)
                    print(entry, flush=True)
                found[name].append(entry)
        medians = {
            name: {key: statistics.median(r[key] for r in runs) for key in ("first", "second_shape", "again")}
            for name, runs in found.items()
        }
        base = medians.get("repeated")
        for name, middle in medians.items():
            row = {
                "layers": layers,
                "contestant": name,
                "runs": args.runs,
                **middle,
                "pieces": found[name][0]["pieces"],
            }
            rows.append(row | {"of_repeated": None if base is None else middle["first"] / base["first"]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| layers | contestant | runs | first call, s | second shape, s | first again, s | of repeated | pieces |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ratio = "" if r["of_repeated"] is None else f"{r['of_repeated']:.2f}"
        lines.append(
            f"| {r['layers']} | {r['contestant']} | {r['runs']} | {r['first']:.1f} | {r['second_shape']:.1f} "
            f"| {r['again']:.3f} | {ratio} | {r['pieces'] or ''} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(dict.fromkeys(r["contestant"] for r in rows)):
        of = [r for r in rows if r["contestant"] == name]
        for key, style, what in (("first", "o-", "first call"), ("second_shape", "s--", "second shape")):
            x, y = [r["layers"] for r in of], [r[key] for r in of]
            axis.plot(x, y, style, color=f"C{place}", ms=4, label=f"{name}, {what}")
    axis.set(xlabel="layers", ylabel="seconds", ylim=(0, None), xticks=sorted({r["layers"] for r in rows}))
    axis.legend(fontsize=7, frameon=False)
    save_figure(figure, RESULTS / "compile_time.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="10,20,30", help="layer counts")
    parser.add_argument("--contestants", default="repeated,one,two")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("bench-compile-time"), help="journal")
    parser.add_argument("--once", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(once(args.once, int(args.layers))))
        return
    unknown = set(args.contestants.split(",")) - set(CONTESTANTS)
    if unknown:
        parser.error(f"--contestants: expected some of {', '.join(CONTESTANTS)}, found {', '.join(sorted(unknown))}")
    rows = measure(args)
    save("compile_time", {"limit": LIMIT, "rows": rows})
    save_table("compile_time", table(rows))
    plot(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
