"""One command for a CUDA machine: is FlexAttention right there, and how quick is it? Nobody has run it on a GPU yet.

    python bench/cuda.py --minutes 6 --out results-of-this-machine     # torch >= 2.11, diffusers and this checkout
    python bench/cuda.py --device cpu --tiny --minutes 3 --out DIR     # a trial of the script; its figures say nothing

In order of worth, each measurement written to DIR/cuda.json and DIR/cuda.md when it is made, none begun after
--minutes:

(a) FlexAttention and calls against the reference: VRPR, TSA and both, small grids;
(b) attention alone, bfloat16, 12 heads of 128, 1560 tokens a frame, 21, 41, 81 and 201 latent frames: torch's best
    dense SDPA, TSA, VRPR, VRPR+TSA: milliseconds, share of the dense time, peak memory;
(c) a denoising step of Wan 2.1 1.3B with random weights, 832x480, 321 and 801 frames: direct (Inductor, dense) beside
    the shipped profile, first call and steady, peak memory;
(d) tiny-wan from prompt to frames;
(e) every lowering against the reference, all strategies, bfloat16 and float32, small grids: a hundred compilations.

Every figure stands beside the name of the device. The held-to limits: VRPR+TSA at 81 latent frames at most 1.25 of
(visible share x dense SDPA), VRPR at most 1.3 of dense, a 4x step at most 0.55 of direct, a 10x step at most 0.3.
"""

from __future__ import annotations

if __name__ != "__main__":
    # NVIDIA has a package of this name, which torch tries to import, also from this folder.
    raise ImportError("bench/cuda.py is a script, not a module")

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

# Torch is to find NVIDIA's package, not this file; what lies beside this file is found after that.
HERE = Path(__file__).resolve().parent
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))
import torch  # noqa: E402

sys.path.append(str(HERE))
from common import environment  # noqa: E402
from gpu_checks import agreement, attention, device_name, end_to_end, every_agreement, model_step  # noqa: E402

from freeloc_fx.files import write_text  # noqa: E402

PARTS = {"a": agreement, "b": attention, "c": model_step, "d": end_to_end, "e": every_agreement}


def shown(row: dict[str, Any]) -> str:
    """A row's figures in one line, after the device's name."""
    skip = ("device", "part", "about", "seconds taken")
    figures = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in skip]
    return f"[{row['device']}] {row['part']}: {row['about']}: {', '.join(figures)}"


def save(folder: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write all that was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "cuda.json", json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")
    write_text(folder / "cuda.md", "\n".join(["# " + about["command"], "", *(f"- {shown(r)}" for r in rows)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="no measurement is begun later than this")
    parser.add_argument("--out", type=Path, required=True, help="folder for cuda.json and cuda.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as small as can be, to try the script")
    parser.add_argument("--parts", default="abcde", help="which of a, b, c, d and e")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; --device cpu --tiny tries the script")
    if device.type == "cpu" and not args.tiny:
        parser.error("--device cpu goes with --tiny: figures of a CPU say nothing about a GPU")
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"--parts: expected some of {''.join(PARTS)}, found {sorted(unknown)}")
    name, about = device_name(device), environment()
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for part in args.parts:
        for what, measure in PARTS[part](device, args.tiny):
            if time.monotonic() - started > 60 * args.minutes:
                print(f"[{name}] {args.minutes} minutes are over, before {part}: {what}", flush=True)
                return
            begun = time.monotonic()
            try:
                row = measure()
            except Exception as error:  # the rest is worth having
                row = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
            rows.append({"device": name, "part": part, "about": what, **row, "seconds taken": time.monotonic() - begun})
            print(shown(rows[-1]), flush=True)
            save(args.out, about, rows)


if __name__ == "__main__":
    main()
