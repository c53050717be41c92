"""Digests of whole generations, to tell whether a change of the code changed a result by a single bit.

Run it before the change and after it, on the same machine with the same torch, and compare the two:

    python bench/bitwise.py -o before.json
    python bench/bitwise.py --against before.json

Each row is one generation of tiny-wan, prompt to frames: within the trained length (81 frames) and at four times it
(321), the rewritten graph as it is and compiled by Inductor, with the shipped profile and with single strategies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch

import freeloc_fx
from freeloc_fx.files import write_text
from freeloc_fx.generation.pipelines import load_pipeline

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
ROWS = [
    (frames, strategy, backend, attention)
    for frames in (81, 321)
    for strategy, backend, attention in [
        ("profile", "eager", "tiles"),
        ("profile", "inductor", "tiles"),
        ("profile", "eager", "calls"),
        ("vrpr", "eager", "tiles"),
        ("tsa", "eager", "tiles"),
        ("riflex+tsa+temp", "eager", "tiles"),
        ("freelong", "eager", "tiles"),
        ("anchors", "eager", "calls"),
    ]
]


def digest(frames: int, strategy: str, backend: str, attention: str, steps: int) -> str:
    """SHA-256 of the float32 frames of one generation from a fixed seed."""
    pipe = load_pipeline("tiny-wan")
    profile = freeloc_fx.Profile.load("tiny-wan")
    if strategy != "profile":
        profile = profile.with_layers(strategy)
    pipe.transformer = freeloc_fx.transform(pipe.transformer, profile, backend=backend, attention=attention)
    made = pipe(
        prompt=PROMPT,
        num_frames=frames,
        height=64,
        width=64,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    return hashlib.sha256(made.frames[0].tobytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of each generation")
    parser.add_argument("-o", "--output", type=Path, help="write the digests here")
    parser.add_argument("--against", type=Path, help="digests of the code before; exit 1 where one differs")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever else the machine does
    found = {}
    for row in ROWS:
        name = "{} frames, {}, {}, {}".format(*row)
        torch._dynamo.reset()
        found[name] = digest(*row, options.steps)
        print(found[name][:16], name, flush=True)
    if options.output:
        write_text(options.output, json.dumps(found, indent=2) + "\n")
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text(encoding="utf-8"))
    changed = [name for name in found if found[name] != before.get(name)]
    print("\n".join(f"differs: {name}" for name in changed) or f"all {len(found)} equal")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
