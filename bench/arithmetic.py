"""What does one layer's long attention cost on paper? FLOPs, bytes and working memory, counted, nothing timed.

    python bench/arithmetic.py                                              # 832x480 and 1280x720, 2x, 4x, 10x
    python bench/arithmetic.py --models wan-1.3b --sizes 30x52 --extensions 4

For one sample, bfloat16 (2 bytes), S tokens (video V, text T), h heads of d channels, p channel pairs that turn with
the frame. A call that computes A token pairs (what is masked inside a computed block counts, since it is computed):

- FLOPs: 4 h d A, a multiplication and an addition in q k and in p v; softmax is left out on all sides.
- least bytes: q and the output of its rows once, k and v of its keys once: 2 h d (2 rows + 2 keys).
- streamed bytes: k and v again for every block of 128 query rows: 2 h d (2 rows) + 4 h d A / 128. The truth lies
  between, as the cache allows.
- a rotation of x tokens: reads and writes 4 h d x bytes and 6 h p x FLOPs.
- a merge of x rows by log-sum-exp: reads a part, reads and writes the running sum: h x (2 d + 8 d + 12) bytes.

dense: one call, A = S^2. Working memory: nothing beside q, k, v and the output.
flex: at most three calls for VRPR, with the blocks of their block masks (128), text among them. Rows count once for
  each version of the queries. Rotations: each version of q and k of a call, one read of q for all versions. A merge
  for each version. Working memory: of the largest call of a group of heads, as `working_parts` counts it; launches are
  calls, rotations and merges, where a compiler makes one kernel of each. Calls and launches are of all groups of heads.
flex, a call a band: how it was before: a call for each residue class of the query frames, all keys turned anew for
  each, text as three dense calls.
calls: the families, columns and chunks of its cuts. Working memory: `parts` of a group of heads, as the cuts
  promise. Rotations: each call's rows, and keys once a band that turns them (an upper bound: the keys that do not move
  are not written again). A merge for each call.
tiles: the C++ kernel for CPU. Pairs: all that a tile of 16 rows computes, ranges of keys under a stripe included. Bytes
  as one call; a tile turns its queries once for each key frame that stands elsewhere. Working memory: 64 MB at most
  (0.6 MB for each of a hundred threads), whatever the length.
official: five masked calls a layer (near, past and future of the middle tier, past and future of the far tier), with
  their own rotated q and k in complex128: 10 copies of 8 h d V bytes, written and read; one sparse call and no
  rotation but the far first frame's for a layer of tsa alone. "official" skips the blocks that a mask leaves empty,
  "official, dense masks" does not.

Writes results/arithmetic.json, arithmetic.md and arithmetic.png (of the last strategy).
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import RESULTS, mark_lengths, save, save_table

from freeloc_fx.attention.bands import spec_bands
from freeloc_fx.attention.calls.cuts import Cuts, make_cuts
from freeloc_fx.attention.flex.block_mask import block_states
from freeloc_fx.attention.flex.site import describe_site, working_parts
from freeloc_fx.attention.heads import heads_at_a_time
from freeloc_fx.attention.tiles.spans import ROWS, make_spans
from freeloc_fx.evaluation.cost import TRAINED, count_blocks, make_spec
from freeloc_fx.files import save_figure
from freeloc_fx.method.build import build
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry
from freeloc_fx.method.visibility import FULL, NONE, STRIPE

MODELS = {"wan-1.3b": (12, 128, 0), "wan-14b": (40, 128, 0), "hunyuan": (24, 128, 256)}
"""Heads, head_dim, joint text tokens."""
ITEM = 2


@dataclass
class Cost:
    flops: float = 0.0
    least: float = 0.0
    streamed: float = 0.0
    memory: float = 0.0
    calls: int = 0
    launches: int | None = None

    def call(self, heads: int, dim: int, rows: float, keys: float, pairs: float, count: int = 1) -> None:
        """`count` calls that together have so many rows, keys and computed pairs."""
        self.calls += count
        self.flops += 4.0 * heads * dim * pairs
        self.least += ITEM * heads * dim * (2 * rows + 2 * keys)
        self.streamed += ITEM * heads * dim * (2 * rows + 2 * pairs / 128)

    def rotate(self, heads: int, dim: int, pairs: int, tokens: float) -> None:
        self.flops += 6.0 * heads * pairs * tokens
        self.least += 2 * ITEM * heads * dim * tokens
        self.streamed += 2 * ITEM * heads * dim * tokens

    def merge(self, heads: int, dim: int, rows: float) -> None:
        moved = heads * rows * (ITEM * dim + 8 * dim + 12)
        self.least += moved
        self.streamed += moved


def _text(cost: Cost, spec: AttentionSpec, heads: int, dim: int) -> None:
    """Video rows against text, text rows against video and text, each merged."""
    video, text = spec.grid.video, spec.grid.text
    if text:
        cost.call(heads, dim, video, text, video * text)
        cost.call(heads, dim, text, video + text, text * (video + text), 2)
        cost.merge(heads, dim, video + 2 * text)


def dense(spec: AttentionSpec, heads: int, dim: int) -> Cost:
    cost, tokens = Cost(), spec.grid.sequence
    cost.call(heads, dim, tokens, tokens, float(tokens) ** 2)
    return cost


def flex(spec: AttentionSpec, heads: int, dim: int) -> Cost:
    cost, blocks = Cost(), count_blocks(spec)
    site = describe_site(spec, (1, heads, spec.grid.sequence, dim), torch.bfloat16)
    video, tokens, pairs = spec.grid.video, spec.grid.sequence, len(spec.rope.first)
    groups = site.form.groups
    (member,) = site.form.members
    cost.call(heads, dim, blocks.rows, blocks.calls * video, float(blocks.area), 0)
    if spec.grid.text:  # rows and columns of text, in one of the calls
        text = spec.grid.text
        cost.call(heads, dim, tokens, tokens, float(text) * (2 * video + text), 0)
    launches = 0
    for call in member.calls:
        launches += 1
        for versions in [call.versions] * (call.query is not None) + [1] * (call.key is not None):
            launches += 1
            cost.flops += 6.0 * heads * pairs * versions * tokens
            moved = ITEM * heads * dim * (1 + versions) * tokens
            cost.least += moved
            cost.streamed += moved
        if member.merges:
            launches += 1
            moved = heads * tokens * (call.versions * (ITEM * dim + 4) + 8 * dim + 8)
            cost.least += moved
            cost.streamed += moved
    cost.calls, cost.launches = len(member.calls) * len(groups), launches * len(groups)
    cost.memory = ITEM * dim * tokens * working_parts(site.form.members, torch.bfloat16) * max(groups)
    return cost


def flex_by_band(spec: AttentionSpec, heads: int, dim: int) -> Cost:
    """As `flex` was before: see above."""
    cost, bands = Cost(), spec_bands(spec)
    n, video, pairs = spec.grid.tokens, spec.grid.video, len(spec.rope.first)
    single = len(bands) == 1 and not spec.grid.text
    stripe = spec.strategy.visibility.stripe(spec.grid.height, spec.grid.width)
    peak, area, rows_of_all, rotations = 0.0, 0.0, 0, 0
    for band in bands:
        rows = len(band.levels) * n
        rows_of_all += rows
        for first in range(0, len(band.levels), 32):
            some, _ = block_states(band.levels[first : first + 32], stripe, n, n, (128, 128))
            area += float(some.sum()) * 128 * 128
        work = 0
        for turn, tokens in ((band.query_turn, rows), (band.key_turn, video)):
            if turn is not None:
                cost.rotate(heads, dim, pairs, tokens)
                work += ITEM * tokens
                rotations += 1
        if not single:
            cost.merge(heads, dim, rows)
            work += (ITEM + 4) * rows
        peak = max(peak, float(work))
    cost.call(heads, dim, rows_of_all, len(bands) * video, area, len(bands))
    group = heads if single else heads_at_a_time(heads, 10.0)
    cost.memory = group * dim * (peak + ITEM * video + (0 if single else 4 * video))
    _text(cost, spec, heads, dim)
    cost.launches = (cost.calls + rotations + (0 if single else len(bands))) * -(-heads // group)
    cost.calls *= -(-heads // group)
    return cost


def calls(spec: AttentionSpec, heads: int, dim: int) -> Cost:
    cost, cuts = Cost(), make_cuts(spec, heads, dim, ITEM)
    n, video, frames, pairs = spec.grid.tokens, spec.grid.video, spec.grid.frames, len(spec.rope.first)
    groups = -(-heads // cuts.group)
    if cuts.walk is not None:
        moves = len(cuts.walk.moves)
        cost.call(heads, dim, video, float(moves) * cuts.walk.copies * video, float(video) ** 2, moves * groups)
        cost.rotate(heads, dim, pairs, float(video) + _moved(cuts, n))
    for column in cuts.columns:
        keys = (column.frames.stop - column.frames.start) * n
        cost.call(heads, dim, video, keys, float(video) * keys, groups)
        cost.merge(heads, dim, video)
        if column.turn is not None:
            cost.rotate(heads, dim, pairs, video)
    for item in cuts.bands:
        kinds = [(family, n, n) for family in item.full]
        kinds += [(f, c.q1 - c.q0, c.k1 - c.k0) for f, c in itertools.product(item.stripe, cuts.chunks)]
        for family, tall, wide in kinds:
            rows, keys = family.count * family.rows * tall, family.count * family.keys * wide
            cost.call(heads, dim, rows, keys, float(family.count * family.rows * family.keys) * tall * wide, groups)
            cost.merge(heads, dim, rows)
        if item.band.query_turn is not None:
            cost.rotate(heads, dim, pairs, len(item.band.levels) * n)
        if item.band.key_turn is not None:
            cost.rotate(heads, dim, pairs, float(video))
    cost.memory = ITEM * dim * video * cuts.parts * cuts.group
    assert frames * n == video
    _text(cost, spec, heads, dim)
    return cost


def tiles(spec: AttentionSpec, heads: int, dim: int) -> Cost:
    cost, grid, spans = Cost(), spec.grid, make_spans(spec)
    level, video = spec.strategy.visibility.levels(grid.frames), float(grid.video)
    area = float((level == FULL).sum()) * grid.tokens**2 + 2 * video * grid.text + float(grid.text) ** 2
    if spans.bits is not None:
        # rows of a tile are computed for every key that one of them sees
        area += float((level == STRIPE).sum()) * ROWS * int((spans.bits != 0).sum())
    cost.call(heads, dim, grid.sequence, grid.sequence, area)
    turns = int(((spans.phase >= 0) & (spans.level != NONE)).sum())
    cost.flops += 6.0 * heads * len(spec.rope.first) * turns * grid.tokens  # in cache: no bytes
    cost.memory = 64e6
    return cost


def _moved(cuts: Cuts, n: int) -> float:
    """Key tokens that a walk turns, over all its moves."""
    assert cuts.walk is not None
    before: np.ndarray | None = None
    moved = 0
    for move in cuts.walk.moves:
        turn = move.key_turn
        moved += turn.size if before is None else int((before[: len(turn)] != turn).any(0).sum()) * len(turn)
        before = turn
    return float(moved * n)


def official(spec: AttentionSpec, heads: int, dim: int, skip_empty: bool) -> Cost:
    """Five masked calls with separable quantisation, whatever the visibility; see above."""
    cost, grid = Cost(), spec.grid
    pairs, positions = len(spec.rope.first), spec.strategy.positions
    if isinstance(positions, VRPR):
        found = build(
            "+".join(part for part in spec.strategy.name.split("+") if part in ("vrpr", "tsa")),
            Geometry(TRAINED, grid.frames, grid.height, grid.width),
            {"vrpr": VRPR(positions.w1, positions.w2, positions.g1, positions.g2, "separable")},
        )
        calls, known = 5, AttentionSpec(found, grid, spec.rope)
    else:
        calls, known = 1, spec
    area = float(count_blocks(known).area) if skip_empty else calls * float(grid.video) ** 2
    cost.call(heads, dim, calls * grid.video, calls * grid.video, area, calls)
    if calls > 1:
        copies = 10 * 8.0 * heads * dim * grid.video
        cost.flops += 10 * 6.0 * heads * pairs * grid.video
        cost.least += 2 * copies
        cost.streamed += 2 * copies
        cost.memory += copies + 4.0 * heads * dim * grid.video
        for _ in range(calls):
            cost.merge(heads, dim, grid.video)
    _text(cost, spec, heads, dim)
    return cost


def measure(model: str, size: tuple[int, int], extension: int, strategy: str) -> list[dict[str, Any]]:
    heads, dim, text = MODELS[model]
    spec = make_spec(strategy, extension, *size, dim=dim, text=text)
    base = dense(spec, heads, dim)
    ways = {"dense": base}
    if strategy != "direct":
        ways = {"flex": flex(spec, heads, dim), "flex, a call a band": flex_by_band(spec, heads, dim)}
        ways["calls"] = calls(spec, heads, dim)
        ways["tiles"] = tiles(spec, heads, dim)
        ways["official"] = official(spec, heads, dim, True)
        ways["official, dense masks"] = official(spec, heads, dim, False)
    own = 3.0 * ITEM * heads * dim * spec.grid.sequence
    return [
        {
            "model": model,
            "height": size[0],
            "width": size[1],
            "extension": extension,
            "tokens": spec.grid.sequence,
            "strategy": strategy,
            "way": way,
            "kept_pairs": spec.kept_pairs(),
            "calls": cost.calls,
            "launches": cost.launches,
            "flops": cost.flops,
            "flops_of_dense": cost.flops / base.flops,
            "least_bytes": cost.least,
            "streamed_bytes": cost.streamed,
            "streamed_of_dense": cost.streamed / base.streamed,
            "working_memory_bytes": cost.memory,
            "working_memory_of_qkv": cost.memory / own,
        }
        for way, cost in ways.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | frame | length | strategy | way | calls | launches | PFLOP | of dense | GB least | GB streamed "
        "| GB working |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']} | {r['height']}x{r['width']} | {r['extension']}x | {r['strategy']} | {r['way']} "
            f"| {r['calls']} | {r['launches'] or ''} | {r['flops'] / 1e15:.4f} | {r['flops_of_dense']:.3f} "
            f"| {r['least_bytes'] / 1e9:.2f} | {r['streamed_bytes'] / 1e9:.1f} "
            f"| {r['working_memory_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> None:
    """FLOPs of dense and working memory over length, for the last strategy; a column for each model and frame size."""
    from matplotlib.figure import Figure

    strategy = rows[-1]["strategy"]
    rows = [r for r in rows if r["strategy"] == strategy and r["way"] != "dense"]
    cases = list(dict.fromkeys((r["model"], r["height"], r["width"]) for r in rows))
    figure = Figure(figsize=(2.5 * len(cases), 5.4), layout="constrained")
    axes = figure.subplots(2, len(cases), squeeze=False, sharex=True, sharey="row")
    for column, case in zip(axes.T, cases, strict=True):
        for way in dict.fromkeys(r["way"] for r in rows):
            of = [r for r in rows if (r["model"], r["height"], r["width"]) == case and r["way"] == way]
            x = [r["extension"] for r in of]
            column[0].loglog(x, [r["flops_of_dense"] for r in of], "o-", ms=3, label=way)
            column[1].loglog(x, [r["working_memory_bytes"] / 1e9 for r in of], "o-", ms=3)
        column[0].axhline(1, color="gray", ls=":", lw=1)
        column[0].set_title(f"{case[0]}, {case[1]}x{case[2]} tokens", fontsize=9)
        mark_lengths(column[1], rows)
    axes[0, 0].set_ylabel(f"FLOPs of dense, {strategy}")
    axes[1, 0].set_ylabel("working memory, GB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=5)
    save_figure(figure, RESULTS / "arithmetic.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sizes", default="30x52,45x80", help="tokens of a frame, height x width")
    parser.add_argument("--extensions", default="2,4,10")
    parser.add_argument("--strategies", default="direct,tsa,vrpr,vrpr+tsa")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model, size, extension, strategy in itertools.product(
        args.models.split(","), args.sizes.split(","), args.extensions.split(","), args.strategies.split(",")
    ):
        height, width = (int(n) for n in size.split("x"))
        rows += measure(model, (height, width), int(extension), strategy)
        print(model, size, f"{extension}x", strategy, flush=True)
        save("arithmetic", {"rows": rows})
    save_table("arithmetic", table(rows))
    plot(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
