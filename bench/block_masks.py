"""Which blocks does FlexAttention compute, and what does it cost to say so? Shares of full, partial and empty blocks.

    python bench/block_masks.py                                              # 832x480 and 1280x720, 2x, 4x, 10x
    python bench/block_masks.py --sizes 30x52 --extensions 4 --blocks 128,128x64

Counted from the masks themselves, for each block size (one number, or query x key); a strategy of several bands makes
several calls, and its blocks are those of all calls over one dense call's, so that shares can add up to more than 1.
"of dense" is the token pairs in computed blocks over all pairs, "waste" the same over the visible pairs. Build time
(this thread's, quickest of 3) and peak memory are of all masks of one layer, where their tables stay below
--build-limit MB. Writes results/block_masks.json, block_masks.md and block_masks.png.
"""

from __future__ import annotations

import argparse
import itertools
import math
from typing import Any

from common import RESULTS, save, save_table

from freeloc_fx.attention.flex.block_mask import Block
from freeloc_fx.evaluation.cost import count_blocks, make_spec, mask_cost
from freeloc_fx.files import save_figure


def parse_block(text: str) -> Block:
    sizes = [int(part) for part in text.split("x")]
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def measure(size: tuple[int, int], extension: int, strategy: str, block: Block, limit: float) -> dict[str, Any]:
    spec = make_spec(strategy, extension, *size)
    blocks = count_blocks(spec, block)
    kept = spec.kept_pairs()
    tall, wide = (block, block) if isinstance(block, int) else block
    # Two index tables of int32 for the rows of each version of each call: full and partial.
    tables = 8 * math.ceil(blocks.rows / tall) * math.ceil(spec.grid.video / wide)
    seconds, peak = mask_cost(spec, block) if tables <= limit else (None, None)
    return {
        "height": size[0],
        "width": size[1],
        "extension": extension,
        "tokens": spec.grid.video,
        "strategy": strategy,
        "block": f"{tall}x{wide}",
        "calls": blocks.calls,
        "full": blocks.full / blocks.dense,
        "partial": blocks.partial / blocks.dense,
        "empty": blocks.empty / blocks.dense,
        "computed_of_dense": blocks.area / spec.grid.video**2,
        "kept_pairs": kept,
        "waste": blocks.area / spec.grid.video**2 / kept,
        "table_bytes": tables,
        "build_seconds": seconds,
        "build_peak_bytes": peak,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| frame | length | strategy | block | calls | full | partial | empty | of dense | waste | build | peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        built = "" if r["build_seconds"] is None else f"{r['build_seconds']:.3f} s"
        peak = "" if r["build_peak_bytes"] is None else f"{r['build_peak_bytes'] / 1e6:.0f} MB"
        lines.append(
            f"| {r['height']}x{r['width']} | {r['extension']}x | {r['strategy']} | {r['block']} | {r['calls']} "
            f"| {r['full']:.3f} | {r['partial']:.3f} | {r['empty']:.3f} | {r['computed_of_dense']:.3f} "
            f"| {r['waste']:.3f} | {built} | {peak} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> None:
    """Shares of full and partial blocks by block size, a panel for each frame size and strategy."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r["height"], r["width"], r["strategy"]) for r in rows))
    figure = Figure(figsize=(3.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axis, panel in zip(axes.flat, panels, strict=True):
        of = [r for r in rows if (r["height"], r["width"], r["strategy"]) == panel]
        full, partial = ([r[key] for r in of] for key in ("full", "partial"))
        axis.bar(range(len(of)), full, color="C0", label="full")
        axis.bar(range(len(of)), partial, bottom=full, color="C1", label="partial")
        axis.plot(range(len(of)), [r["kept_pairs"] for r in of], "k_", ms=12, label="visible pairs")
        axis.set_xticks(range(len(of)), [f"{r['extension']}x, {r['block']}" for r in of], rotation=90, fontsize=7)
        axis.set_title(f"{panel[2]}, {panel[0]}x{panel[1]} tokens a frame", fontsize=9)
    axes[0, 0].set_ylabel("of a dense call's blocks")
    axes[0, -1].legend(fontsize=7, frameon=False)
    save_figure(figure, RESULTS / "block_masks.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="30x52,45x80", help="tokens of a frame, height x width")
    parser.add_argument("--extensions", default="2,4,10")
    parser.add_argument("--strategies", default="tsa,vrpr+tsa")
    parser.add_argument("--blocks", default="64,128x64,128,256")
    parser.add_argument("--build-limit", type=float, default=400, help="MB of index tables")
    args = parser.parse_args()
    sizes = [tuple(int(n) for n in text.split("x")) for text in args.sizes.split(",")]
    rows = []
    for size, extension, strategy, block in itertools.product(
        sizes, map(int, args.extensions.split(",")), args.strategies.split(","), args.blocks.split(",")
    ):
        rows.append(measure((size[0], size[1]), extension, strategy, parse_block(block), args.build_limit * 1e6))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        save("block_masks", {"rows": rows})
    save_table("block_masks", table(rows))
    plot(rows)


if __name__ == "__main__":
    main()
