"""How long does one denoising step take, attention and everything else? Wan's transformer, direct beside strategies.

    python bench/denoising_step.py                                           # tiny-wan, 4x, 10x, 16x
    python bench/denoising_step.py --heads 12 --dim 128 --layers 2 --size 16x16 --extensions 4

A forward pass of a WanTransformer3DModel with random weights: the contestants run in turn, `--runs` times, median. What
was measured is kept in a journal (--work), so a run that was killed goes on where it stopped. Writes
results/denoising_step.json, denoising_step.md and denoising_step.png. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from attention import frames_of
from common import RESULTS, mark_lengths, save, save_table

from freeloc_fx import Profile, transform
from freeloc_fx.files import Journal, save_figure

TEXT, TRAINED = 32, 21


def make_model(layers: int, heads: int, dim: int, frames: int) -> Any:
    import diffusers

    torch.manual_seed(0)
    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": dim,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 64,
        "freq_dim": 64,
        "ffn_dim": 4 * heads * dim,
        "num_layers": layers,
        "rope_max_seq_len": max(64, frames),
    }
    cls: Any = diffusers.WanTransformer3DModel
    return cls(**config).eval().requires_grad_(False)


def make_inputs(frames: int, height: int, width: int) -> dict[str, Any]:
    """Forward arguments for `height` x `width` tokens a frame."""
    return {
        "hidden_states": torch.randn(1, 16, frames, 2 * height, 2 * width),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, TEXT, 64),
        "return_dict": False,
    }


def measure(args: argparse.Namespace, extension: int) -> list[dict[str, Any]]:
    height, width = (int(n) for n in args.size.split("x"))
    frames = frames_of(extension, TRAINED)
    model, inputs = make_model(args.layers, args.heads, args.dim, frames), make_inputs(frames, height, width)
    contestants: dict[str, Any] = {"direct": model}
    for name in args.strategies.split(","):
        contestants[name] = transform(model, Profile(trained_frames=TRAINED, layers=name), backend=args.backend)
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.no_grad():
        for name, call in contestants.items():
            started = time.perf_counter()
            call(**inputs)
            first[name] = time.perf_counter() - started
        for _ in range(args.runs):
            for name, call in contestants.items():
                started = time.perf_counter()
                call(**inputs)
                times[name].append(time.perf_counter() - started)
    direct = statistics.median(times["direct"])
    return [
        {
            "extension": extension,
            "tokens": frames * height * width,
            "strategy": name,
            "first_seconds": first[name],
            "seconds": statistics.median(seconds),
            "of_direct": statistics.median(seconds) / direct,
        }
        for name, seconds in times.items()
    ]


def plot(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name in dict.fromkeys(r["strategy"] for r in rows):
        of = [r for r in rows if r["strategy"] == name]
        axis.loglog([r["extension"] for r in of], [r["seconds"] for r in of], "o-", label=name)
    axis.set(xlabel="times the trained length", ylabel="seconds of a denoising step")
    mark_lengths(axis, rows)
    axis.legend(fontsize=7, frameon=False)
    save_figure(figure, RESULTS / "denoising_step.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--size", default="4x4", help="tokens of a frame, height x width")
    parser.add_argument("--extensions", default="4,10,16")
    parser.add_argument("--strategies", default="vrpr,tsa,vrpr+tsa")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("bench-denoising-step"), help="journal")
    args = parser.parse_args()
    journal = Journal(args.work / "denoising_step.jsonl")
    settings = {n: getattr(args, n) for n in ("layers", "heads", "dim", "size", "strategies", "backend", "runs")}
    settings["threads"] = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    for extension in map(int, args.extensions.split(",")):
        entry = next((e for e in journal.rows if e["settings"] == settings and e["extension"] == extension), None)
        if entry is None:
            entry = {"settings": settings, "extension": extension, "rows": measure(args, extension)}
            journal.add(entry)
        rows += entry["rows"]
        for r in entry["rows"]:
            print(f"x{r['extension']:<3} {r['strategy']:10} {r['seconds']:9.3f} s  {r['of_direct']:.3f} of direct")
        save("denoising_step", {"settings": settings, "rows": rows})
    lines = ["| length | tokens | strategy | seconds | of direct | first call |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r['extension']}x | {r['tokens']} | {r['strategy']} | {r['seconds']:.3f} | {r['of_direct']:.3f} "
            f"| {r['first_seconds']:.2f} |"
        )
    save_table("denoising_step", "\n".join(lines))
    plot(rows)


if __name__ == "__main__":
    main()
