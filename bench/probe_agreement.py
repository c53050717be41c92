"""Do probes predict where correction helps? Observe mode, full mode, and the truth: each layer corrected alone.

    python bench/probe_agreement.py

The truth of a layer is the gain in ground-truth composite at 4x when that layer alone gets VRPR+TSA. Prints Spearman rank
correlations between all columns. Journalled: a run that was killed goes on where it stopped. Writes
results/probe_agreement.json and .png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, save
from lengths import prompt_of

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.generate import apply, generate, load_pipeline
from freeloc_fx.metrics import score
from freeloc_fx.probe.journal import Journal


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def spearman(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda s: [int(n) for n in s.split(",")], default=[0, 1])
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("bench-probe"))
    parser.add_argument("--modes", type=lambda s: s.split(","), default=["observe", "full"])
    args = parser.parse_args()
    pipe = load_pipeline("tiny-wan")
    prompts = [prompt_of(seed) for seed in args.seeds]
    target = (args.frames - 1) // 4 + 1
    columns: dict[str, list[float]] = {}
    for mode in args.modes:
        profile = freeloc_fx.probe(
            pipe, prompts=prompts, seeds=args.seeds, steps=args.steps, target_frames=target, mode=mode,
            reward=lambda video, seed: score(video, prompt_of(seed)).composite, journal=args.work / mode,
            on_unit=lambda done, total, name: print(f"{done}/{total} {name}", flush=True),
        )  # fmt: skip
        assert profile.sensitivities is not None
        columns[f"{mode} position"] = [s.position for s in profile.sensitivities.values()]
        columns[f"{mode} context"] = [s.context for s in profile.sensitivities.values()]
        if mode == "observe":
            columns["matching temperature"] = [
                profile.settings(layer, target)["temperature"] for layer in profile.sensitivities
            ]
    journal = Journal(args.work / "truth", {"frames": args.frames, "steps": args.steps})
    layers = range(len(next(iter(columns.values()))))

    def composite(profile: Profile | None, seed: int) -> float:
        apply(pipe, profile, "direct" if profile is None else None)
        video = generate(pipe, prompt_of(seed), frames=args.frames, steps=args.steps, seed=seed)
        return score(video.frames, prompt_of(seed)).composite

    def gain(strategy: str, layer: int) -> float:
        values = []
        for seed in args.seeds:
            base = journal.get(f"direct {seed}", lambda seed=seed: composite(None, seed))
            one = Profile(trained_frames=21, layers={layer: strategy})
            values.append(
                journal.get(f"{strategy} {layer} {seed}", lambda one=one, seed=seed: composite(one, seed)) - base
            )
        return float(np.mean(values))

    for strategy in ("vrpr", "vrpr+tsa"):
        columns[f"gain of {strategy} alone"] = [gain(strategy, layer) for layer in layers]
    names = list(columns)
    table: dict[str, Any] = {a: {b: spearman(columns[a], columns[b]) for b in names} for a in names}
    save(
        "probe_agreement",
        {"columns": columns, "spearman": table, "settings": {"seeds": args.seeds, "steps": args.steps}},
    )
    for a in names:
        print(f"{a:28}", " ".join(f"{table[a][b]:6.2f}" for b in names))
    plot(columns)


def plot(columns: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(columns), figsize=(3 * len(columns), 2.8), constrained_layout=True)
    for axis, (name, values) in zip(axes, columns.items(), strict=True):
        axis.bar(range(len(values)), values)
        axis.set(title=name, xlabel="layer")
    figure.savefig(RESULTS / "probe_agreement.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
