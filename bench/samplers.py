"""Does the sampler matter: for a model's own short clips, and for what a strategy brings at four times their length?

    python bench/samplers.py --seed 20261204 --clips 20                     # 81 frames, both kinds of prompts; resumes
    python bench/samplers.py --seed 20261204 --clips 8 --frames 321         # untouched, and with the model's profile
    python bench/samplers.py --report                                       # what the journal holds, all lengths

A sampler is SCHEDULER:STEPS:GUIDANCE. Schedulers: own (the pipeline's, UniPC, which adds no noise on the way), euler
(the same without its second order), stochastic (each step's prediction of the clean video is given new noise of the
next level: diffusers' `FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)`) and dpm-sde (`sde-dpmsolver++`, half
way between, of second order). All have the pipeline's flow shift and start from the same noise; that on the way is of
the clip's seed too. Columns as in `short_clips.py`. Writes results/samplers.json and samplers.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from clips import prompt_of, real_clip, reconstruct
from common import lines, results_name, save, save_table
from halving import bootstrap
from short_clips import KINDS, mean, measure
from text_to_video import FRAMES

from freeloc_fx.files import Journal
from freeloc_fx.generation.enabling import apply, disable
from freeloc_fx.generation.loading import load_pipeline
from freeloc_fx.generation.running import generate
from freeloc_fx.generation.tiny_wan.scenes import SIZE

SCHEDULERS = {
    "own": "the pipeline's UniPC",
    "euler": "Euler",
    "stochastic": "new noise at each step",
    "dpm-sde": "sde-dpmsolver++",
}

VAE_ALONE = "the VAE alone"


@dataclass(frozen=True)
class Sampler:
    """How a video is sampled.

    Args:
        scheduler: a key of `SCHEDULERS`.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
    """

    scheduler: str
    steps: int
    guidance: float

    @classmethod
    def read(cls, text: str) -> Sampler:
        """SCHEDULER:STEPS:GUIDANCE, as on the command line."""
        name, steps, guidance = text.split(":")
        if name not in SCHEDULERS:
            raise argparse.ArgumentTypeError(f"{name!r}: expected one of {', '.join(SCHEDULERS)}")
        return cls(name, int(steps), float(guidance))

    def __str__(self) -> str:
        return f"{SCHEDULERS[self.scheduler]}, {self.steps} steps, guidance {self.guidance:g}"

    def of(self, own: Any) -> Any:
        """The scheduler in place of a pipeline's own."""
        from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

        shift = own.config.flow_shift
        if self.scheduler == "own":
            return own
        if self.scheduler == "dpm-sde":
            return DPMSolverMultistepScheduler(
                algorithm_type="sde-dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True,
                flow_shift=shift,
            )  # fmt: skip
        return FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=self.scheduler == "stochastic")


SAMPLERS = ("own:8:3", "own:12:3", "own:24:3", "own:24:2", "stochastic:24:3", "stochastic:24:2", "dpm-sde:24:2")


def wanted(args: argparse.Namespace) -> Iterator[tuple[int, str, int, str, Sampler | None]]:
    """(frames, kind of prompts, seed, strategy, sampler) of each video; without a sampler what the VAE makes of it."""
    for kind in args.prompts:
        for frames in args.frames:
            # Within the trained length a profile changes nothing.
            strategies = ["direct"] if frames <= FRAMES else ["direct", "profile"]
            for sampler in (None, *args.samplers):
                for seed in range(args.seed, args.seed + args.clips):
                    for strategy in strategies if sampler is not None else ["-"]:
                        yield frames, kind, seed, strategy, sampler


def make(pipe: Any, own: Any, frames: int, kind: str, seed: int, strategy: str, sampler: Sampler | None) -> Any:
    """One video, float32 (frames, 64, 64, 3)."""
    leaves_open = kind == "open"
    if sampler is None:
        return reconstruct(pipe, real_clip(seed, frames, leaves_open))
    disable(pipe)
    if strategy == "profile":
        apply(pipe)
    pipe.scheduler = sampler.of(own)
    options: dict[str, Any] = {"frames": frames, "height": SIZE, "width": SIZE}
    prompt = prompt_of(seed, leaves_open)
    return generate(pipe, prompt, steps=sampler.steps, guidance=sampler.guidance, seed=seed, **options).frames


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the clips, a row each of prompts, length, sampler and strategy."""
    body = []
    keys = dict.fromkeys((r["kind"], r["frames"], r["sampler"], r["strategy"]) for r in rows)
    order = {kind: number for number, kind in enumerate(KINDS)}
    for key in sorted(keys, key=lambda k: (order[k[0]], k[1])):  # stable: samplers as they were asked for
        clips = [r["scores"] for r in rows if (r["kind"], r["frames"], r["sampler"], r["strategy"]) == key]
        known = [{name: math.nan if v is None else v for name, v in clip.items()} for clip in clips]
        figures = mean(known)
        middle, low, high = bootstrap([c["composite"] for c in known])
        shares = [f"{figures[name]:.0%}" for name in ("twice", "missing")]
        rest = [f"{figures[name]:.2f}" for name in ("pops", "constancy", "motion")]
        composite = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
        body.append([key[0], str(key[1]), key[2], key[3], str(len(clips)), *shares, *rest, composite])
    head = ("prompts", "frames", "sampler", "strategy", "clips", "a thing twice", "missing", "pops per 100 frames")
    return lines((*head, "constancy", "motion", "composite"), body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-wan", help="tiny-wan or tiny-joint")
    parser.add_argument("--seed", type=int, default=20261204)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--frames", type=lambda s: [int(n) for n in s.split(",")], default=[FRAMES])
    parser.add_argument("--prompts", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument(
        "--samplers", type=Sampler.read, nargs="+", default=[Sampler.read(s) for s in SAMPLERS], metavar="S:STEPS:G"
    )
    parser.add_argument("--work", type=Path, default=Path("bench-samplers"), help="journal")
    parser.add_argument("--report", action="store_true", help="no generation: what the journal holds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    journal = Journal(args.work / f"{args.model}.jsonl")
    known = {tuple(row["job"]) for row in journal.rows}
    pipe = None
    for frames, kind, seed, strategy, sampler in [] if args.report else wanted(args):
        job = (kind, frames, VAE_ALONE if sampler is None else str(sampler), strategy, seed)
        if job in known:
            continue
        if pipe is None:
            pipe = load_pipeline(args.model)
            own = pipe.scheduler
        video = make(pipe, own, frames, kind, seed, strategy, sampler)
        found = measure(video, prompt_of(seed, kind == "open"))
        scores = {name: None if math.isnan(value) else value for name, value in found.items()}
        named = dict(zip(("kind", "frames", "sampler", "strategy", "seed"), job, strict=True))
        journal.add({"job": job, **named, "scores": scores})
        print(*job, f"composite {found['composite']:.3f}", flush=True)
    rows = journal.refresh()
    if not rows:
        raise SystemExit(f"nothing to report yet: {journal.path} is empty")
    name = results_name("samplers", args.model)
    markdown = table(rows)
    save(name, {"rows": [{k: v for k, v in row.items() if k != "job"} for row in rows]})
    save_table(name, markdown)
    print(markdown)


if __name__ == "__main__":
    main()
