"""How close does long attention come to its arithmetic? Dense SDPA beside each strategy and lowering, as ratios.

    python bench/attention.py --all --add              # everything in README of this processor, an hour or so
    python bench/attention.py                          # tiny-wan's grid and a 256-token grid, 4x, 10x, 16x
    python bench/attention.py --grids 128 --extensions 4 --dims 64,128 --dtypes float32,bfloat16 --add
    python bench/attention.py --grids 1560 --extensions 4 --runs 5 --add
    python bench/attention.py --grids 1560 --extensions 10,16 --trained 5 --add    # as if trained on 17 frames
    python bench/attention.py --grids 16 --extensions 1,2,4,8,10,16 --lowerings tiles,calls,flex,reference --add

For every grid and length the contestants run in turn, `--runs` times over; a figure is the median time relative to
dense SDPA's median in the same turn-taking, and the same divided by the share of pairs that the strategy keeps. With
one thread the time is the thread's own, so that others on the machine count less; `--note` says that there were any.
A row belongs to the processor that made it: `--add` keeps those of others. Dense
attention at 10 times 21 latent frames of 1560 tokens takes minutes a call: `--trained 5` asks the same of a model
trained on 5. Writes results/attention.json, attention.md and attention.png. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, environment, mark_lengths, processor, save

from freeloc_fx.attention import op
from freeloc_fx.evaluation.cost import wan_rope
from freeloc_fx.files import save_figure, write_text
from freeloc_fx.method.build import build
from freeloc_fx.method.grid import TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry

GRIDS = {16: (4, 4, 5, 32), 128: (8, 16, 1, 64), 256: (16, 16, 1, 64), 1560: (30, 52, 1, 64)}
"""Tokens a frame -> height, width, heads, head_dim. 16 is tiny-wan; 1560 is 832x480, with few heads for its memory."""
LIMITS = {
    16: {"vrpr": 1.6, "tsa": 2.0, "vrpr+tsa": 2.0},
    128: {"vrpr": 1.15, "tsa": 1.35, "vrpr+tsa": 1.35},
    256: {"vrpr": 1.15, "tsa": 1.25, "vrpr+tsa": 1.35},
    1560: {"vrpr": 1.15, "tsa": 1.25, "vrpr+tsa": 1.35},
}
"""What we hold ourselves to: time relative to dense, divided by the share of pairs kept."""
LIMIT_AMX = 1.6
"""At least this is allowed to bfloat16 with AMX, whose dense attention hardly waits for its products."""
ALL = (
    "--grids 16,256 --extensions 4,10,16",
    "--grids 128 --extensions 4 --dims 64,128",
    "--grids 1560 --extensions 4 --runs 3",
    "--grids 1560 --extensions 10,16 --trained 5 --runs 3",
)
"""What `--all` asks, in both dtypes: the rows of the tables in README and bench/README."""


def frames_of(extension: int, trained: int) -> int:
    """Latent frames of a video `extension` times as long as one of `trained` latent frames."""
    return extension * (trained - 1) + 1


def measure(
    grid: int,
    extension: int,
    trained: int,
    strategies: list[str],
    lowerings: list[str],
    runs: int,
    dtype: str,
    dim: int | None,
) -> list[dict[str, Any]]:
    height, width, heads, usual = GRIDS[grid]
    dim = dim or usual
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    least = LIMIT_AMX if dtype == "bfloat16" and processor().endswith("(AMX)") else 0.0
    limits = {name: max(limit, least) for name, limit in LIMITS[grid].items()}
    frames = frames_of(extension, trained)
    token_grid = TokenGrid(frames, height, width)
    generator = torch.Generator().manual_seed(0)
    shape, kind = (1, token_grid.video, heads, dim), getattr(torch, dtype)
    q, k, v = (torch.randn(shape, generator=generator).to(kind).transpose(1, 2) for _ in range(3))

    def contestant(name: str, lowering: str) -> tuple[Callable[[], Any], float]:
        strategy = build(name, Geometry(trained, frames, height, width))
        spec = AttentionSpec(strategy, token_grid, wan_rope(dim))
        return (lambda: op.run(lowering, q, k, v, spec)), spec.kept_pairs()

    table: dict[tuple[str, str], tuple[Callable[[], Any], float]] = {
        ("dense", "sdpa"): (lambda: F.scaled_dot_product_attention(q, k, v), 1.0)
    }
    table |= {(name, way): contestant(name, way) for name, way in itertools.product(strategies, lowerings)}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in table}
    with torch.no_grad():
        for key, (run, _) in table.items():  # cuts, masks and compiled kernels are made once
            started = time.perf_counter()
            run()
            print(f"{grid} x{extension} {'/'.join(key)}: first call {time.perf_counter() - started:.2f} s", flush=True)
        for _ in range(runs):
            for key, (run, _) in table.items():
                started = clock()
                run()
                times[key].append(clock() - started)
    dense = statistics.median(times["dense", "sdpa"])
    rows = []
    for (name, way), (_, kept) in table.items():
        median = statistics.median(times[name, way])
        limit = limits.get(name) if way == "tiles" and extension >= 4 else None
        rows.append(
            {
                "tokens_a_frame": grid,
                "heads": heads,
                "head_dim": dim,
                "dtype": dtype,
                "trained": trained,
                "extension": extension,
                "latent_frames": frames,
                "strategy": name,
                "lowering": way,
                "seconds": median,
                "runs": runs,
                "kept_pairs": kept,
                "relative_to_dense": median / dense,
                "relative_to_work": median / dense / kept,
                "limit": limit,
            }
        )
        verdict = "" if limit is None else ("  met" if rows[-1]["relative_to_work"] <= limit else "  NOT met")
        print(
            f"{grid:5} x{extension:<3} {dtype:8} {dim:4} {name:10} {way:9} "
            f"{median:9.4f} s  {median / dense:6.3f} of dense, {median / dense / kept:5.2f} of its work"
            + (f" (at most {limit})" if limit else "")
            + verdict,
            flush=True,
        )
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    lines = [
        "| processor | dtype | head_dim | tokens a frame | trained latent frames | length | strategy | lowering "
        "| threads | seconds | of dense | pairs kept | time / work | limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['cpu']} | {r['dtype']} | {r['head_dim']} | {r['tokens_a_frame']} | {r['trained']} "
            f"| {r['extension']}x | {r['strategy']} | {r['lowering']} "
            f"| {r['threads']} | {r['seconds']:.4f} "
            f"| {r['relative_to_dense']:.3f} | {r['kept_pairs']:.3f} | {r['relative_to_work']:.2f} "
            f"| {r['limit'] if r['limit'] else ''} |"
        )
    lines.append("")
    # --add: each grid and processor has its own
    for command, cpu, date, note in dict.fromkeys((r["command"], r["cpu"], r["date"], r.get("note")) for r in rows):
        lines.append(f"Measured: `{command}`, {cpu}, {date}{f', {note}' if note else ''}.  ")
    write_text(RESULTS / "attention.md", "\n".join(lines) + "\n")
    rows = [r for r in rows if r["cpu"] == rows[0]["cpu"] and r["dtype"] == "float32"]  # one picture, one processor
    panels = sorted({(r["tokens_a_frame"], r["trained"]) for r in rows})
    if not panels:  # in bfloat16 only
        return
    strategies, ways = (list(dict.fromkeys(r[key] for r in rows)) for key in ("strategy", "lowering"))
    figure = Figure(figsize=(4 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        mine = [r for r in rows if (r["tokens_a_frame"], r["trained"]) == panel]
        for key in dict.fromkeys((r["strategy"], r["lowering"]) for r in mine):
            line = [r for r in mine if (r["strategy"], r["lowering"]) == key]
            x, y = [r["extension"] for r in line], [r["seconds"] for r in line]
            label = "/".join(key)
            if len(x) > 1:
                frames = [r["latent_frames"] for r in line]
                label += f", exponent {np.polyfit(np.log(frames), np.log(y), 1)[0]:.2f}"
            style = f"C{strategies.index(key[0])}{'o^sDv'[ways.index(key[1])]}-"
            axis.loglog(x, y, style, ms=4, lw=1, label=label)
        mark_lengths(axis, mine)
        axis.set(title=f"{panel[0]} tokens a frame, trained on {panel[1]}", xlabel="trained lengths", ylabel="seconds")
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)  # below: no line hidden
    save_figure(figure, RESULTS / "attention.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", default="16,256", help="tokens a frame: " + ", ".join(map(str, GRIDS)))
    parser.add_argument("--extensions", default="4,10,16")
    parser.add_argument("--trained", type=int, default=21, help="latent frames of the trained length")
    parser.add_argument("--strategies", default="vrpr,tsa,vrpr+tsa")
    parser.add_argument("--lowerings", default="tiles")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--dims", help="head_dim; default: the grid's own")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--note", help='beside the figures, such as "others were at work on the machine"')
    parser.add_argument("--all", action="store_true", help="all that README says of a processor, one thread")
    parser.add_argument("--add", action="store_true", help="keep the rows of other grids and lengths in the results")
    args = parser.parse_args()
    rows = json.loads((RESULTS / "attention.json").read_text())["rows"] if args.add else []
    about = {key: environment()[key] for key in ("cpu", "command", "date")} | ({"note": args.note} if args.note else {})
    asked = [args]
    if args.all:
        torch.set_num_threads(1)
        asked = [parser.parse_args([*line.split(), "--dtypes", "float32,bfloat16"]) for line in ALL]
    for each in asked:
        numbers = [map(int, x.split(",")) for x in (each.grids, each.extensions)]
        dims = map(int, each.dims.split(",")) if each.dims else [None]
        ways = each.strategies.split(","), each.lowerings.split(","), each.runs
        for grid, extension, dim, dtype in itertools.product(*numbers, dims, each.dtypes.split(",")):
            found = measure(grid, extension, each.trained, *ways, dtype, dim)
            measured = about | {"threads": torch.get_num_threads()}
            found = [{**row, **measured} for row in found]
            rows = sorted([r for r in rows if _kind(r) != _kind(found[0])] + found, key=_kind)
            save("attention", {"rows": rows})
    report(rows)


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows of one measurement have in common."""
    return tuple(row[key] for key in ("cpu", "dtype", "tokens_a_frame", "head_dim", "extension"))


if __name__ == "__main__":
    main()
