"""What does observe mode cost? Its time over a plain generation's, on tiny-wan.

    python bench/probe_cost.py                      # 4x, five runs of each kind
    python bench/probe_cost.py --frames 81 --clips 1 --steps 2

Each clip is generated three times, in an order that turns from clip to clip: plainly; observed, with the capture that a
probe pays once for each generation; and observed again on the same capture. Reported is the median over clips of the
ratio within a clip, so that a machine that slows down spoils one clip and not the comparison. One plain clip before the
first is not counted. Writes results/probe_cost.json and probe_cost.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from clips import prompt_of
from common import RESULTS, save, save_table

from freeloc_fx.files import Journal
from freeloc_fx.generation.pipelines import generate, load_pipeline
from freeloc_fx.probing.observe import Recorder
from freeloc_fx.probing.run import watched_copy

KINDS = ("plain", "observed with capture", "observed")


def timed(pipe: Any, model: Any, args: argparse.Namespace, seed: int) -> float:
    """Seconds of one generation by `model`."""
    before = pipe.transformer
    pipe.transformer = model
    try:
        started = time.perf_counter()
        generate(pipe, prompt_of(seed), frames=args.frames, steps=args.steps, guidance=args.guidance, seed=seed)
        return time.perf_counter() - started
    finally:
        pipe.transformer = before


@dataclass(frozen=True)
class Library:
    """What the script asks of freeloc_fx; a test gives stand-ins.

    Args:
        load: name of a model -> its pipeline.
        watched_copy: (model, recorder) -> the watched model.
        timed: (pipeline, model, arguments, seed) -> seconds of one generation.
    """

    load: Callable[[str], Any] = load_pipeline
    watched_copy: Callable[[Any, Recorder], Any] = watched_copy
    timed: Callable[[Any, Any, argparse.Namespace, int], float] = timed


LIBRARY = Library()


def measure(pipe: Any, args: argparse.Namespace, seed: int, library: Library = LIBRARY) -> dict[str, float]:
    """Seconds of each kind for one clip."""
    found = {}
    recorder = Recorder(f"cost {seed}", None, seed, args.every, trained=args.trained)
    try:
        watched = library.watched_copy(pipe.transformer, recorder)
        observed = [("observed with capture", watched), ("observed", watched)]
        plain = [("plain", pipe.transformer)]
        for kind, model in (plain + observed, observed + plain)[seed % 2]:
            found[kind] = library.timed(pipe, model, args, seed)
        if not recorder.rows:
            raise SystemExit("nothing was observed")
    finally:
        recorder.close()
    return found


def main(arguments: Sequence[str] | None = None, library: Library = LIBRARY, folder: Path = RESULTS) -> None:
    """The script, with its command line, what it asks of the library, and the folder of its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--every", type=int, default=4, help="observe every n-th call, as the probe does by default")
    parser.add_argument("--trained", type=int, default=21, help="latent frames the model was trained on")
    parser.add_argument("--work", type=Path, default=Path("bench-probe-cost"), help="journal")
    parser.add_argument("--report", action="store_true", help="no generation: what the journal holds")
    args = parser.parse_args(arguments)
    lines = Journal(args.work / "seconds.jsonl")
    request = {key: getattr(args, key) for key in ("frames", "steps", "guidance", "every", "trained")}
    rows = [r for r in lines.rows if r["request"] == request and r["seed"] < args.clips]
    if not args.report and len(rows) < args.clips:
        pipe = library.load("tiny-wan")
        library.timed(pipe, pipe.transformer, args, 0)
        for seed in sorted(set(range(args.clips)) - {r["seed"] for r in rows}):
            rows.append(lines.add({"seed": seed, "request": request, "seconds": measure(pipe, args, seed, library)}))
            print(rows[-1], flush=True)
    if not rows:
        raise SystemExit(f"the journal {lines.path} has nothing for {request}")
    seconds = {kind: [r["seconds"][kind] for r in rows] for kind in KINDS}
    table = ["| generation | median s | median ratio | smallest | largest |", "|---|---|---|---|---|"]
    data = {}
    for kind in KINDS:
        ratios = [s / p for s, p in zip(seconds[kind], seconds["plain"], strict=True)]
        data[kind] = {"seconds": median(seconds[kind]), "ratio": median(ratios), "ratios": ratios}
        table.append(
            f"| {kind} | {median(seconds[kind]):.1f} | {median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |"
        )
    save("probe_cost", {"request": request, "kinds": data, "clips": rows}, folder)
    head = f"{args.frames} frames, {args.steps} steps, {len(rows)} clips; observed every {args.every} calls."
    text = "\n".join([head, "", *table])
    save_table("probe_cost", text, folder)
    print(text)


if __name__ == "__main__":
    main()
