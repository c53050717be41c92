"""The README's tables of scores and costs, from the results that the other scripts wrote. No figure is typed by hand.

    python bench/readme.py              # rewrite them in place
    python bench/readme.py --check      # exit 1 if the README says anything else than bench/results

A table is found by the start of its head line and replaced up to the next blank line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

from freeloc_fx import Profile

README = Path(__file__).resolve().parent.parent / "README.md"
LENGTHS = {"2x": 161, "4x": 321, "10x": 801, "16x": 1281}
FEWEST = 3
"""Clips below which a mean says too little to print."""
USUAL = 5
"""Clips of a row; fewer stand in brackets."""

SHOWN = {
    "tiny-wan": (
        "direct", "vrpr", "tsa", "profile", "vrpr+temp", "window", "context-windows", "freenoise", "freelong",
        "freelong++", "group", "clip", "anchors", "ultravico", "ntk", "yarn", "riflex", "pi", "longdiff",
    ),
    "tiny-joint": (
        "direct", "vrpr", "tsa", "vrpr+tsa", "squeeze", "vrpr+squeeze", "profile", "tsa+squeeze", "window+squeeze",
        "vrpr+tsa+hold", "window", "freenoise", "context-windows", "freelong", "freelong++", "anchors", "group", "clip",
        "ultravico", "ntk", "yarn", "riflex", "pi", "longdiff",
    ),
}  # fmt: skip
"""Contestants of a model's table, in its order."""


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head_line, *body = ("|" + "|".join(f" {c} " if c else " " for c in cells) + "|" for cells in (head, *rows))
    return "\n".join([head_line, "|" + "---|" * len(head), *body])


def _results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def profile_words(model: str) -> str:
    """The strategies of a model's shipped profile: one, or the usual one and the multiples of the trained length at
    which it has another."""
    profile = Profile.load(model)
    if profile.lengths is None:
        return str(profile.layers)
    names = {round((n - 1) / (profile.trained_frames - 1)): str(item["layers"]) for n, item in profile.lengths.items()}
    usual = statistics.mode(names.values())
    return ", ".join([usual, *(f"{name} at {times}x" for times, name in names.items() if name != usual)])


def scores(model: str) -> str:
    """Composite by length; motion, loop of the video and seconds of one core at ten times the trained length."""
    summary = {(e["contestant"], e["frames"]): e for e in _results(f"tables-{model}/tables.json")["summary"]}

    def entry(name: str, length: str) -> dict[str, Any] | None:
        found = summary.get((name, LENGTHS[length]))
        return found if found is not None and found["clips"] >= FEWEST else None

    def composite(found: dict[str, Any] | None) -> str:
        if found is None:
            return ""
        mean, low, high = found["means"]["composite"]
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]" + ("" if found["clips"] >= USUAL else f" ({found['clips']})")

    def single(found: dict[str, Any] | None, column: str, digits: int) -> str:
        mean = None if found is None else found["means"][column][0]
        return "" if mean is None else f"{mean:.{digits}f}"

    rows = []
    for name in SHOWN[model]:
        ten = entry(name, "10x")
        cells = [single(ten, "motion", 2), single(ten, "recurrence", 2), single(ten, "seconds", 0)]
        label = f"**FreeLOC** (the profile: {profile_words(model)})" if name == "profile" else name
        rows.append([label, *(composite(entry(name, length)) for length in LENGTHS), *cells])
    return _lines([model, *LENGTHS, "motion at 10x", "loop (video) at 10x", "seconds at 10x"], rows)


def held_out() -> str:
    """Scores beside the profile's and the untouched short ones of the same clips, on which no setting was chosen."""
    rows = []
    for model in SHOWN:
        found = _results(f"held-out-{model}/tables.json")
        scores = {(r["contestant"], r["frames"], r["seed"]): r["scores"] for r in found["rows"]}

        def mean(name: str, frames: int, seeds: Sequence[int], column: str, scores: Any = scores) -> float:
            return statistics.mean(v for s in seeds if (v := scores[name, frames, s][column]) is not None)

        for length, frames in LENGTHS.items():
            known = {e["contestant"]: e for e in found["summary"] if e["frames"] == frames}
            for name in sorted(known, key=lambda name: (name != "profile", -known[name]["means"]["composite"][0])):
                seeds = [s for n, f, s in scores if (n, f) == (name, frames)]
                middle, low, high = known[name]["means"]["composite"]
                ahead = ["", "", ""] if name == "profile" else known[name]["differences"]["profile"]["composite"]
                shares = [
                    f"{mean(name, frames, seeds, c) / mean('direct', found['short'], seeds, c):.2f}"
                    for c in ("sharpness", "identity", "motion")
                ]
                rows.append([
                    model, length, "**FreeLOC** (the profile)" if name == "profile" else name, str(len(seeds)),
                    f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                    "" if name == "profile" else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*ahead), *shares,
                ])  # fmt: skip
    of_short = ["sharpness of short", "identity of short", "motion of short"]
    return _lines(["other clips", "length", "strategy", "clips", "composite", "less the profile's", *of_short], rows)


def generation() -> str:
    """A whole generation beside direct sampling of as many steps, by number of threads."""
    found = _results("generation.json")
    kinds = ("size", "steps", "guidance", "backend", "threads")
    medians = [r for r in found["medians"] if r["size"] == 64 and r["backend"] == "inductor"]
    growth = {(*(e[k] for k in kinds), e["strategy"]): f"{e['exponent']:.2f}" for e in found["exponents"]}
    rows = []
    for kind in sorted({tuple(r[k] for k in kinds) for r in medians}, key=lambda kind: -kind[-1]):
        of = {r["frames"]: r for r in medians if tuple(r[k] for k in kinds) == kind and r["strategy"] == "vrpr+tsa"}
        cells = [f"{of[n]['of_direct']:.2f}" if (n := LENGTHS[length]) in of else "" for length in ("4x", "10x", "16x")]
        mine, direct = (growth.get((*kind, name), "") for name in ("vrpr+tsa", "direct"))
        rows.append([str(kind[-1]), *cells, f"{mine} (direct {direct})" if mine else ""])
    return _lines(["threads", "4x", "10x", "16x", "time grows with frames to the power of"], rows)


def attention() -> str:
    """What long attention in tiles takes beside dense SDPA, and beside its share of the pairs."""
    found = {
        (r["tokens_a_frame"], r["extension"], r["strategy"]): r
        for r in _results("attention.json")["rows"]
        if r["lowering"] == "tiles" and r["extension"] in (4, 10, 16)
    }
    rows = []
    for grid, extension in dict.fromkeys((g, e) for g, e, _ in sorted(found)):
        of = {s: found[grid, extension, s] for s in ("vrpr", "tsa", "vrpr+tsa")}
        cells = [f"{of['vrpr']['relative_to_dense']:.2f}"]
        for strategy in ("tsa", "vrpr+tsa"):
            cells += [f"{of[strategy][k]:.2f}" for k in ("relative_to_dense", "relative_to_work")]
        rows.append([str(grid), f"{extension}x", *cells])
    of_work = ("tsa: of dense", "of its work", "vrpr+tsa: of dense", "of its work")
    return _lines(["tokens a frame", "length", "vrpr: of dense", *of_work], rows)


def arithmetic() -> str:
    """VRPR+TSA on paper: FLOPs beside dense attention, working memory."""
    found = {
        (r["model"], r["height"], r["width"], r["extension"], r["way"]): r
        for r in _results("arithmetic.json")["rows"]
        if r["strategy"] == "vrpr+tsa"
    }
    rows = []
    for case in (("wan-1.3b", 30, 52, 4), ("wan-14b", 45, 80, 10), ("hunyuan", 45, 80, 4)):
        model, height, width, extension = case
        ways = {w: found[(*case, w)] for w in ("flex", "tiles", "official, dense masks")}
        cells = [f"{r['flops_of_dense']:.2f}" for r in ways.values()]
        cells += [f"{r['working_memory_bytes'] / 1e9:.1f}" for r in ways.values()]
        rows.append([f"{model}, {16 * width}x{16 * height}, {extension}x", *cells])
    others = ["tiles", "official"]
    return _lines(["one layer of", "FLOPs of dense: flex", *others, "working GB: flex", *others], rows)


TABLES: dict[str, Callable[[], str]] = {
    "| tiny-wan | 2x |": lambda: scores("tiny-wan"),
    "| tiny-joint | 2x |": lambda: scores("tiny-joint"),
    "| other clips |": held_out,
    "| tokens a frame | length |": attention,
    "| threads | 4x |": generation,
    "| one layer of |": arithmetic,
}
"""Start of a table's head line -> what makes it."""


def renewed(text: str) -> str:
    """The README's text with its tables as the results have them.

    Raises:
        ValueError: a table is not there exactly once.
    """
    for head, make in TABLES.items():
        if (found := text.count("\n" + head)) != 1:
            raise ValueError(f"README: expected one table that begins with {head!r}, found {found}")
        start = text.index("\n" + head) + 1
        text = text[:start] + make() + text[text.index("\n\n", start) :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    args = parser.parse_args()
    before = README.read_text()
    after = renewed(before)
    if args.check and after != before:
        raise SystemExit("README.md: its tables are not those of bench/results; run python bench/readme.py")
    if not args.check:
        README.write_text(after)


if __name__ == "__main__":
    main()
