"""A prompt that changes in the middle of a long clip, on a model whose truth is known: is the change made, and when?

    python bench/timeline.py                         # goes on where a killed run stopped
    python bench/timeline.py --frames 801 --pairs 4
    python bench/timeline.py --model tiny-joint
    python bench/timeline.py --report                # no generation: what the journal holds
    python bench/timeline.py --show 2                # the contact sheet of pair 2, and a video beside the others

A pair is a prompt of `clips.prompt_of` and the same prompt with one thing changed: the speed, the background, the
colour or the kind of its first shape. Pairs whose short clips (81 frames) do not obey both prompts are left out: there
no method could show the change. Of every other pair, with the same noise: the timeline, one prompt for all frames, and
context windows with a prompt a window, that of its middle. The change is read from the pixels in stretches of 24
frames, 8 apart, and is met in the first stretch from the mark on that shows the second prompt. Writes
results/timeline.json and timeline.md.
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
from freeloc_fx.compiler.capture.timed_texts import TimedTexts
from freeloc_fx.evaluation.metrics import score
from freeloc_fx.evaluation.metrics.identity import constancy, identities
from freeloc_fx.evaluation.metrics.tracking import LAG, analyse
from freeloc_fx.files import Journal, write_text
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.lettering import lettered
from freeloc_fx.generation.telling import schedule_of
from freeloc_fx.generation.timeline import timeline
from freeloc_fx.generation.tiny_wan.scenes import BACKGROUNDS, COLOURS, SHAPES, SPEEDS, Scene, parse_prompt
from freeloc_fx.generation.video import contact_sheet, side_by_side, write_video
from freeloc_fx.generation.windows import context_windows
from freeloc_fx.method.timeline import TextSchedule
from freeloc_fx.probing.run import weights_digest

STRETCH, STEP = 24, 8
CHANGES = ("speed", "background", "colour", "kind")
FIRST_SEED = 7000  # nothing was chosen on these
CONTESTANTS = ("timeline", "one prompt", "windows")
FIELDS = ("composite", "composite_before", "permanence", "motion", "sharpness", "loop")
RATIOS = {"rest": "unchanged shapes", "constancy": "constancy", "composite_before": "composite of before",
          "composite": "composite"}  # fmt: skip
"""Figure -> what it is called."""


def pair(index: int) -> tuple[str, tuple[str, str]]:
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
    return change, (before.prompt, after.prompt)


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
    elif change == "speed":
        tracks = analyse(video, prompts[0]).tracks
        read = [[_closeness(_speed(tracks, a), SPEEDS[s.speed]) for s in scenes] for a in starts]
    else:
        first = [analyse(video, prompt).tracks[0] for prompt in (prompts if change == "colour" else prompts[:1])]
        read = []
        for a in starts:
            rows = slice(a, a + STRETCH)
            if change == "colour":
                read.append([float((track.area[rows] > 0.5).mean()) for track in first])
            else:
                kinds = first[0].kind[rows][first[0].clear[rows]]
                read.append([float((kinds == SHAPES.index(s.shapes[0].kind)).mean()) if len(kinds) else 0.0
                             for s in scenes])  # fmt: skip
    values = np.array(read)
    told = values.max(1) >= 0.5
    return np.where(told & (values[:, 0] != values[:, 1]), values[:, 1] > values[:, 0], np.nan)


def _speed(tracks: Any, start: int) -> float:
    """Pixels a frame in a stretch, mean over the shapes; NaN where none can be followed."""
    moved = []
    for track in tracks:
        step = np.abs(track.centre[LAG:] - track.centre[:-LAG])[start : start + STRETCH - LAG] / LAG
        good = (np.nan_to_num(track.visible[LAG:]) > 0.6) & (np.nan_to_num(track.visible[:-LAG]) > 0.6)
        good = good[start : start + STRETCH - LAG]
        if good.sum() >= STRETCH // 3:
            moved.append(float(np.hypot(*np.median(step[good], 0))))
    return max(float(np.mean(moved)), 1e-3) if moved else math.nan


def _closeness(speed: float, true: float) -> float:
    return 0.0 if math.isnan(speed) else 1 / (1 + abs(math.log(speed / true)))


def number(value: float) -> float | None:
    """A figure for JSON; None where nothing could be measured."""
    return None if math.isnan(value) else float(value)


def jump(video: np.ndarray, mark: int, blend: int) -> float:
    """The largest change from a frame to the next around the mark, as a multiple of the 99th percentile elsewhere."""
    change = np.abs(np.diff(video, axis=0)).mean((1, 2, 3))
    near = slice(mark - 4, mark + blend + 4)
    elsewhere = np.r_[change[8 : near.start], change[near.stop :]]  # the VAE's first latent frame flickers by itself
    return float(change[near].max() / np.percentile(elsewhere, 99))


def rest(video: np.ndarray, prompt: str, change: str, window: tuple[int, int]) -> dict[str, float | None]:
    """Scores against a prompt, and of what the change leaves alone: are these shapes there in their colour and kind,
    and do they keep what they had in the first trained length?

    For a colour or a kind that changes these are the other shapes; else all of them.
    """
    found, first = score(video, prompt, window), 1 if change in ("colour", "kind") else 0
    kept, stay = found.shapes[first:], identities(analyse(video, prompt))[0][first:]
    shown = [shape.presence * (1.0 if math.isnan(shape.shape_accuracy) else shape.shape_accuracy) for shape in kept]
    shown = [value for value in shown if not math.isnan(value)]
    return {
        "rest": float(np.mean(shown)) if shown else None,
        "constancy": number(constancy(stay, slice(*window))),
        **{key: number(getattr(found, key)) for key in FIELDS},
    }


@dataclass(frozen=True, eq=False)
class _Whole(TextSchedule):
    """A window sees the text of its middle frame throughout."""

    def window(self, frames: Any) -> TextSchedule:
        rows = self.weights[[frames[len(frames) // 2]] * len(frames)]
        return TextSchedule(rows, self.starts, self.one, self.shown, self.negative)


def prepare(model: str, contestant: str, profile: Any) -> Any:
    """A pipeline of a contestant."""
    pipe = library.load_pipeline(model)
    freeloc_fx.enable(pipe, profile.with_layers("direct") if contestant == "windows" else profile, backend="eager")
    if contestant == "windows":
        pipe.transformer = context_windows(pipe.transformer, profile.trained_frames)
    return pipe


def make(pipe: Any, contestant: str, prompts: tuple[str, str], given: argparse.Namespace, seed: int) -> np.ndarray:
    """The video of a contestant."""
    prompt: Any = prompts[0] if contestant == "one prompt" else {0: prompts[0], given.mark: prompts[1]}
    if contestant != "windows":
        options = {"frames": given.frames, "steps": given.steps, "seed": seed}
        return library.generate(pipe, prompt, blend=given.blend, **options).frames
    inputs = timeline(pipe, prompt, num_frames=given.frames, blend=0)
    known = schedule_of(inputs["prompt_embeds"])
    assert known is not None
    whole = _Whole(known.weights, known.starts, known.one, known.shown, known.negative)
    inputs["prompt_embeds"] = TimedTexts.of(inputs["prompt_embeds"], whole)
    usual = library.defaults(pipe)
    result = pipe(
        **inputs, num_frames=given.frames, height=usual.height, width=usual.width, num_inference_steps=given.steps,
        guidance_scale=usual.guidance, generator=torch.Generator("cpu").manual_seed(seed), output_type="np",
    )  # fmt: skip
    return np.asarray(result.frames[0], dtype=np.float32)


def measure(index: int, pipes: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """All that is known of a pair."""
    change, both = pair(index)
    seed = FIRST_SEED + index
    obeyed = []
    for side, prompt in enumerate(both):
        short = library.generate(pipes["one prompt"], prompt, frames=81, steps=given.steps, seed=seed).frames
        obeyed.append(bool((shows(short, change, both) == side).mean() >= 0.75))
    result: dict[str, Any] = {"pair": index, "change": change, "prompts": both, "obeyed": obeyed, "videos": {}}
    if not all(obeyed):
        return result
    late = (given.mark + given.blend + STRETCH, given.frames)
    for name, pipe in pipes.items():
        video = make(pipe, name, both, given, seed)
        found = shows(video, change, both)
        starts = np.arange(len(found)) * STEP
        met = starts[(starts >= given.mark) & (found == 1)]
        result["videos"][name] = {
            "met": int(met[0] - given.mark) if len(met) else None,
            "before": float(np.mean(found[starts + STRETCH <= given.mark] == 0)),
            "after": float(np.mean(found[starts >= late[0]] == 1)),
            "jump": jump(video, given.mark, given.blend),
            **rest(video, both[0] if name == "one prompt" else both[1], change, late),
        }
    return result


def show(index: int, pipes: dict[str, Any], given: argparse.Namespace) -> None:
    """Write the contact sheet of a pair's timeline, and a video of all contestants with the prompts below."""
    _, both = pair(index)
    videos = {name: make(pipe, name, both, given, FIRST_SEED + index) for name, pipe in pipes.items()}
    texts = {0: both[0], given.mark: both[1]}
    contact_sheet(RESULTS / "timeline.png", videos["timeline"], fps=16, texts=texts)
    film = side_by_side(videos, scale=4)
    below = {mark: lettered(f"from frame {mark}: {text}", film.shape[2]) for mark, text in texts.items()}
    lines = max(map(len, below.values()))
    below = {mark: np.pad(text, ((0, lines - len(text)), (0, 0), (0, 0)), constant_values=255)
             for mark, text in below.items()}  # fmt: skip
    shown = np.stack([below[0 if frame < given.mark else given.mark] for frame in range(len(film))])
    write_video(RESULTS / "timeline.mp4", np.concatenate([film, shown], 1), fps=16, crf=23)


def grouped(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by setting; of each those of the weights that came last."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = json.dumps({**row["setting"], "weights": ""}, sort_keys=True)
        group = groups.setdefault(key, [])
        if group and group[0]["setting"].get("weights") != row["setting"].get("weights"):
            group.clear()
        group.append(row)
    return groups


def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs that can be told anything from, in order."""
    return [row for row in sorted(rows, key=lambda row: row["pair"]) if all(row["obeyed"])]


def report(rows: list[dict[str, Any]], setting: dict[str, Any]) -> str:
    """The tables of one setting, as Markdown."""
    within, found = setting["blend"] + STRETCH, counted(rows)
    lines = [
        f"{setting['model']}{'' if 'weights' in setting else ' (weights before)'}, {setting['frames']} frames, "
        f"{setting['steps']} steps, mark at frame {setting['mark']}, "
        f"blend {setting['blend']}: {len(rows)} pairs were tried; the short clips of {len(found)} obey both prompts, "
        "and these are counted. After: from the end of the blend and a stretch on.",
        "",
        f"| | change met within {within} frames | median frames until met | first prompt shown before the mark | "
        "second shown after | unchanged shapes after | their constancy after | composite after | of before | "
        "motion after | loop after | jump at the mark |",
        "|" + "---|" * 12,
    ]
    for name in CONTESTANTS:
        videos = [row["videos"][name] for row in found]
        if not videos:
            continue
        met = [math.inf if v["met"] is None else v["met"] for v in videos]
        middle = float(np.median(met))
        cells = [f"{sum(m <= within for m in met)} of {len(met)}", "never" if math.isinf(middle) else f"{middle:.0f}"]
        cells += [
            mean(videos, k)
            for k in ("before", "after", "rest", "constancy", "composite", "composite_before", "motion", "loop")
        ]
        cells.append(f"{np.median([v['jump'] for v in videos]):.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| change | pairs | met by the timeline | met by windows | met with one prompt |",
        "|---|---|---|---|---|",
    ]
    for change in CHANGES:
        of = [row for row in found if row["change"] == change]
        counts = [
            sum((m := row["videos"][name]["met"]) is not None and m <= within for row in of)
            for name in ("timeline", "windows", "one prompt")
        ]
        lines.append(f"| {change} | {len(of)} | " + " | ".join(map(str, counts)) + " |")
    ratios = [(words, *ratio(found, key)) for key, words in RATIOS.items()]
    told = [f"{words} {value:.2f} ({count} pairs)" for words, value, count in ratios if count]
    if told:
        lines += ["", f"Timeline relative to the clip without a change, after the mark: {', '.join(told)}."]
    return "\n".join(lines) + "\n"


def mean(videos: list[dict[str, Any]], key: str) -> str:
    """Mean of a figure over the videos that have it."""
    kept = [v[key] for v in videos if v.get(key) is not None]
    return f"{np.mean(kept):.2f}" if kept else "-"


def ratio(rows: list[dict[str, Any]], key: str) -> tuple[float, int]:
    """Mean of a figure of the timelines over that of the clips without a change, and how many pairs have both."""
    both = [(row["videos"]["timeline"].get(key), row["videos"]["one prompt"].get(key)) for row in rows]
    both = [(a, b) for a, b in both if a is not None and b is not None]
    if not both:
        return math.nan, 0
    return float(np.mean([a for a, _ in both]) / np.mean([b for _, b in both])), len(both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny-wan", "tiny-joint"], default="tiny-wan")
    parser.add_argument("--pairs", type=int, default=20, help="pairs whose short clips obey both prompts")
    parser.add_argument("--frames", type=int, default=321)
    parser.add_argument("--mark", type=int, default=None, help="default: the middle")
    parser.add_argument("--blend", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=None)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    given.mark = given.frames // 2 if given.mark is None else given.mark
    torch.set_num_threads(given.threads)
    setting: dict[str, Any] = {key: getattr(given, key) for key in ("model", "frames", "mark", "blend", "steps")}
    journal = Journal(RESULTS / "timeline.jsonl")
    if not given.report:
        transformer = library.load_pipeline(given.model).transformer
        setting["weights"] = weights_digest(transformer)
        profile = library.choose_profile(transformer)
        pipes = {name: prepare(given.model, name, profile) for name in CONTESTANTS}
        if given.show is not None:
            show(given.show, pipes, given)
            return
        rows = {row["pair"]: row for row in journal.rows if row["setting"] == setting}
        index = 0
        while len(counted(list(rows.values()))) < given.pairs:
            if index not in rows:
                rows[index] = journal.add({**measure(index, pipes, given), "setting": setting})
                print(index, rows[index]["change"], rows[index]["obeyed"], rows[index]["videos"], flush=True)
            index += 1
    groups = grouped(journal.refresh())
    write_text(RESULTS / "timeline.md", "\n".join(report(rows, rows[0]["setting"]) for rows in groups.values()))
    if not given.report:
        made = {
            "environment": environment(),
            "journal": "timeline.jsonl",
            "settings": [rows[0]["setting"] for rows in groups.values()],
        }
        write_text(RESULTS / "timeline.json", json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
