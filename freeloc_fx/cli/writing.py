"""What `freeloc generate` and `freeloc decode` write and say of one video."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from freeloc_fx.evaluation.metrics import score
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.streaming import Film, streamed
from freeloc_fx.generation.video import contact_sheet, sheet_of, write_video
from freeloc_fx.planning.plan import Plan

from .common import Job, out, write_json

__all__ = ["describe", "enlargement", "filmed", "is_streamed", "number", "score_table", "settings_of", "write"]


SHOWN = {
    "composite": "score",
    "presence": "found",
    "constancy": "keeps",
    "permanence": "once",
    "pops": "pops",
    "sharpness": "sharp",
    "motion": "motion",
    "freeze": "freeze",
    "loop": "loop",
}
"""Field of `metrics.GroundTruthScore` -> heading; short, so that the table fits 80 columns."""


def enlargement(height: int, target: int) -> int:
    """Choose the whole factor that brings a height near a target.

    Args:
        height: pixels.
        target: pixels.

    Returns:
        The factor; 1 for videos that are large already.
    """
    return max(1, round(target / height))


def settings_of(
    job: Job, prompt: str | Mapping[int, str], strategy: str | None, seed: int, fps: float, **others: Any
) -> dict[str, Any]:
    """Gather what made a video, as JSON data.

    Args:
        job: the checked request.
        prompt: what is shown, or from which frame on it is what.
        strategy: its name; None for the profile's.
        seed: of the initial noise.
        fps: frames per second of the file.
        **others: further settings of the command.

    Returns:
        The settings.
    """
    shown = prompt if isinstance(prompt, str) else {str(mark): text for mark, text in prompt.items()}
    return {
        "prompt": shown, "negative_prompt": job.negative_prompt, "model": job.model, "strategy": strategy or "profile",
        "seed": seed, "steps": job.steps, "guidance": job.guidance, "frames": job.frames, "height": job.height,
        "width": job.width, "fps": fps, **others,
    }  # fmt: skip


_STREAMED_FROM = 81 * 480 * 832
"""Pixels of a clip past which its frames go to the file as they are decoded, and are not held."""


def is_streamed(job: Job) -> bool:
    """Say whether a video is so long and large that its frames go to the file as they are decoded.

    Args:
        job: the checked request.

    Returns:
        Whether it is.
    """
    return job.frames * job.height * job.width > _STREAMED_FROM and enlargement(job.height, 256) == 1


@contextmanager
def filmed(output: Path, job: Job, fps: float) -> Iterator[Film | None]:
    """Open the file of a long video, so that its frames can go there as they are decoded.

    Args:
        output: the video.
        job: the checked request.
        fps: frames per second of the file.

    Yields:
        What takes the frames; None for a clip that is short or small enough to be held.
    """
    if not is_streamed(job):
        yield None
        return
    with streamed(output, frames=job.frames, height=job.height, width=job.width, fps=fps) as film:
        yield film


def write(
    output: Path,
    video: library.Video,
    fps: float,
    report: Mapping[str, Any],
    summary: str,
    strategy: str,
    prompt: str | None,
    written: list[Path] | None = None,
    film: Film | None = None,
) -> None:
    """Write a video, its contact sheet and its report, and say what ran and how well it shows the prompt.

    Args:
        output: the video; the others lie beside it.
        video: what is written.
        fps: frames per second of the file.
        report: JSON data; the name of the video is added.
        summary: a line that says what ran; may be empty.
        strategy: its name.
        prompt: to score the video against; None where it cannot be scored.
        written: gets each file that is there.
        film: has written the video already; None: it is written here.

    Raises:
        WriteError: a file could not be written whole.
    """
    sheet, beside = output.with_suffix(".png"), output.with_suffix(".json")
    done = written if written is not None else []
    if film is None:
        count, height, width, _ = video.frames.shape
        write_video(output, video.frames, fps, enlargement(height, 256))
    else:
        count, (height, width) = film.frames, film.size
    done.append(output)
    given = dict(report.get("settings") or {}).get("prompt")
    texts = {int(mark): text for mark, text in given.items()} if isinstance(given, dict) else None
    if film is None:
        contact_sheet(sheet, video.frames, scale=enlargement(height, 128), fps=fps, texts=texts)
    else:
        sheet_of(sheet, film.chosen, scale=enlargement(height, 128), fps=fps, texts=texts)
    done.append(sheet)
    write_json(beside, {"file": output.name, **report})
    done.append(beside)
    if summary:
        out.print(summary, highlight=False, soft_wrap=True)
    if prompt is not None:
        out.print(score_table({strategy: score(video.frames, prompt).as_dict()}))
    words = f"{output}, {sheet} and {beside}: {count} frames of {width}x{height}, {video.seconds:.0f} s"
    out.print(words, highlight=False, soft_wrap=True)


def describe(plan: Plan | None, strategy: str | None, latent_frames: int) -> str:
    """Say in one line what ran.

    Args:
        plan: of the transformed model; None for the untouched one.
        strategy: its name; None for the profile's.
        latent_frames: of the video.

    Returns:
        The line.
    """
    if plan is None:
        return f"Strategy direct: the untouched model over {latent_frames} latent frames"
    head = str(plan).splitlines()[0]
    if not plan.rewritten:
        return f"{head}: within the trained length, the untouched model ran"
    kept = sum(site.kept for site in plan.sites) / len(plan.sites)
    return f"{head}; strategy {strategy or 'profile'}, {kept:.1%} of token pairs kept"


def score_table(scores: dict[str, dict[str, Any]]) -> Table:
    """Make a table of the scores of `metrics.GroundTruthScore` that say most.

    Args:
        scores: strategy -> field -> value.

    Returns:
        The table, a row for each strategy.
    """
    title = "Scores against the prompt (1 is right; pops per 100 frames, freeze, loop: 0 is)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    for heading in SHOWN.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for strategy, values in scores.items():
        table.add_row(strategy, *(number(values.get(name)) for name in SHOWN))
    return table


def number(value: float | None, signed: bool = False) -> str:
    """Write one figure for a table.

    Args:
        value: None or NaN where nothing was measurable.
        signed: with a plus sign.

    Returns:
        The text, "-" where nothing was measurable.
    """
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return f"+{text}" if signed and value >= 0 else text
