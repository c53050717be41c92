"""A prompt that changes in the middle of a long clip, on a model whose truth is known: is the change made, and when?

    python bench/timeline.py --pairs 20           # goes on where a killed run stopped
    python bench/timeline.py --report             # no generation: what the journal holds
    python bench/timeline.py --sheet 3            # a contact sheet of pair 3 too

A pair is a prompt of `clips.prompt_of` and the same prompt with one thing changed: the speed, the background, the
colour or the kind of its first shape. Of every pair, with the same noise: the timeline, one prompt for all frames, and
context windows with a prompt a window. The change is read from the pixels in stretches of 24 frames, 8 apart, and is
met in the first stretch from the mark on that shows the second prompt. Writes results/timeline.json and timeline.md.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from clips import prompt_of
from common import RESULTS, environment

import freeloc_fx
from freeloc_fx.evaluation.metrics import score
from freeloc_fx.evaluation.metrics.tracking import LAG, analyse
from freeloc_fx.files import Journal, write_text
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation import timeline as texts
from freeloc_fx.generation.tiny_wan.scenes import BACKGROUNDS, COLOURS, SHAPES, SPEEDS, Scene, parse_prompt
from freeloc_fx.generation.video import contact_sheet
from freeloc_fx.generation.windows import context_windows
from freeloc_fx.method.timeline import TextSchedule

STRETCH, STEP = 24, 8
CHANGES = ("speed", "background", "colour", "kind")
FIRST_SEED = 7000  # nothing was chosen on these
CONTESTANTS = ("timeline", "one prompt", "windows")


def pair(index: int) -> tuple[str, str, str]:
    """What changes, and the two prompts."""
    change, rng = CHANGES[index % len(CHANGES)], np.random.default_rng((FIRST_SEED + index, 24))
    before = parse_prompt(prompt_of(FIRST_SEED + index))
    first = before.shapes[0]

    def other(choices: Any, *taken: str) -> str:
        return str(rng.choice([c for c in choices if c not in taken]))

    if change == "speed":
        after = replace(before, speed=other(SPEEDS, before.speed))
    elif change == "background":
        after = replace(before, background=other(BACKGROUNDS, before.background))
    elif change == "colour":
        new = replace(first, colour=other(COLOURS, *(s.colour for s in before.shapes)))
        after = replace(before, shapes=(new, *before.shapes[1:]))
    else:
        after = replace(before, shapes=(replace(first, kind=other(SHAPES, first.kind)), *before.shapes[1:]))
    return change, before.prompt, after.prompt


def shows(video: np.ndarray, change: str, prompts: tuple[str, str]) -> np.ndarray:
    """For each stretch whether it shows the second prompt (1), the first (0) or neither (NaN)."""
    scenes: list[Scene] = [parse_prompt(prompt) for prompt in prompts]
    starts = range(0, len(video) - STRETCH + 1, STEP)
    if change == "background":
        middle = np.median(video, (1, 2))
        names = list(BACKGROUNDS)
        tones = np.array([np.mean(BACKGROUNDS[name], 0) for name in names])
        nearest = np.linalg.norm(middle[:, None] - tones, axis=-1).argmin(1)
        read = [[float((nearest[a : a + STRETCH] == names.index(s.background)).mean()) for s in scenes] for a in starts]
    else:
        found = [analyse(video, prompt) for prompt in prompts]
        tracks = [analysis.tracks[0] for analysis in found]
        read = []
        for a in starts:
            rows = slice(a, a + STRETCH)
            if change == "speed":
                moved = []
                for track in found[0].tracks:
                    step = np.abs(track.centre[LAG:] - track.centre[:-LAG])[a : a + STRETCH - LAG] / LAG
                    good = (np.nan_to_num(track.visible[LAG:]) > 0.6) & (np.nan_to_num(track.visible[:-LAG]) > 0.6)
                    if good[a : a + STRETCH - LAG].sum() >= STRETCH // 3:
                        moved.append(float(np.hypot(*np.median(step[good[a : a + STRETCH - LAG]], 0))))
                now = max(float(np.mean(moved)), 1e-3) if moved else math.nan
                read.append([1 / (1 + abs(math.log(now / SPEEDS[s.speed]))) if moved else 0.0 for s in scenes])
            elif change == "colour":
                read.append([float((track.area[rows] > 0.5).mean()) for track in tracks])
            else:
                seen = tracks[0].clear[rows]
                kinds = tracks[0].kind[rows][seen]
                share = [float((kinds == SHAPES.index(s.shapes[0].kind)).mean()) if len(kinds) else 0.0 for s in scenes]
                read.append(share)
    values = np.array(read)
    told = values.max(1) >= 0.5
    return np.where(told & (values[:, 0] != values[:, 1]), values[:, 1] > values[:, 0], np.nan)


def number(value: float) -> float | None:
    """A figure for JSON; None where nothing could be measured."""
    return None if math.isnan(value) else float(value)


def jump(video: np.ndarray, mark: int, blend: int) -> float:
    """The largest change from a frame to the next around the mark, as a multiple of the 99th percentile elsewhere."""
    change = np.abs(np.diff(video, axis=0)).mean((1, 2, 3))
    near = slice(mark - 4, mark + blend + 4)
    elsewhere = np.r_[change[8 : near.start], change[near.stop :]]  # the VAE's first latent frame flickers by itself
    return float(change[near].max() / np.percentile(elsewhere, 99))


@dataclass(frozen=True, eq=False)
class _Whole(TextSchedule):
    """A window sees the text of its middle frame throughout."""

    def window(self, frames: Any) -> TextSchedule:
        rows = self.weights[[frames[len(frames) // 2]] * len(frames)]
        return TextSchedule(rows, self.starts, self.one)


def prepare(contestant: str, profile: Any) -> Any:
    """A pipeline of a contestant."""
    pipe = library.load_pipeline("tiny-wan")
    used = profile.with_layers("direct") if contestant == "windows" else profile
    freeloc_fx.enable(pipe, used, backend="eager")
    if contestant == "windows":
        pipe.transformer = context_windows(pipe.transformer, profile.trained_frames)
    return pipe


def make(pipe: Any, contestant: str, prompts: tuple[str, str], given: argparse.Namespace, seed: int) -> np.ndarray:
    """The video of a contestant."""
    prompt: Any = prompts[0] if contestant == "one prompt" else {0: prompts[0], given.mark: prompts[1]}
    options = {"frames": given.frames, "steps": given.steps, "seed": seed}
    if contestant != "windows":
        return library.generate(pipe, prompt, blend=given.blend, **options).frames
    plain = texts.timeline

    def whole(*args: Any, **kwargs: Any) -> Any:
        made = plain(*args, **{**kwargs, "blend": 0})
        told = vars(made["prompt_embeds"])["_freeloc_texts"]
        vars(made["prompt_embeds"])["_freeloc_texts"] = _Whole(told.weights, told.starts, told.one)
        return made

    from freeloc_fx.generation import running

    running.timeline = whole  # type: ignore[attr-defined]
    try:
        return library.generate(pipe, prompt, **options).frames
    finally:
        running.timeline = plain  # type: ignore[attr-defined]


def measure(index: int, pipes: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """All that is known of a pair."""
    change, *prompts = pair(index)
    both = (prompts[0], prompts[1])
    seed = FIRST_SEED + index
    obeyed = []
    for side, prompt in enumerate(both):
        short = library.generate(pipes["one prompt"], prompt, frames=81, steps=given.steps, seed=seed).frames
        found = shows(short, change, both)
        obeyed.append(bool((found == side).mean() >= 0.75))
    result: dict[str, Any] = {"pair": index, "change": change, "prompts": both, "obeyed": obeyed, "videos": {}}
    late = (given.mark + given.blend + STRETCH, given.frames)
    for name, pipe in pipes.items():
        video = make(pipe, name, both, given, seed)
        found = shows(video, change, both)
        starts = np.arange(len(found)) * STEP
        after = starts >= given.mark
        met = starts[after & (found == 1)]
        last = both[0] if name == "one prompt" else both[1]
        result["videos"][name] = {
            "met": int(met[0] - given.mark) if len(met) else None,
            "before": float(np.mean(found[starts + STRETCH <= given.mark] == 0)),
            "after": float(np.mean(found[starts >= late[0]] == 1)),
            "jump": jump(video, given.mark, given.blend),
            **{key: number(getattr(score(video, last, late), key)) for key in ("composite", "motion", "loop")},
        }
        if given.sheet == index and name == "timeline":
            marked = {0: both[0], given.mark: both[1]}
            contact_sheet(RESULTS / "timeline.png", video, scale=2, fps=16, texts=marked)
    return result


def report(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """The table, as Markdown."""
    within = given.blend + STRETCH
    rows = sorted(rows, key=lambda row: row["pair"])
    obeyed = [row for row in rows if all(row["obeyed"])]
    lines = [
        f"tiny-wan, {given.frames} frames, {given.steps} steps, mark at frame {given.mark}, blend {given.blend}: "
        f"{len(rows)} pairs, of which the short clips of {len(obeyed)} obey both prompts; these are counted.",
        "",
        f"| | change met within {within} frames | median frames until met | first prompt shown before the mark | second "
        "shown after | composite after | motion after | loop after | jump at the mark |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in CONTESTANTS:
        found = [row["videos"][name] for row in obeyed if name in row["videos"]]
        if not found:
            continue
        met = [math.inf if v["met"] is None else v["met"] for v in found]

        def mean(key: str, found: list[dict[str, Any]] = found) -> str:
            kept = [v[key] for v in found if v[key] is not None]
            return f"{np.mean(kept):.2f}"

        middle = float(np.median(met))
        cells = [f"{sum(m <= within for m in met)} of {len(met)}", "never" if math.isinf(middle) else f"{middle:.0f}"]
        cells += [mean(key) for key in ("before", "after", "composite", "motion", "loop")]
        cells.append(f"{np.median([v['jump'] for v in found]):.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| change | pairs | met by the timeline | met with one prompt |", "|---|---|---|---|"]
    for change in CHANGES:
        of = [row for row in obeyed if row["change"] == change]
        counts = [
            sum((m := row["videos"][name]["met"]) is not None and m <= within for row in of)
            for name in ("timeline", "one prompt")
        ]
        lines.append(f"| {change} | {len(of)} | {counts[0]} | {counts[1]} |")
    kept = [
        (row["videos"]["timeline"]["composite"], row["videos"]["one prompt"]["composite"])
        for row in obeyed
        if None not in (row["videos"]["timeline"]["composite"], row["videos"]["one prompt"]["composite"])
    ]
    if kept:
        ratio = np.mean([a for a, _ in kept]) / np.mean([b for _, b in kept])
        lines += ["", f"Composite after the change relative to the clip without a change: {ratio:.2f}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--mark", type=int, default=160)
    parser.add_argument("--blend", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=int, default=None)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = [given.frames, given.mark, given.blend, given.steps]
    journal = Journal(RESULTS / "timeline.jsonl")
    rows = {row["pair"]: row for row in journal.rows if row["setting"] == setting}
    if not given.report:
        profile = library.choose_profile(library.load_pipeline("tiny-wan").transformer)
        pipes = {name: prepare(name, profile) for name in CONTESTANTS}
        for index in range(given.pairs):
            if index not in rows or given.sheet == index:
                rows[index] = {**measure(index, pipes, given), "setting": setting}
                journal.add(rows[index])
                print(index, rows[index]["change"], rows[index]["obeyed"], rows[index]["videos"], flush=True)
    text = report(list(rows.values()), given)
    made = {"environment": environment(), "setting": vars(given), "pairs": list(rows.values())}
    write_text(RESULTS / "timeline.json", json.dumps(made, indent=1))
    write_text(RESULTS / "timeline.md", text)
    print(text)


if __name__ == "__main__":
    main()
