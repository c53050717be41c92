"""Does compile time grow with strategies or with layers? First call and second shape of a Wan transformer, caches off.

    python bench/compile_time.py                                  # 30 layers, 5 runs; minutes for each contestant
    python bench/compile_time.py --layers 4 --contestants repeated,whole,one,two

Each measurement is a process of its own with Inductor's caches off and a fresh cache folder; the contestants take
turns, `--runs` times, medians. Contestants: `repeated` is diffusers' compile_repeated_blocks, `whole` torch.compile
of the model, `one` and `two` ours with one and two strategies in turn over the layers, pieces compiled once;
`one-whole` and `two-whole` the same without cutting the graph. All run 2x and 2.5x the trained length. Held to: `two`
at most 1.5x of `repeated`. Writes results/compile_time.json and compile_time.md.
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
from typing import Any

import torch
from common import RESULTS, environment, save
from denoising_step import make_inputs, make_model

LIMIT = 1.5
CONTESTANTS = ("repeated", "whole", "one", "two", "one-whole", "two-whole")
FRAMES = (41, 51)


def contestant(name: str, model: Any, layers: int) -> tuple[Any, Any]:
    """(model to call, function that says how many pieces were compiled)."""
    from freeloc_fx import Profile, transform
    from freeloc_fx.repeat import Artefacts, compile_repeated

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="30", help="layer counts")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--once", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(once(args.once, int(args.layers))))
        return
    names = args.contestants.split(",")
    rows: list[dict[str, Any]] = []
    for layers in map(int, args.layers.split(",")):
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(args.runs):
            for name in names:
                found[name].append(separate(name, layers))
                print(layers, name, found[name][-1], flush=True)
        for name, runs in found.items():
            medians = {key: statistics.median(r[key] for r in runs) for key in ("first", "second_shape", "again")}
            rows.append({"layers": layers, "contestant": name, **medians, "pieces": runs[0]["pieces"]})
        for row in rows:
            base = next((r for r in rows if (r["layers"], r["contestant"]) == (row["layers"], "repeated")), None)
            row["of_repeated"] = None if base is None else row["first"] / base["first"]
        save("compile_time", {"limit": LIMIT, "rows": rows})
    lines = [
        "| layers | contestant | first call, s | second shape, s | first shape again, s | of repeated | pieces |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ratio = "" if r["of_repeated"] is None else f"{r['of_repeated']:.2f}"
        lines.append(
            f"| {r['layers']} | {r['contestant']} | {r['first']:.1f} | {r['second_shape']:.1f} | {r['again']:.3f} "
            f"| {ratio} | {r['pieces'] or ''} |"
        )
    (RESULTS / "compile_time.md").write_text("\n".join(lines) + f"\n\nMeasured: {json.dumps(environment())}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
