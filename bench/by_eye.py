"""Does the composite order videos as a viewer does? Pairs of videos, ordered by eye before any score is computed.

    python bench/by_eye.py make --dozen 3 --model tiny-wan    # videos of drawn strategies, and a blind contact sheet
                                                              # a pair, in --work
    # look at each sheet, write "A" or "B" for each pair into results/by_eye_choices.json
    python bench/by_eye.py score    # how often the scores agree: results/by_eye.json and .md

Which strategies a pair shows and which of the two is A are drawn from a fixed seed and written on no sheet. The file of
choices holds, beside them, what was seen: {"pair-00": {"better": "A", "seen": "..."}, ...}; "-" where no difference is
seen, which is left out of the counts. A dozen is one model's: what --work has no videos of keeps the scores that the
results hold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from clips import prompt_of
from common import RESULTS, save, save_table

from freeloc_fx.evaluation.metrics import score
from freeloc_fx.files import write_bytes

DOZENS = 5  # only one that was ordered after the scores were last mended can test them
DOZEN = 12
LONG = 4  # pairs of a dozen that have 801 frames; the others have 321
NAMES = ("direct", "profile", "vrpr+tsa", "window", "vrpr", "riflex", "freenoise", "context-windows")
FIRST_SEED = 900  # clips that no setting was chosen on
SHOWN = 48  # frames of a video on the sheet
COLUMNS, CELL = 12, 80
SCORES = ("composite", "composite_before")
"""Fields of `GroundTruthScore` whose order is compared: the composite, and that of before loops and freezes counted."""


def drawn() -> list[dict[str, Any]]:
    """The pairs: seed, frames, and the strategies of A and B. Half of them have direct sampling in one place."""
    rng = np.random.default_rng(21)
    pairs = []
    for n in range(DOZENS * DOZEN):
        others = [str(name) for name in rng.permutation(NAMES[1:])[:2]]
        names = ["direct", others[0]] if n % 2 == 0 else others
        a, b = (str(name) for name in rng.permutation(names))
        pairs.append(
            {
                "pair": f"pair-{n:02d}",
                "seed": FIRST_SEED + n,
                "frames": 801 if n % DOZEN < LONG else 321,
                "A": a,
                "B": b,
            }
        )
    return pairs


def make(work: Path, dozen: int, model: str, profile: str | None, steps: int) -> None:
    from contestants import contestants
    from studio import Job, Pipeline

    work.mkdir(parents=True, exist_ok=True)
    studio = Pipeline(model, profile)
    known, _ = contestants(studio.profile, studio.layers, text=False)
    for pair in drawn()[(dozen - 1) * DOZEN : dozen * DOZEN]:
        if (work / f"{pair['pair']}.png").exists():
            continue
        for side in "AB":
            path = work / f"{pair['pair']}-{side}.npy"
            if not path.exists():
                film = studio.film(Job(known[pair[side]][0], pair["frames"], pair["seed"]), steps, 3.0)
                np.save(path, (np.clip(film.frames, 0, 1) * 255 + 0.5).astype(np.uint8))
        sheet(work, pair)
        print(pair["pair"], "made", flush=True)


def sheet(work: Path, pair: dict[str, Any]) -> None:
    """The prompt, then 48 frames of A and 48 of B, evenly spaced, a row of twelve after the other."""
    import io

    from PIL import Image, ImageDraw

    rows = SHOWN // COLUMNS
    height = 20 + 2 * (rows * CELL + 24)
    page = Image.new("RGB", (COLUMNS * CELL, height), "white")
    pen = ImageDraw.Draw(page)
    pen.text((4, 4), f"{pair['pair']}, {pair['frames']} frames: {prompt_of(pair['seed'])}", fill="black")
    for side, top in (("A", 20), ("B", 20 + rows * CELL + 24)):
        video = np.load(work / f"{pair['pair']}-{side}.npy")
        pen.text((4, top + 4), side, fill="black")
        for place, frame in enumerate(np.linspace(0, len(video) - 1, SHOWN).round().astype(int)):
            cell = Image.fromarray(video[frame]).resize((CELL - 2, CELL - 2), Image.Resampling.BICUBIC)
            page.paste(cell, (place % COLUMNS * CELL, top + 22 + place // COLUMNS * CELL))
    stream = io.BytesIO()
    page.save(stream, "PNG")
    write_bytes(work / f"{pair['pair']}.png", stream.getvalue())


def choices() -> dict[str, Any]:
    path = RESULTS / "by_eye_choices.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def agreement(work: Path) -> dict[str, Any]:
    """Each pair with its scores, and for each score in how many pairs of each dozen it orders them as the eye did."""
    rows, seen = [], choices()
    path = RESULTS / "by_eye.json"
    before = {row["pair"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]} if path.exists() else {}
    for pair in drawn():
        if pair["pair"] not in seen:
            continue
        if not all((work / f"{pair['pair']}-{side}.npy").exists() for side in "AB") and pair["pair"] in before:
            print(f"{pair['pair']}: no videos in {work}, the scores are those of {path}")
            rows.append({**before[pair["pair"]], **seen[pair["pair"]]})
            continue
        prompt = prompt_of(pair["seed"])
        found = {s: score(np.load(work / f"{pair['pair']}-{s}.npy").astype(np.float32) / 255, prompt) for s in "AB"}
        row = {**pair, **seen[pair["pair"]]}
        for name in (*SCORES, "constancy", "permanence", "pops", "loop", "repeated", "freeze", "motion", "identity"):
            row[name] = [float(getattr(found[side], name)) for side in "AB"]
        rows.append(row)
    agrees = []
    for first in range(0, len(rows), DOZEN):
        part = [row for row in rows[first : first + DOZEN] if row["better"] in "AB"]
        counts = {n: sum(("A" if r[n][0] > r[n][1] else "B") == r["better"] for r in part) for n in SCORES}
        agrees.append({"pairs": len(part), **counts})
    return {"agrees": agrees, "rows": rows}


def table(found: dict[str, Any]) -> str:
    names = (*SCORES, "constancy", "permanence", "pops", "loop", "repeated", "freeze")
    head = ["pair", "frames", "A", "B", "better by eye", *names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found["rows"]:
        cells = [f"{row[name][0]:.2f}, {row[name][1]:.2f}" for name in names]
        known = [row["pair"], str(row["frames"]), row["A"], row["B"], row["better"]]
        lines.append("| " + " | ".join([*known, *cells]) + " |")
    lines.append("")
    for number, agrees in enumerate(found["agrees"], 1):
        words = ", ".join(f"{name} agrees in {agrees[name]}" for name in SCORES)
        lines.append(f"Dozen {number}: of {agrees['pairs']} pairs {words}.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "score"])
    parser.add_argument("--work", type=Path, default=Path("bench-by-eye"))
    parser.add_argument("--dozen", type=int, choices=range(1, DOZENS + 1), default=DOZENS, help="that is made")
    parser.add_argument("--model", default="tiny-wan", help="that makes it, a name or a folder")
    parser.add_argument("--profile", help="name or path; default the one that the package ships for the model")
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args(arguments)
    if args.what == "make":
        make(args.work, args.dozen, args.model, args.profile, args.steps)
        return
    if not choices():
        raise SystemExit(f"{RESULTS / 'by_eye_choices.json'}: expected the choices made by eye, found none")
    found = agreement(args.work)
    save("by_eye", found)
    save_table("by_eye", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
