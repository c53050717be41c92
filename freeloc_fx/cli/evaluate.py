"""`freeloc eval`: figures of finished videos, consistency always beside dynamics and loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from freeloc_fx.evaluation.metrics.adapters import read_vbench, vbench_of, with_vbench
from freeloc_fx.evaluation.metrics.clip import MetricError
from freeloc_fx.evaluation.metrics.evaluation import NO_AESTHETIC, Evaluation, Models, check_file, evaluate
from freeloc_fx.generation.video import check_output

from . import common
from .common import err, exits, out, warn, without_nan, write_json
from .outputs import check_apart, check_report, reports_of
from .writing import number, score_table

__all__ = ["evaluate_videos"]


HEADINGS = {
    "subject_consistency": "subj.",
    "background_consistency": "back.",
    "motion_smoothness": "smooth",
    "dynamic_degree": "dyn.",
    "motion": "motion",
    "freeze": "freeze",
    "loop": "loop",
    "imaging_quality": "image",
}
"""Field of `Evaluation` -> heading; short, so that the table fits 80 columns."""


def evaluate_videos(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.", show_default=False)],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Score tiny-wan's videos against this prompt.", show_default="the one in the JSON beside the video"
        ),
    ] = None,
    period: Annotated[
        int | None, typer.Option(min=2, help="Frames: run RIFLEx's NoRepeat at this period.", show_default="not run")
    ] = None,
    segments: Annotated[int, typer.Option(min=1, help="Stretches in which drift over time is shown.")] = 4,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=1000.0, help="Frames per second.", show_default="the file's")
    ] = None,
    subject_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a ViT, e.g. DINO.", show_default="an offline proxy")
    ] = None,
    background_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a CLIP.", show_default="an offline proxy")
    ] = None,
    imaging: Annotated[
        Literal["proxy", "musiq"], typer.Option(help="Imaging quality's model; musiq needs the package pyiqa.")
    ] = "proxy",
    vbench: Annotated[
        Path | None, typer.Option(help="Add the figures of a ..._eval_results.json that vbench wrote.")
    ] = None,
    device: common.DeviceOption = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything as JSON; - prints it instead of the tables.")
    ] = None,
    debug: common.Debug = False,
) -> None:
    """Measure videos: consistency, smoothness, imaging quality, and what exposes them: dynamics, freeze, loop.

    VBench's definitions; without --subject-model and the like the models are offline stand-ins, named in the output,
    whose figures only compare with one another. What ends the command keeps the figures of the videos before it.
    """
    rows: list[Evaluation] = []

    def left() -> str:
        return f"{len(rows)} of {len(videos)} videos were measured before that" if rows else "nothing written"

    with exits(debug, left):
        to_screen = json_file == Path("-")
        if json_file is not None and not to_screen:
            check_output(json_file, (".json",))
        for path in videos:  # before the first of several long videos is measured
            if not path.is_file():
                found = "a folder" if path.is_dir() else "no such file"
                raise MetricError(f"{path}: expected a video file, found {found}")
        if json_file is not None and not to_screen:
            models_read = [("--subject-model", subject_model), ("--background-model", background_model)]
            reports = [("a video's report", path) for path in reports_of(videos)]
            clips = [("the video", path) for path in videos]
            check_apart([json_file], [("--vbench", vbench), *models_read, *clips, *reports])
            check_report(json_file)
        results = read_vbench(vbench) if vbench is not None else None
        for path in videos:
            if results is not None:
                vbench_of(str(path), results)
            if len(videos) > 1:  # the first one's error comes at once anyway
                check_file(path, prompt=prompt, period=period, segments=segments)
        models = _models(subject_model, background_model, imaging, device)
        words = TextColumn("{task.description}", markup=False)
        bar = Progress(words, BarColumn(), MofNCompleteColumn(), console=err, transient=True)
        try:
            with bar:
                task = bar.add_task("", total=len(videos))
                for path in videos:
                    bar.update(task, description=path.name)
                    row = evaluate(path, prompt=prompt, fps=fps, models=models, period=period, segments=segments)
                    rows.append(row if results is None else with_vbench(row, results))
                    bar.advance(task)
        finally:  # a later video that cannot be measured, or Ctrl-C, does not lose hours of figures
            if rows:
                _write(rows, json_file, to_screen)


def _write(rows: list[Evaluation], json_file: Path | None, to_screen: bool) -> None:
    """Show what was measured, and write it where that is asked for."""
    data = without_nan([row.as_dict() for row in rows])
    if to_screen:
        write_json(None, data)
        return
    _show(rows)
    if json_file is not None:
        write_json(json_file, data)
        out.print(f"{json_file}", highlight=False, soft_wrap=True)


def _models(subject: str | None, background: str | None, imaging: str, device: str) -> Models:
    chosen: dict[str, Any] = {}
    if subject or background or imaging == "musiq":
        import torch

        from freeloc_fx.evaluation.metrics.hub import ClipFeatures, DinoFeatures, Musiq

        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if subject:
            chosen["subject"] = DinoFeatures(subject, where)
        if background:
            chosen["background"] = ClipFeatures(background, where)
        if imaging == "musiq":
            chosen["quality"] = Musiq(where)
    return Models(**chosen)


def _show(rows: list[Evaluation]) -> None:
    out.print(_table(rows, "Whole video (1 is right; freeze, loop: 0 is; motion: above 1 is dynamic)"))
    out.print(_drift(rows))
    if scored := {_short(r.name): r.ground_truth.as_dict() for r in rows if r.ground_truth is not None}:
        table = score_table(scored)
        table.columns[0].header = "video"
        out.print(table)
    for row in rows:
        for caution in row.cautions:
            warn(f"{row.name}: {caution}; its consistency and smoothness say little")
        if row.no_repeat is not None:
            verdict = "repeats" if row.no_repeat.repeats else "does not repeat"
            _say(
                f"{row.name}: NoRepeat at {row.no_repeat.period} frames: {verdict} (difference "
                f"{row.no_repeat.distance:.4f} at a lag of {row.no_repeat.lag}, threshold {row.no_repeat.threshold:g})"
            )
        if row.vbench:
            _say(f"{row.name}: vbench: " + ", ".join(f"{k} {v:.4f}" for k, v in row.vbench.items()))
        if row.no_ground_truth and row.no_ground_truth != "no prompt":
            _say(f"{row.name}: no score against the prompt beside it: {row.no_ground_truth}")
    for name, measure in rows[0].measures():
        if measure.model:
            _say(f"{HEADINGS[name]}: {name.replace('_', ' ')}, {measure.model}")
    _say(NO_AESTHETIC)


def _table(rows: list[Evaluation], title: str) -> Table:
    table = _new(title)
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(_short(row.name), *(number(measure.value) for _, measure in row.measures()))
    return table


def _drift(rows: list[Evaluation]) -> Table:
    """Each video's stretches in order, then the change over the whole video."""
    table = _new("Over time (terms compare with the video's own first frame)")
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        drift = row.drift()
        table.add_row(_short(row.name))
        for i in range(row.segments):
            first = f"  {i + 1}/{row.segments}"
            table.add_row(first, *(number(drift[name]["segments"][i]) for name in HEADINGS))
        slopes = [drift[name]["slope"] for name in HEADINGS]
        table.add_row("  slope", *(number(s, signed=True) for s in slopes), end_section=True)
    return table


def _new(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("video", no_wrap=True)
    return table


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _short(name: str, most: int = 14) -> str:
    """The file's name for a table's cell."""
    stem = Path(name).name
    return stem if len(stem) <= most else stem[: most - 1] + "…"
