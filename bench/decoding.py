"""How much host memory does decoding a long clip take? Real sizes, a miniature VAE, from latents to the file.

    python bench/decoding.py                      # 480x832: 161, 641 and 1,281 frames streamed, 161 held; 1088x1920
    python bench/decoding.py --frames 81,161 --tiled ""
    python bench/decoding.py --frames "" --held "" --keep    # in tiles alone, beside the other rows that are there

Each run is a process of its own that decodes random latents and writes a video; its peak resident memory counts, less
that of a process that has done the same with 17 frames, which is the libraries' and the VAE's own. Streamed: chunks go
from the VAE to 8-bit to the encoder. Held: all frames are there as float32 first, as `Video.frames` has them. In tiles:
pictures of 1088x1920, larger than those that are decoded whole, each tile of which keeps what the next frame needs of
the last ones; several lengths tell what grows with the clip. Exits with 1 where a streamed clip takes more than 1 GB
beyond the VAE's own. Writes results/decoding.json and decoding.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import lines, results, save, save_table

from freeloc_fx.generation.decoding import in_chunks
from freeloc_fx.generation.streaming import streamed
from freeloc_fx.generation.video import write_video

SIZES = {"streamed": (480, 832), "held": (480, 832), "streamed, in tiles": (1088, 1920)}
LEAST = 17
"""Frames of the run that shows what the libraries and the VAE take themselves."""
LIMIT = 10**9
OF_OWN = ("streamed", "held")
"""Ways whose peak is compared with that of `LEAST` frames."""
HEAD = ("frames are", "size", "frames", "MB at most", "beyond the VAE's own", "MB of the frames as float32")


def miniature() -> Any:
    """An AutoencoderKLWan of few channels, which compresses time by 4 and pictures by 8."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    cls: Any = AutoencoderKLWan
    return cls(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=8, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip


def run(frames: int, way: str) -> dict[str, Any]:
    """Decode and write in this process; the most memory that was resident."""
    torch.set_num_threads(1)
    vae, started, (height, width) = miniature(), time.monotonic(), SIZES[way]
    if "tiles" in way:
        vae.enable_tiling()
    latents = 0.01 * torch.randn(1, 4, (frames - 1) // 4 + 1, height // 8, width // 8)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "clip.mp4"
        if way != "held":
            film_of = streamed(file, frames=frames, height=height, width=width)
            with film_of as film, in_chunks(vae, height, width, film.add):
                vae.decode(latents)
        else:
            with in_chunks(vae, height, width):
                video = vae.decode(latents).sample[0].permute(1, 2, 3, 0)
            write_video(file, (video * 0.5 + 0.5).numpy())
        size = file.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"frames": frames, "way": way, "peak": peak, "seconds": time.monotonic() - started, "file": size}


def alone(frames: int, way: str) -> dict[str, Any]:
    """`run` in a process of its own."""
    command = [sys.executable, __file__, "--one", str(frames), way]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="161,641,1281", help="4n+1 each")
    parser.add_argument("--held", default="161", help="4n+1 each; empty for none")
    parser.add_argument("--tiled", default="17,33,65", help="4n+1 each; empty for none")
    parser.add_argument("--keep", action="store_true", help="keep earlier results of what is not run now")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(int(args.one[0]), args.one[1])))
        return
    asked = [("streamed", args.frames), ("held", args.held), ("streamed, in tiles", args.tiled)]
    own = alone(LEAST, "streamed")["peak"] if args.frames or args.held else None
    rows = []
    for way, lengths in asked:
        if not lengths:
            rows += [row for row in results("decoding.json")["rows"] if row["way"] == way] if args.keep else []
            continue
        rows += [alone(int(frames), way) | {"own": own if way in OF_OWN else None} for frames in lengths.split(",")]
    table = []
    for row in rows:
        height, width = SIZES[row["way"]]
        row["beyond"] = None if row["own"] is None else row["peak"] - row["own"]
        row["size"], row["floats"] = f"{height}x{width}", row["frames"] * height * width * 3 * 4
        beyond = "" if row["beyond"] is None else f"{row['beyond'] / 1e6:.0f}"
        sizes = f"{row['peak'] / 1e6:.0f}", beyond, f"{row['floats'] / 1e6:.0f}"
        table.append([row["way"], row["size"], str(row["frames"]), *sizes])
    save_table("decoding", lines(HEAD, table))
    save("decoding", {"rows": rows})
    if any(row["beyond"] > LIMIT for row in rows if row["way"] == "streamed"):
        raise SystemExit(f"a streamed clip took more than {LIMIT / 1e9:.0f} GB beyond the VAE's own")


if __name__ == "__main__":
    main()
