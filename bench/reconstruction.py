"""How well do the VAEs reconstruct clips that no training has seen? PSNR over whole clips, by frames' places.

    python bench/reconstruction.py --seed 20261129

The VAEs are the embedded one and the one in bench/training, where there is one, as shipped: float16 weights, run in
float32 by diffusers' own encode and decode. The clips are of the trainings' kind, of a seed of their own. Writes
results/reconstruction.json and reconstruction.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from common import lines, save, save_table
from diffusers import AutoencoderKLWan
from tiny_wan_vae import earlier
from training_loop import Clips, to_pixels

from freeloc_fx.generation import tiny_wan

KEY = 77
"""Of these clips' generators; no training has it."""
PLACES = 4
"""Frames of a latent frame, but the first."""


@torch.no_grad()
def measure(folder: Path, seed: int, clips: int, frames: int) -> dict[str, Any]:
    """PSNR in dB of each clip over all its frames, and the mean of the first frame's and of the frames at each place
    in a latent frame."""
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32).eval()
    whole, places = [], []
    for index in range(clips):
        x = to_pixels(Clips(seed, KEY, 1, frames)[index][0], torch.device("cpu"))
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        squared = ((y - x).square().mean((1, 3, 4)) / 4)[0]
        whole.append(_decibels(squared.mean()))
        places.append([_decibels(squared[0]), *(_decibels(squared[1 + p :: PLACES].mean()) for p in range(PLACES))])
    return {
        "parameters": sum(p.numel() for p in vae.parameters()),
        "channels": vae.config.z_dim,
        "clips": whole,
        "mean": statistics.mean(whole),
        "places": [statistics.mean(column) for column in zip(*places, strict=True)],
    }


def _decibels(squared: torch.Tensor) -> float:
    return -10 * math.log10(float(squared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--frames", type=int, default=81)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folders = {"embedded": Path(tiny_wan.path()), "in training": earlier("tiny-wan")}
    if folders["in training"] == folders["embedded"]:
        del folders["in training"]
    found = {name: measure(folder / "vae", given.seed, given.clips, given.frames) for name, folder in folders.items()}
    head = ("VAE", "parameters, M", "channels of latents", "PSNR, dB", "worst clip", "first frame")
    head += tuple(f"frame {place + 1} of 4" for place in range(PLACES))
    table = [
        [name, f"{v['parameters'] / 1e6:.1f}", str(v["channels"]), f"{v['mean']:.1f}", f"{min(v['clips']):.1f}",
         *(f"{place:.1f}" for place in v["places"])]
        for name, v in found.items()
    ]  # fmt: skip
    save_table("reconstruction", lines(head, table))
    save("reconstruction", {"seed": given.seed, "frames": given.frames, "vaes": found})


if __name__ == "__main__":
    main()
