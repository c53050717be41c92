"""Are the models' own short clips right? No correction for length can be better than they are.

    python bench/short_clips.py --seed 20261129 --clips 8          # both embedded models, and those in bench/training
    python bench/short_clips.py --seed 7 --folder train/tiny-wan-pipeline --sheet sheet.png

Clips of the trained length, of prompts that tell everything and of ones that leave things open, seeds counted from
--seed. Rows: the real clips, what each VAE makes of them, what each model makes of their prompts. Columns: how often a
thing is there twice or missing (share of the frames in which it is to be seen), pops per 100 frames, constancy,
composite. --sheet draws eight frames of each clip of the last model below those of the real one, SHEET-open beside it
those of open prompts. Writes results/short_clips.json and short_clips.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import prompt_of, real_clip, reconstruct
from common import lines, save, save_table
from text_to_video import FRAMES
from tiny_wan_vae import earlier

from freeloc_fx.evaluation.metrics.ground_truth import score
from freeloc_fx.evaluation.metrics.identity import identities
from freeloc_fx.evaluation.metrics.tracking import analyse
from freeloc_fx.files import write_bytes
from freeloc_fx.generation import tiny_joint, tiny_wan
from freeloc_fx.generation.loading import load_pipeline
from freeloc_fx.generation.pipelines import generate
from freeloc_fx.generation.tiny_wan.scenes import SIZE

SHOWN = 8
"""Frames of a clip on the sheet."""

KINDS = ("told", "open")
"""Of prompts: those that tell everything, and those that leave things open."""

Make = Callable[[int, bool], np.ndarray]
"""A clip of a seed, and of whether its prompt leaves things open."""


def measure(video: np.ndarray, prompt: str) -> dict[str, float]:
    """Figures of one clip."""
    found = identities(analyse(video, prompt))[0]
    counts = np.concatenate([thing.count[~np.isnan(thing.count)] for thing in found])
    whole = score(video, prompt)
    return {
        "twice": float((counts >= 2).mean()) if len(counts) else 0.0,
        "missing": float((counts == 0).mean()) if len(counts) else 0.0,
        "pops": whole.pops,
        "constancy": whole.constancy,
        "identity": whole.identity,
        "motion": whole.motion,
        "composite": whole.composite,
    }


def mean(clips: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each figure's mean over the clips in which it could be measured; NaN where it was in none."""
    known = {key: [c[key] for c in clips if not math.isnan(c[key])] for key in clips[0]}
    return {key: statistics.fmean(values) if values else math.nan for key, values in known.items()}


def sources(folders: dict[str, Path], steps: int, guidance: float) -> Iterator[tuple[str, Make]]:
    """What makes clips of a seed, by its name."""
    yield "real", lambda seed, leaves_open: real_clip(seed, FRAMES, leaves_open)
    for name, folder in folders.items():
        pipe = load_pipeline(str(folder))
        if (folder / "vae").exists():  # tiny-joint has tiny-wan's
            yield (
                f"{name}'s VAE alone",
                lambda seed, leaves_open, pipe=pipe: reconstruct(pipe, real_clip(seed, FRAMES, leaves_open)),
            )
        yield name, partial(sample, pipe, steps=steps, guidance=guidance)


def sample(pipe: Any, seed: int, leaves_open: bool, steps: int, guidance: float) -> np.ndarray:
    """A model's clip of a seed's prompt, float32 (frames, 64, 64, 3)."""
    prompt = prompt_of(seed, leaves_open)
    options: dict[str, Any] = {"frames": FRAMES, "height": SIZE, "width": SIZE}
    made: np.ndarray = generate(pipe, prompt, steps=steps, guidance=guidance, seed=seed, **options).frames
    return made


def sheet(path: Path, clips: list[np.ndarray], made: list[np.ndarray]) -> None:
    """Frames of each real clip and of the model's, twice as large, a row each."""
    import io

    from PIL import Image

    at = np.linspace(0, FRAMES - 1, SHOWN).round().astype(int)
    rows = [np.concatenate([*clip[at]], 1) for pair in zip(clips, made, strict=True) for clip in pair]
    pixels = (np.clip(np.concatenate(rows), 0, 1) * 255 + 0.5).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    write_bytes(path, stream.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--prompts", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="of one pipeline, in place of the two; no results are written")
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(given.seed, given.seed + given.clips)
    folders = {"tiny-wan": Path(tiny_wan.path()), "tiny-joint": Path(tiny_joint.path())}
    kept = {f"{name} in training": earlier(name) for name in folders}
    folders |= {name: folder for name, folder in kept.items() if folder not in folders.values()}
    if given.folder is not None:
        folders = {given.folder.name: given.folder}
    found: dict[str, dict[str, list[dict[str, float]]]] = {kind: {} for kind in given.prompts}
    for name, make in sources(folders, given.steps, given.guidance):
        for kind in given.prompts:
            leaves_open = kind == "open"
            made = [make(seed, leaves_open) for seed in seeds]
            clips = [measure(v, prompt_of(seed, leaves_open)) for v, seed in zip(made, seeds, strict=True)]
            found[kind][name] = clips
            print(kind, name, " ".join(f"{key} {value:.3f}" for key, value in mean(clips).items()), flush=True)
            if given.sheet is not None and name == list(folders)[-1]:
                path = given.sheet.with_stem(given.sheet.stem + "-open") if leaves_open else given.sheet
                sheet(path, [real_clip(seed, FRAMES, leaves_open) for seed in seeds], made)
    if given.folder is not None:
        return
    head = ("prompts", f"clips of {FRAMES} frames", "a thing twice", "missing", "pops per 100 frames", "constancy")
    table = []
    for kind, rows in found.items():
        for name, clips in rows.items():
            figures = mean(clips)
            shares = [f"{figures[key]:.0%}" for key in ("twice", "missing")]
            rest = [f"{figures[key]:.2f}" for key in ("pops", "constancy", "motion", "composite")]
            table.append([kind, name, *shares, *rest])
    save_table("short_clips", lines((*head, "motion", "composite"), table))
    options = {"seed": given.seed, "steps": given.steps, "guidance": given.guidance}
    save("short_clips", {**options, "clips": found})


if __name__ == "__main__":
    main()
