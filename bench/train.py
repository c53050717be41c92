"""Train the embedded models: one command that resumes, on a GPU or on CPU.

    python bench/train.py --minutes 8 --device cuda                    # VAE, then tiny-wan, then its pipeline folder
    python bench/train.py --minutes 2 --device cuda --model tiny-joint # tiny-joint from tiny-wan's blocks and VAE
    python bench/train.py --minutes 60 --device cpu --stage vae        # one stage alone

Stages: vae (AutoencoderKLWan on short clips), short (transformer and text encoder on three latent frames: what a
prompt's words look like, learned from many prompts a batch), dit (on whole clips of 21 latent frames), export (the
folder that the package ships, float16 safetensors, with the curves). "all" is every stage that the model has.

Clips are drawn and encoded as it goes; a batch's generator is seeded by (seed, stage, step), so none ever repeats and a
run that was stopped goes on with the batch that it had not seen. A stop of any kind leaves a checkpoint at most a
minute old in --work; the same command goes on from it. The learning rate falls at the end of each run's --minutes.
An empty --work starts from bench/training/MODEL where there is one, which `--stage export --out bench/training/MODEL`
writes, so that machines that come and go can take turns; else from the embedded weights. Its batches are counted from
0 again, so --seed has to be one that was not used before (1 to 7 were).

`--model tiny-joint --stage dit --teacher freeloc_fx/generation/tiny_wan/model` trains on what tiny-wan predicts and
what its blocks put out, and not on the clips themselves, whose noise no model can predict (distillation): the same
noisy latents and prompts, steadier gradients.

On CPU glibc gives the memory of large tensors back to the system and asks for it again in every step. With
GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296 in
the environment a process that draws clips took 0.65 of its time and the system's share of the training fell from 8% to
1% (AMD EPYC, one core each).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from checkpoints import Checkpoint
from training_loop import Budget, Stage, train

SHARES = {"vae": 0.28, "short": 0.15, "dit": 0.57}
"""Of the minutes, where several stages run."""


def stages(args: argparse.Namespace) -> list[str]:
    names = ["short", "dit"] if args.model == "tiny-joint" else ["vae", "short", "dit"]
    if args.stage == "all":
        return names
    if args.stage not in names:
        raise SystemExit(f"--stage {args.stage}: expected one of {', '.join(names)} for {args.model}, or export")
    return [args.stage]


def make(name: str, args: argparse.Namespace, device: torch.device) -> Stage:
    if name == "vae":
        from tiny_wan_vae import BASE_DIM, Z_DIM, earlier_vae
        from train_vae import VaeStage

        known = earlier_vae()
        fits = (known.config.base_dim, known.config.z_dim) == (BASE_DIM, Z_DIM)
        start = known if fits and not args.fresh else None
        print(f"vae: a new one starts from {'random weights' if start is None else 'the earlier one'}", flush=True)
        size = {} if args.batch is None else {"batch": args.batch}
        return VaeStage(start, args.seed, device, compiled=args.compile, held_out=args.held_out, muon=args.muon, **size)
    from train_dit import DitStage

    return DitStage(name, args, device)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of this run, shared by its stages")
    parser.add_argument("--steps", type=int, help="of each stage's whole training, earlier runs included")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=["tiny-wan", "tiny-joint"], default="tiny-wan")
    parser.add_argument("--stage", choices=["all", "vae", "short", "dit", "export"], default="all")
    parser.add_argument("--work", type=Path, default=Path("train-tiny-wan"), help="checkpoints of both models")
    parser.add_argument("--out", type=Path, help="of the export; default a folder in --work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, help="clips a step; default by stage and device")
    parser.add_argument("--levels", type=int, help="noise levels at which a step shows each clip; by device")
    parser.add_argument("--times", choices=["logit-normal", "uniform"], default="logit-normal", help="of flow matching")
    parser.add_argument("--peak", type=float, help="learning rate; default by stage")
    parser.add_argument("--cooldown", type=float, default=0.25, help="share of the run in which the rate falls")
    parser.add_argument("--fresh", action="store_true", help="start from random weights, not from earlier ones")
    parser.add_argument("--teacher", type=Path, help="pipeline folder of a tiny-wan whose predictions are the target")
    parser.add_argument("--layers", type=int, help="default 10 (tiny-wan), 8 (tiny-joint, the first 2 of them dual)")
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on CPU")
    parser.add_argument("--held-out", type=int, default=12, help="clips of the validation")
    parser.add_argument("--save-every", type=float, default=40.0, help="seconds between two checkpoints")
    parser.add_argument("--report-every", type=float, default=60.0, help="seconds between two validations")
    parser.add_argument(
        "--workers", type=int, help="processes that draw and encode clips; default: for a GPU, 0 on CPU"
    )
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    if args.batch is None and gpu:
        args.batch = 48
    # A GPU waits for the clips, which the CPU renders, and has no minutes to spare for compiling.
    args.levels = args.levels or (4 if gpu else 2)
    args.compile = not gpu if args.compile is None else args.compile
    names = [] if args.stage == "export" else stages(args)
    if args.teacher is not None and "vae" in names:
        raise SystemExit("--teacher: a VAE has none; expected --stage short or dit, or --model tiny-joint")
    whole = sum(SHARES[name] for name in names)
    for name in names:
        stage = make(name, args, device)
        stage.peak = args.peak or stage.peak
        modules = {"model": stage.model, "average": stage.average}
        folder = args.work / (name if name == "vae" else f"{args.model}-{name}")
        checkpoint = Checkpoint(folder, modules, stage.optimizers)
        budget = Budget(args.minutes * 60 * SHARES[name] / whole, args.steps, args.cooldown)
        train(
            stage,
            checkpoint,
            budget,
            seed=args.seed,
            device=device,
            save_every=args.save_every,
            report_every=args.report_every,
            compiled=args.compile,
            workers=args.workers,
        )
    if args.stage in ("all", "export"):
        from export_models import export

        export(args)


if __name__ == "__main__":
    main()
