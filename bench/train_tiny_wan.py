"""Train tiny-wan, the embedded model, from nothing: VAE, latents, DiT with its text encoder, then the pipeline folder.

    python bench/train_tiny_wan.py vae      # 1. small AutoencoderKLWan on procedural clips
    python bench/train_tiny_wan.py latents  # 2. encode the training clips once
    python bench/train_tiny_wan.py short    # 3. WanTransformer3DModel and UMT5 encoder on three latent frames: what a
                                            #    prompt's words look like, learned from many prompts a batch
    python bench/train_tiny_wan.py dit      # 4. then on whole clips of 21 latent frames
    python bench/train_tiny_wan.py export   # 5. freeloc_fx/tiny_wan/model, a WanPipeline folder, float16 safetensors

Each stage resumes from its last checkpoint in --work (safetensors, written atomically) and gives the same batches for
the same --seed wherever it was interrupted: every batch is drawn from a generator seeded by (seed, step).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from text_to_video import (
    FRAMES,
    Z_DIM,
    Checkpoint,
    TextToVideo,
    clock,
    draw_curves,
    load_latents,
    make_tokenizer,
    schedule,
    train_dit,
)
from tiny_wan_vae import decode, encode, forget_history
from torch import nn

from freeloc_fx.files import write_text
from freeloc_fx.generation.tiny_wan.scenes import Scene


def vae_config() -> dict:
    return {
        "base_dim": 16,
        "z_dim": Z_DIM,
        "dim_mult": [1, 2, 4],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 8,
        "latents_mean": [0.0] * Z_DIM,
        "latents_std": [1.0] * Z_DIM,
    }


def make_vae():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**vae_config())


def train_vae(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vae = make_vae()
    forget_history(vae)
    probe = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    with torch.no_grad():
        mean = encode(vae, probe).chunk(2, 1)[0]
        torch.testing.assert_close(mean, vae.encode(probe).latent_dist.mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decode(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-4, rtol=1e-4)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = Checkpoint(args.work / "vae.safetensors", vae, (optimizer,))
    step, curve = checkpoint.load()
    if step == 0 and args.vae_init is not None:
        tensors = load_file(args.vae_init)
        vae.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        forget_history(vae)
    started = time.monotonic()
    while step < args.vae_steps:
        scenes = [Scene.random(np.random.default_rng((args.seed, 1, step, b))) for b in range(6)]
        clips = [scene.render(17) for scene in scenes]  # four latent frames after the first: all the history there is
        x = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) * 2 - 1
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, args.vae_steps, args.vae_lr)
        mean, logvar = encode(vae, x).chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
        y = decode(vae, z)
        l1 = (y - x).abs().mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = l1 + F.mse_loss(y, x) + 3e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            psnr = -10 * math.log10(F.mse_loss(y.detach().clamp(-1, 1), x).item() / 4)
            curve.append([step, l1.item(), kl.item(), psnr])
            print(f"vae {step} l1 {l1:.4f} kl {kl:.3f} psnr {psnr:.2f} {time.monotonic() - started:.0f}s", flush=True)
        if step % 100 == 0 or step == args.vae_steps:
            checkpoint.save(step, curve)


@torch.no_grad()
def make_latents(args: argparse.Namespace) -> None:
    vae = make_vae()
    Checkpoint(args.work / "vae.safetensors", vae).load()
    vae.eval()
    shard = 100
    for start in range(0, args.clips, shard):
        path = args.work / f"latents-{start:06d}.safetensors"
        if path.exists():
            continue
        rows = []
        for first in range(start, start + shard, 5):
            scenes = [Scene.random(np.random.default_rng((args.seed, 2, i))) for i in range(first, first + 5)]
            x = torch.from_numpy(np.stack([s.render(FRAMES) for s in scenes])).permute(0, 4, 1, 2, 3) * 2 - 1
            rows.append(encode(vae, x).chunk(2, 1)[0])
        temporary = path.with_suffix(".tmp")
        save_file({"z": torch.cat(rows).contiguous()}, temporary)
        os.replace(temporary, path)
        print(f"latents {start + shard}/{args.clips}", flush=True)


def export(args: argparse.Namespace) -> None:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    z, mean, std, _ = load_latents(args)
    vae = make_vae()
    vae_steps, vae_curve = Checkpoint(args.work / "vae.safetensors", vae).load()
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    tokenizer = make_tokenizer()
    model = TextToVideo(args, len(tokenizer))
    ema = TextToVideo(args, len(tokenizer))
    dit_steps, dit_curve = Checkpoint(args.work / "dit.safetensors", model, (), ema).load()
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=ema.text_encoder, vae=vae, scheduler=scheduler, transformer=ema.transformer
    )
    pipe.to(torch.float16)
    pipe.save_pretrained(args.out, safe_serialization=True)
    recipe = {
        "command": "python bench/train_tiny_wan.py {vae,latents,short,dit,export}",
        "seed": args.seed,
        "torch": torch.__version__,
        "clips": len(z),
        "notes": args.notes,
        "frames": FRAMES,
        "vae": {"steps": vae_steps, "learning_rate": args.vae_lr,
                "curve": {"columns": ["step", "l1", "kl", "psnr"], "rows": vae_curve}},
        "dit": {"steps": dit_steps, "batch": args.batch, "learning_rate": args.dit_lr, "muon": args.muon,
                "curve": {"columns": ["step", "loss"], "rows": dit_curve}},
    }  # fmt: skip
    short = args.work / "short.safetensors"
    if short.exists():
        steps, curve = Checkpoint(short, model, (), ema).load()
        recipe["short"] = {
            "steps": steps,
            "frames": 3,
            "batch": args.short_batch,
            "curve": {"columns": ["step", "loss"], "rows": curve},
        }
    if args.earlier is not None:
        recipe["earlier"] = json.loads(args.earlier.read_text())
    Path(args.recipe).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(args.recipe), json.dumps(recipe) + "\n")
    draw_curves(recipe, Path(args.recipe).with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["vae", "latents", "short", "dit", "export"])
    parser.add_argument("--work", type=Path, default=Path("train-tiny-wan"), help="checkpoints and latents")
    parser.add_argument("--latents", type=Path, help="folder of the latents, where it is not --work")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "freeloc_fx/tiny_wan/model")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "results/train_tiny_wan.json")
    parser.add_argument("--notes", nargs="*", default=[], help="what a reader of the recipe must know besides")
    parser.add_argument("--earlier", type=Path, help="recipe of the run that --dit-init came from, kept in this one's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--vae-init", type=Path, help="safetensors with the weights of an earlier VAE to start from")
    parser.add_argument("--vae-steps", type=int, default=1100)
    parser.add_argument("--vae-lr", type=float, default=2e-3)
    parser.add_argument("--dit-init", type=Path, help="pipeline folder (an earlier export) whose weights to start from")
    parser.add_argument(
        "--reset-text-bias", action="store_true", help="with --dit-init: start the text encoder's positions afresh"
    )
    parser.add_argument("--short-steps", type=int, default=1100)
    parser.add_argument("--short-batch", type=int, default=56)
    parser.add_argument("--until", type=clock, help="HH:MM today: anneal to the end by then, instead of --*-steps")
    parser.add_argument("--ema-decay", type=float, default=0.998)
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dit-steps", type=int, default=8200)
    parser.add_argument("--dit-lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="default: where the CPU has it")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.bf16 is None:
        args.bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    {"vae": train_vae, "latents": make_latents, "short": train_dit, "dit": train_dit, "export": export}[args.stage](
        args
    )


if __name__ == "__main__":
    main()
