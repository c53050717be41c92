"""The tables of the README files, made of what the other scripts and the profiles say. No figure is typed by hand.

    python bench/readme.py              # rewrite them in place
    python bench/readme.py --check      # exit 1 if a file says anything else than bench/results

A table stands between two lines, "<!-- table NAME -->" and "<!-- end -->". `TABLES` says which are in which file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, lines, results
from readme_cards import decoding, fits, links, step_memory

from freeloc_fx import Profile
from freeloc_fx.files import write_text

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = {"2x": 161, "4x": 321, "10x": 801, "16x": 1281}
FEWEST = 3
"""Clips below which a mean says too little to print."""
USUAL = 5
"""Clips of a row; fewer stand in brackets."""

SHOWN = {
    "tiny-wan": (
        "direct", "direct+temp", "vrpr", "tsa", "vrpr+tsa", "profile", "vrpr+temp", "tsa+temp", "vrpr+tsa+temp",
        "split", "split-code", "random", "window", "window-no-sink", "context-windows", "freenoise", "freelong",
        "freelong++", "group", "clip", "anchors", "ultravico", "ntk", "yarn", "riflex", "pi", "longdiff",
    ),
    "tiny-joint": (
        "direct", "vrpr", "tsa", "vrpr+tsa", "split", "split-code", "squeeze", "vrpr+squeeze", "profile", "tsa+squeeze",
        "window+squeeze", "vrpr+tsa+hold", "window", "freenoise", "context-windows", "freelong", "freelong++",
        "anchors", "group", "clip", "ultravico", "ntk", "yarn", "riflex", "pi", "longdiff",
    ),
}  # fmt: skip
"""Contestants of a model's table, in its order."""


def profile_words(model: str) -> str:
    """The strategies of a model's shipped profile: one, or the usual one and the multiples of the trained length at
    which it has another."""
    profile = Profile.load(model)
    if profile.lengths is None:
        return str(profile.layers)
    names = {round((n - 1) / (profile.trained_frames - 1)): str(item["layers"]) for n, item in profile.lengths.items()}
    usual = statistics.mode(names.values())
    return ", ".join([usual, *(f"{name} at {times}x" for times, name in names.items() if name != usual)])


def scores(model: str, kind: str = "tables") -> str:
    """Composite by length; what stays, what goes on and seconds of one core at ten times the trained length.

    kind: "tables", of clips whose prompts tell everything, or "open".
    """
    summary = {(e["contestant"], e["frames"]): e for e in results(f"{kind}-{model}/tables.json")["summary"]}
    lengths = [n for n, frames in LENGTHS.items() if any(f == frames for _, f in summary)]

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

    digits = {"constancy": 2, "motion": 2, "recurrence": 2, "seconds": 0}
    known = [e["means"] for (_, frames), e in summary.items() if frames == LENGTHS["10x"]]
    columns = {c: n for c, n in digits.items() if any(means.get(c, [None])[0] is not None for means in known)}
    rows = []
    for name in SHOWN[model]:
        if not any(entry(name, length) for length in lengths):
            continue
        ten = entry(name, "10x")
        cells = [single(ten, column, digits) for column, digits in columns.items()]
        label = f"**FreeLOC** (the profile: {profile_words(model)})" if name == "profile" else name
        rows.append([label, *(composite(entry(name, length)) for length in lengths), *cells])
    words = {"recurrence": "loop (video)"}
    return lines([model, *lengths, *(f"{words.get(column, column)} at 10x" for column in columns)], rows)


def evidence() -> str:
    """tiny-wan at ten times the trained length, where prompts tell everything and where they leave things open; in
    brackets the clips of a row that has fewer than the others."""
    names = {
        "direct": "direct", "profile": "**FreeLOC**", "vrpr+temp": "VRPR+temp", "window": "sliding window",
        "window-no-sink": "without sink", "context-windows": "context windows",
    }  # fmt: skip
    told, leaves_open = (
        {
            e["contestant"]: e
            for e in results(f"{kind}-tiny-wan/tables.json")["summary"]
            if e["frames"] == LENGTHS["10x"] and e["clips"] >= FEWEST
        }
        for kind in ("tables", "open")
    )
    most = told["direct"]["clips"]
    rows = []
    for name, label in names.items():
        row = [label]
        for entry in (told.get(name), leaves_open.get(name)):
            if entry is None:
                row += [""] * 4
                continue
            means, fewer = entry["means"], f" ({entry['clips']})" if entry["clips"] < most else ""
            row.append("{:.2f} [{:.2f}, {:.2f}]".format(*means["composite"]) + fewer)
            row += [f"{means[c][0]:.2f}" for c in ("constancy", "motion", "repeated")]
        seconds = told[name]["means"]["seconds"][0] if name in told else None
        rows.append([*row, "" if seconds is None else f"{seconds:.0f}"])
    further = ["constancy", "motion", "repeated"]
    return lines(["801 frames", "told: composite", *further, "open: composite", *further, "seconds"], rows)


def cost() -> str:
    """One long attention beside dense attention, and a whole generation beside direct sampling, by length."""
    lengths = {"4x": 4, "10x": 10, "16x": 16}
    one = {
        (r["cpu"], r["dtype"], r["strategy"], r["extension"]): r["relative_to_dense"]
        for r in results("attention.json")["rows"]
        if r["lowering"] == "tiles" and r["tokens_a_frame"] == 1560
    }
    whole = {
        r["frames"]: r["of_direct"]
        for r in results("generation.json")["medians"]
        if (r["size"], r["backend"], r["threads"], r["strategy"]) == (64, "inductor", 2, "vrpr+tsa")
    }
    rows = []
    for cpu, dtype in dict.fromkeys(key[:2] for key in sorted(one)):
        pairs = [[one.get((cpu, dtype, strategy, n)) for strategy in ("vrpr", "vrpr+tsa")] for n in lengths.values()]
        cells = ["" if None in pair else ", ".join(f"{value:.2f}" for value in pair) for pair in pairs]
        rows.append([f"one attention, VRPR and VRPR+TSA, of dense attention: {cpu}, {dtype}", *cells])
    cells = [f"{whole[LENGTHS[length]]:.2f}" for length in lengths]
    cpu = results("generation.json")["environment"]["cpu"]
    rows.append([f"a whole generation of tiny-wan, VRPR+TSA, of direct sampling: {cpu}, float32", *cells])
    return lines(["time", *lengths], rows)


def claims() -> str:
    """The verdict on each claim over all lengths that were measured, by model and kind of prompts."""
    columns = {
        f"{model}{', open' * (kind == 'open')}": f"{kind}-{model}" for model in SHOWN for kind in ("tables", "open")
    }
    verdicts = {
        name: {c["key"]: c for c in results(f"{folder}/tables.json")["claims"]} for name, folder in columns.items()
    }
    rows = []
    for key, c in verdicts["tiny-wan"].items():
        said = (verdicts[name].get(key, {}).get("verdict", "not measured") for name in columns)
        rows.append([c["claim"].rstrip("."), c["source"], *said])
    return lines(["claim, over all lengths", "source", *columns], rows)


def compare() -> str:
    """One prompt at ten times the trained length under several strategies, as `freeloc compare` wrote it."""
    columns = {
        "composite": 3, "presence": 2, "shape_accuracy": 2, "constancy": 2, "permanence": 2, "sharpness": 2,
        "motion": 2, "speed": 2, "repeated": 2,
    }  # fmt: skip
    rows = []
    for name, entry in results("compare_801.json")["strategies"].items():
        run = entry["runs"][0]
        sites = run["plan"]["sites"] if run["plan"] else []
        kept = statistics.mean(s["kept_pairs"] for s in sites) if sites else 1.0
        scores = [f"{entry['scores'][c]:.{digits}f}" for c, digits in columns.items()]
        rows.append([name, *scores, f"{kept:.0%}", f"{run['seconds']:.0f}"])
    words = {"presence": "found", "shape_accuracy": "shape"}
    return lines(["strategy", *(words.get(c, c) for c in columns), "pairs kept", "seconds"], rows)


def models(part: str) -> str:
    """What works with which class of diffusers, as `model_table.py` wrote it."""
    return (RESULTS / f"model_table_{part}.md").read_text().strip()


def hosts() -> str:
    """What came out in other people's code, as it was written down when it was tried."""
    rows = [[row["host"], row["models"], row["distance"]] for row in results("hosts.json")["rows"]]
    return lines(["host", "models", "distance from the reference at 2x"], rows)


def held_out() -> str:
    """Scores beside the profile's and the untouched short ones of the same clips, on which no setting was chosen."""
    rows = []
    for model in SHOWN:
        found = results(f"held-out-{model}/tables.json")
        scores = {(r["contestant"], r["frames"], r["seed"]): r["scores"] for r in found["rows"]}

        def mean(name: str, frames: int, seeds: Sequence[int], column: str, scores: Any = scores) -> float:
            return statistics.mean(v for s in seeds if (v := scores[name, frames, s][column]) is not None)

        for length, frames in LENGTHS.items():
            known = {e["contestant"]: e for e in found["summary"] if e["frames"] == frames}
            known.pop("real", None)  # true clips, which nothing was made of
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
    return lines(["other clips", "length", "strategy", "clips", "composite", "less the profile's", *of_short], rows)


def generation() -> str:
    """A whole generation beside direct sampling of as many steps, by number of threads."""
    found = results("generation.json")
    kinds = ("size", "steps", "guidance", "backend", "threads")
    medians = [r for r in found["medians"] if r["size"] == 64 and r["backend"] == "inductor"]
    growth = {(*(e[k] for k in kinds), e["strategy"]): f"{e['exponent']:.2f}" for e in found["exponents"]}
    rows = []
    for kind in sorted({tuple(r[k] for k in kinds) for r in medians}, key=lambda kind: -kind[-1]):
        of = {r["frames"]: r for r in medians if tuple(r[k] for k in kinds) == kind and r["strategy"] == "vrpr+tsa"}
        cells = [f"{of[n]['of_direct']:.2f}" if (n := LENGTHS[length]) in of else "" for length in ("4x", "10x", "16x")]
        mine, direct = (growth.get((*kind, name), "") for name in ("vrpr+tsa", "direct"))
        rows.append([str(kind[-1]), *cells, f"{mine} (direct {direct})" if mine else ""])
    return lines(["threads", "4x", "10x", "16x", "time grows with frames to the power of"], rows)


def attention() -> str:
    """What long attention in tiles takes beside dense SDPA, and beside its share of the pairs."""
    kind = ("cpu", "dtype", "head_dim", "tokens_a_frame", "extension")
    found = {
        (*(r[key] for key in kind), r["strategy"]): r
        for r in results("attention.json")["rows"]
        if r["lowering"] == "tiles" and r["extension"] in (4, 10, 16)
    }
    rows = []
    for about in dict.fromkeys(key[:-1] for key in sorted(found)):
        of = {s: found[(*about, s)] for s in ("vrpr", "tsa", "vrpr+tsa")}
        cells = [f"{of['vrpr']['relative_to_dense']:.2f}"]
        for strategy in ("tsa", "vrpr+tsa"):
            cells += [f"{of[strategy][k]:.2f}" for k in ("relative_to_dense", "relative_to_work")]
        rows.append([*map(str, about[:-1]), f"{about[-1]}x", *cells])
    of_work = ("tsa: of dense", "of its work", "vrpr+tsa: of dense", "of its work")
    head = ["processor", "dtype", "head_dim", "tokens a frame", "length", "vrpr: of dense"]
    return lines([*head, *of_work], rows)


def arithmetic() -> str:
    """VRPR+TSA on paper: FLOPs beside dense attention, working memory."""
    found = {
        (r["model"], r["height"], r["width"], r["extension"], r["way"]): r
        for r in results("arithmetic.json")["rows"]
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
    return lines(["one layer of", "FLOPs of dense: flex", *others, "working GB: flex", *others], rows)


def cuda_report(name: str) -> str:
    """What an H100 would be given: the first table of a report."""
    return (RESULTS / f"{name}.md").read_text().split("\n\n")[1]


def shipped() -> str:
    """Every shipped profile: trained length, strategies, source."""
    rows = []
    for name in Profile.names():
        profile = Profile.load(name)
        layers = sorted(set(profile.layers.values())) if isinstance(profile.layers, Mapping) else [profile_words(name)]
        source = str((profile.provenance or {}).get("source", ""))
        rows.append([f"`{name}`", str(profile.trained_frames), " or ".join(map(str, layers)), source])
    return lines(["profile", "trained latent frames", "strategies", "source"], rows)


@dataclass(frozen=True)
class Table:
    """One table that is made from results.

    Args:
        file: where it stands, from the root of the checkout.
        name: of its markers.
        make: gives its Markdown.
    """

    file: str
    name: str
    make: Callable[[], str]

    @property
    def start(self) -> str:
        """The line before the table."""
        return f"<!-- table {self.name} -->\n"


END = "<!-- end -->"

TABLES = (
    Table("README.md", "evidence", evidence),
    Table("README.md", "cost", cost),
    Table("bench/README.md", "tiny-wan", partial(scores, "tiny-wan")),
    Table("bench/README.md", "open-tiny-wan", partial(scores, "tiny-wan", "open")),
    Table("bench/README.md", "tiny-joint", partial(scores, "tiny-joint")),
    Table("bench/README.md", "open-tiny-joint", partial(scores, "tiny-joint", "open")),
    Table("bench/README.md", "claims", claims),
    Table("bench/README.md", "held-out", held_out),
    Table("bench/README.md", "compare", compare),
    Table("bench/README.md", "attention", attention),
    Table("bench/README.md", "generation", generation),
    Table("bench/README.md", "cuda-offline", lambda: cuda_report("cuda_offline")),
    Table("bench/README.md", "cuda-interpreted", lambda: cuda_report("cuda_interpreted")),
    Table("bench/README.md", "arithmetic", arithmetic),
    Table("bench/README.md", "fits", fits),
    Table("bench/README.md", "links", links),
    Table("bench/README.md", "step-memory", step_memory),
    Table("bench/README.md", "decoding", decoding),
    Table("bench/README.md", "timeline", lambda: (RESULTS / "timeline.md").read_text().strip()),
    Table(
        "bench/README.md", "reconstruction", lambda: (RESULTS / "reconstruction.md").read_text().partition("\n\n")[0]
    ),
    Table("bench/README.md", "models", partial(models, "short")),
    Table("bench/README.md", "calls", partial(models, "calls")),
    Table("bench/README.md", "refused", partial(models, "refused")),
    Table("bench/README.md", "hosts", hosts),
    Table("bench/README.md", "samplers", lambda: (RESULTS / "samplers.md").read_text().partition("\n\n")[0]),
    Table(
        "bench/README.md",
        "samplers-joint",
        lambda: (RESULTS / "samplers_tiny_joint.md").read_text().partition("\n\n")[0],
    ),
    Table("bench/README.md", "short_clips", lambda: (RESULTS / "short_clips.md").read_text().partition("\n\n")[0]),
    Table("profiles/README.md", "shipped", shipped),
)
"""Every table, in the order in which the files have them."""

FILES = tuple(dict.fromkeys(table.file for table in TABLES))


def renewed(file: str, text: str) -> str:
    """A file's text with its tables as the results have them.

    Args:
        file: one of `FILES`.
        text: what it says now.

    Raises:
        ValueError: a table's markers are not there exactly once, or there are markers of a table that nothing makes.
    """
    tables = [table for table in TABLES if table.file == file]
    for table in tables:
        if (found := text.count(table.start)) != 1:
            raise ValueError(f"{file}: expected one line {table.start.strip()!r}, found {found}")
    for word, found in (("<!-- table ", text.count("<!-- table ")), (END, text.count(END))):
        if found != len(tables):
            raise ValueError(f"{file}: expected {len(tables)} lines with {word!r}, one for each table, found {found}")
    for table in tables:
        start = text.index(table.start) + len(table.start)
        text = text[:start] + "\n" + table.make() + "\n\n" + text[text.index(END, start) :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    args = parser.parse_args()
    for file in FILES:
        before = (ROOT / file).read_text()
        after = renewed(file, before)
        if args.check and after != before:
            raise SystemExit(f"{file}: its tables are not those of bench/results; run python bench/readme.py")
        if not args.check:
            write_text(ROOT / file, after)


if __name__ == "__main__":
    main()
