"""How much memory does one long attention take beside q, k and v? A curve over length, asserted below 2x.

    python bench/memory.py                                        # tiny-wan's grid and 256 tokens a frame, 1x to 16x
    python bench/memory.py --grids 1560 --extensions 1,2,4 --strategies vrpr+tsa
    python bench/memory.py --lowerings tiles,calls --dtypes float32,bfloat16 --heads 2

Peak of the bytes that torch's allocator had handed out at once, the output included, over the bytes of q, k and v; on
the second call, when cuts and masks are there. The first call's peak stands beside it, with the tables that all
layers and steps share from then on (numpy's memory added, which torch's allocator does not see): a few MB at most,
which shows where q, k and v are as small. Exits with 1 where a second call's peak is not below the limit. Writes
results/memory.json, memory.md and memory.png.
"""

from __future__ import annotations

import argparse
import itertools
import tracemalloc
from typing import Any

import torch
from attention import GRIDS
from common import RESULTS, mark_lengths, save, save_table

from freeloc_fx.attention import op
from freeloc_fx.attention.registry import Specs
from freeloc_fx.attention.tiles.lowering import engine
from freeloc_fx.evaluation.cost import make_spec, peak_bytes
from freeloc_fx.files import save_figure

LIMIT = 2.0


def measure(
    grid: int, extension: int, strategy: str, lowering: str, dtype: str = "float32", heads: int | None = None
) -> dict[str, Any]:
    height, width, usual, dim = GRIDS[grid]
    heads = heads or usual
    known = make_spec(strategy, extension, height, width, dim)
    shape = (1, known.grid.video, heads, dim)
    q, k, v = (torch.randn(shape).to(getattr(torch, dtype)).transpose(1, 2) for _ in range(3))
    specs = Specs()
    key = specs.add(known)

    def run() -> torch.Tensor:
        result: torch.Tensor = op.long_attention(q, k, v, key, lowering, None)
        return result

    own = 3 * q.nbytes
    engine(q.device, q.dtype)  # builds and loads the kernel: modules are no tables
    tables = 0

    def traced() -> torch.Tensor:
        nonlocal tables
        tracemalloc.start()  # here, not around the profiler, whose own records it would count
        try:
            result = run()
            tables = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return result

    with torch.no_grad():
        first = peak_bytes(traced) + tables  # as if both peaks came together
        second = peak_bytes(run)
    return {
        "tokens_a_frame": grid,
        "heads": heads,
        "head_dim": dim,
        "extension": extension,
        "tokens": known.grid.video,
        "strategy": strategy,
        "lowering": lowering,
        "dtype": dtype,
        "qkv_bytes": own,
        "first_call": first / own,
        "peak": second / own,
        "peak_without_output": second / own - 1 / 3,
    }


def report(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    lines = [
        "| tokens a frame | heads | length | strategy | lowering | dtype | q, k, v | peak | first call |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['tokens_a_frame']} | {r['heads']} | {r['extension']}x | {r['strategy']} | {r['lowering']} "
            f"| {r['dtype']} "
            f"| {r['qkv_bytes'] / 1e6:.0f} MB | {r['peak']:.2f}x | {r['first_call']:.2f}x |"
        )
    save_table("memory", "\n".join(lines))
    strategies, lowerings, dtypes, grids = (
        list(dict.fromkeys(r[fact] for r in rows)) for fact in ("strategy", "lowering", "dtype", "tokens_a_frame")
    )
    figure = Figure(figsize=(4.2 * len(lowerings) + 2.4, 4), layout="constrained")
    axes = figure.subplots(1, len(lowerings), squeeze=False, sharey=True)
    for axis, lowering in zip(axes.flat, lowerings, strict=True):
        for grid, strategy, dtype in itertools.product(grids, strategies, dtypes):
            key = (grid, strategy, lowering, dtype)
            line = [r for r in rows if (r["tokens_a_frame"], r["strategy"], r["lowering"], r["dtype"]) == key]
            style = f"C{strategies.index(strategy)}{'os^'[grids.index(grid)]}{['-', '--'][dtypes.index(dtype)]}"
            label = f"{strategy}, {grid} tokens, {dtype}"
            axis.plot([r["extension"] for r in line], [r["peak"] for r in line], style, ms=4, lw=1, label=label)
        axis.axhline(LIMIT, color="gray", ls=":", lw=1)
        axis.set(title=lowering, xscale="log", xlabel="times the trained length", ylim=(0, None))
        mark_lengths(axis, rows)
    axes[0, 0].set_ylabel("peak / bytes of q, k, v")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside right center", frameon=False)
    save_figure(figure, RESULTS / "memory.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", default="16,256", help="tokens a frame: " + ", ".join(map(str, GRIDS)))
    parser.add_argument("--extensions", default="1,2,4,8,16")
    parser.add_argument("--strategies", default="vrpr,tsa,vrpr+tsa")
    parser.add_argument("--lowerings", default="tiles")
    parser.add_argument("--dtypes", default="float32", help="float32, bfloat16")
    parser.add_argument("--heads", type=int, default=None, help="default: the grid's")
    args = parser.parse_args()
    rows = []
    axes = (args.grids, args.strategies, args.lowerings, args.dtypes, args.extensions)
    for grid, strategy, lowering, dtype, extension in itertools.product(*(axis.split(",") for axis in axes)):
        r = measure(int(grid), int(extension), strategy, lowering, dtype, args.heads)
        rows.append(r)
        about = f"{grid:>5} x{extension:<3} {strategy:10} {lowering:9} {dtype:9}"
        print(f"{about} {r['peak']:.2f} (first {r['first_call']:.2f})", flush=True)
        save("memory", {"limit": LIMIT, "rows": rows})
    report(rows)
    first = [r for r in rows if not r["first_call"] < LIMIT]
    print(f"{len(first)} of {len(rows)} first calls, tables included, are not below {LIMIT} times q, k and v")
    over = [r for r in rows if not r["peak"] < LIMIT]
    if over:
        raise SystemExit(f"{len(over)} peaks are not below {LIMIT} times q, k and v: see results/memory.md")


if __name__ == "__main__":
    main()
