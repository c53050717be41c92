"""`freeloc generate`: one prompt, one video."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from freeloc_fx.evaluation.metrics import score
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.noise import default_stride, for_pipeline
from freeloc_fx.generation.video import SHEETS, check_output, contact_sheet, write_video
from freeloc_fx.generation.windows import context_windows
from freeloc_fx.planning.plan import Plan

from . import common
from .common import UsageError, exits, load, out, prepare, progress, scorable, warn, write_json

__all__ = ["generate", "score_table"]


SHOWN = {
    "composite": "score",
    "presence": "found",
    "shape_accuracy": "shape",
    "area": "area",
    "sharpness": "sharp",
    "motion": "motion",
    "speed": "speed",
    "psnr": "psnr",
    "loop": "loop",
}
"""Field of `metrics.GroundTruthScore` -> heading; short, so that the table fits 80 columns."""


def generate(
    prompt: common.Prompt,
    frames: Annotated[int, typer.Option(help="Length of the video; 4n+1 for Wan.")] = 321,
    model: common.Model = library.TINY_WAN,
    profile: common.ProfileName = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="direct (the untouched model), vrpr, tsa, vrpr+tsa, each with an optional +temp, for every layer.",
            show_default="the profile's, layer by layer",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial noise.")] = 0,
    noise: Annotated[
        Literal["plain", "freenoise"],
        typer.Option(help="freenoise: noise of the trained length, shuffled on and on; its authors add --windows."),
    ] = "plain",
    windows: Annotated[
        bool,
        typer.Option("--windows", help="Fuse predictions of overlapping windows of the trained length; no strategy."),
    ] = False,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    height: common.Height = None,
    width: common.Width = None,
    negative_prompt: common.Negative = None,
    dtype: common.DtypeOption = "auto",
    device: common.DeviceOption = "auto",
    backend: common.BackendOption = "auto",
    attention: common.AttentionOption = "auto",
    fps: common.Fps = 16.0,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .mp4 or .gif file.")] = Path("out.mp4"),
    debug: common.Debug = False,
) -> None:
    """Generate one video, with a contact sheet (PNG) of its frames and what made it (JSON) beside it.

    An embedded model prints how well the video shows what the prompt asks for, where the prompt is in its grammar.
    """
    written: list[Path] = []
    with exits(debug, lambda: f"wrote {written[0]} before that" if written else "nothing written"):
        check_output(output)
        sheet = check_output(output.with_suffix(".png"), SHEETS)
        report = check_output(output.with_suffix(".json"), (".json",))
        if windows and strategy not in (None, "direct"):
            raise UsageError(f"--windows: a window has the trained length, so --strategy {strategy} would do nothing")
        strategy = "direct" if windows else strategy
        job = prepare(
            model, profile, [strategy], frames, height, width, steps, guidance, negative_prompt,
            dtype, device, backend, attention,
        )  # fmt: skip
        reason = scorable(job, prompt)
        if model in library.EMBEDDED and reason:
            warn(f"no scores: {reason}")
        pipe = load(job)
        library.apply(pipe, job.profile, strategy, backend=job.backend, attention=job.attention)
        trained = 0
        if windows or noise == "freenoise":
            trained = library.choose_profile(pipe.transformer, job.profile).trained_frames
        if windows:
            stride = default_stride(trained) if noise == "freenoise" else None
            for name in library.TRANSFORMERS:
                if getattr(pipe, name, None) is not None:
                    setattr(pipe, name, context_windows(getattr(pipe, name), trained, stride))
        latents = None
        if noise == "freenoise":
            latents = for_pipeline(pipe, job.frames, job.height, job.width, trained, seed=seed)
        with progress() as bar:
            task = bar.add_task("denoising", total=job.steps)

            def on_step(done: int, total: int) -> None:
                bar.update(task, completed=done, description="denoising" if done < total else "decoding")

            video = job.run(pipe, prompt, seed, on_step, latents)
            bar.update(task, description="done")
        write_video(output, video.frames, fps, common.enlargement(job.height, 256))
        written.append(output)
        contact_sheet(sheet, video.frames, scale=common.enlargement(job.height, 128), fps=fps)
        written.append(sheet)
        settings = {
            "prompt": prompt, "negative_prompt": negative_prompt, "model": model, "strategy": strategy or "profile",
            "seed": seed, "steps": job.steps, "guidance": job.guidance, "frames": job.frames, "height": job.height,
            "width": job.width, "fps": fps, "noise": noise, "windows": windows,
        }  # fmt: skip
        plan = None if video.plan is None else video.plan.to_dict()
        write_json(report, {"settings": settings, "seconds": video.seconds, "plan": plan})
        written.append(report)
        out.print(describe(video.plan, strategy, job.latent[0]), highlight=False, markup=False, soft_wrap=True)
        if reason is None:
            out.print(score_table({strategy or "profile": score(video.frames, prompt).as_dict()}))
        out.print(
            f"{output}, {sheet} and {report}: {job.frames} frames of {job.width}x{job.height}, {video.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )


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
    title = "Scores against the prompt (1 is right; loop: 0 is; psnr in dB)"
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
