"""`freeloc compare`: one prompt and seed, several strategies, side by side."""

from __future__ import annotations

import math
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
import typer

from freeloc_fx.evaluation.metrics import score
from freeloc_fx.files import claimed, installed_version
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.tiny_wan.drawing import real
from freeloc_fx.generation.video import check_folder, check_rate, comparison_sheet, side_by_side, write_video

from . import common, times
from .common import Job, UsageError, exits, load, out, prepare, progress, scorable, warn, without_nan, write_json
from .finished import FinishedVideo, FinishedVideos
from .latents import SUFFIX, kept
from .outputs import check_video
from .writing import describe, enlargement, score_table, settings_of

__all__ = ["compare"]


Shown: TypeAlias = str | dict[int, str]


STRATEGIES = "direct,vrpr,vrpr+temp,tsa,vrpr+tsa,profile"


def compare(
    prompts: times.Prompts = None,
    frames: Annotated[int, typer.Option(help="Length of the videos; 4n+1 for Wan.")] = 801,
    strategies: Annotated[
        str, typer.Option(help="Names separated by commas; profile: the profile's own, layer by layer.")
    ] = STRATEGIES,
    seeds: Annotated[
        str, typer.Option(help="Numbers separated by commas: scores are means, the video is the first's.")
    ] = "0",
    at: times.At = None,
    blend: times.Blend = "16",
    model: common.Model = library.TINY_WAN,
    profile: common.ProfileName = None,
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
    output: common.VideoOutput = Path("compare.mp4"),
    keep_parts: Annotated[bool, typer.Option("--keep-parts", help="Keep the single videos' frames.")] = False,
    debug: common.Debug = False,
) -> None:
    """Generate one prompt with several strategies from the same noise, side by side in one video.

    With --at the prompt changes over time.

    Writes a contact sheet (PNG) and the settings and scores (JSON) beside it. Run again after an interruption, it goes
    on with the first video that is not finished; two runs into one output at once are refused.
    """
    folder = output.with_suffix(".parts")

    def left() -> str:
        count = len(list(folder.glob("*.npy")))
        words = "1 finished video is" if count == 1 else f"{count} finished videos are"
        return f"{words} in {folder}, the same command goes on" if count else "nothing written"

    with exits(debug, left), ExitStack() as held:
        sheet, report = check_video(output, [("--profile", profile), ("--model", model)])
        check_folder(folder)
        check_rate(output, fps)
        names = _names(strategies)
        numbers = _seeds(seeds)
        job = prepare(
            model, profile, [*names], frames, height, width, steps, guidance, negative_prompt,
            dtype, device, backend, attention,
        )  # fmt: skip
        prompt = times.told(prompts, at, job, fps, blend)
        timing = {} if isinstance(prompt, str) else {"blend": blend, "fps": fps}
        reason = scorable(job, prompt)
        if model in library.EMBEDDED and reason:
            warn(f"no scores: {reason}")
        held.enter_context(claimed(folder))  # nobody else finishes videos there, and deletes these
        finished = FinishedVideos(folder, job, prompt, timing)
        _make(finished, job, prompt, names, numbers, fps, timing)
        found = {name: [_entry(finished, name, seed, prompt, reason) for seed in numbers] for name in names}
        means = {name: _mean([run["scores"] for run in runs]) for name, runs in found.items()} if reason is None else {}
        real_clip = _real_clip(prompt, frames) if means and isinstance(prompt, str) else {}
        videos = {name: _kept(finished, name, numbers[0]).frames for name in names}
        write_video(output, side_by_side(videos, enlargement(job.height, 192)), fps)
        comparison_sheet(
            sheet,
            videos,
            scale=enlargement(job.height, 128),
            scores={name: values["composite"] for name, values in means.items()},
            texts=None if isinstance(prompt, str) else prompt,
        )
        write_json(
            report,
            {
                "file": output.name,
                **_report(job, prompt, numbers, found, means, timing),
                "real_clip": without_nan(real_clip) or None,
            },
        )
        del videos
        if keep_parts:
            finished.keep()
        elif others := finished.remove():  # only now: all that was made of them is whole
            words = "1 finished video of other settings was" if others == 1 else f"{others} of other settings were"
            out.print(f"{words} removed from {folder}", highlight=False, soft_wrap=True)
        if not keep_parts and (files := finished.undecoded()):
            words = ", ".join(file.name for file in files)
            out.print(f"denoised latents of other settings stay in {folder}: {words}", highlight=False, soft_wrap=True)
        for name, runs in found.items():
            out.print(f"{name}: {runs[0]['summary']}, {runs[0]['seconds']:.0f} s", highlight=False, soft_wrap=True)
        if means:
            out.print(score_table({**means, "a real clip": real_clip}))
        out.print(f"{output}, {sheet} and {report}", highlight=False, soft_wrap=True)


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
    if not names:
        raise UsageError(f"--strategies: expected names separated by commas, found {text!r}")
    return names


def _seeds(text: str) -> list[int]:
    items = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdigit() and int(item) < 2**63 for item in items):
        raise UsageError(f"--seeds: expected numbers from 0 separated by commas, found {text!r}")
    return list(dict.fromkeys(int(item) for item in items))


def _make(
    finished: FinishedVideos,
    job: Job,
    prompt: Shown,
    names: list[str],
    seeds: list[int],
    fps: float,
    timing: dict[str, Any],
) -> None:
    """Generate what is not there yet; the pipeline is loaded only if something is missing."""
    missing = [(name, seed) for name in names for seed in seeds if finished.get(name, seed) is None]
    done = len(names) * len(seeds) - len(missing)
    if done:
        out.print(f"{done} of {done + len(missing)} videos are there from an earlier run", highlight=False)
    if not missing:
        return
    pipe = load(job)
    applied = None
    with progress() as bar:
        task = bar.add_task("", total=job.steps * len(missing))
        for index, (name, seed) in enumerate(missing):
            if name != applied:
                times.apply(pipe, job, name, prompt)
                applied = name
            label = name if len(seeds) == 1 else f"{name}, seed {seed}"

            def on_step(done: int, total: int, index: int = index, label: str = label) -> None:
                words = label if done < total else f"{label}, decoding"
                bar.update(task, completed=index * total + done, description=words)

            bar.update(task, description=label)
            latents = finished.latents(name, seed)
            if (video := _decoded(pipe, latents)) is not None:
                finished.put(name, seed, *video)
                latents.unlink(missing_ok=True)
                continue
            settings = settings_of(job, prompt, name, seed, fps)
            single = latents.with_name(latents.name.removesuffix(SUFFIX) + ".mp4")
            with kept(single, settings, name, job, latents) as keep:
                made = job.run(pipe, prompt, seed, on_step, on_latents=keep, timing=timing)
                summary = describe(made.plan, name, job.latent[0])
                plan = made.plan.to_dict() if made.plan is not None else None
                finished.put(name, seed, made, {"seconds": made.seconds, "summary": summary, "plan": plan})
        bar.update(task, description="done")


def _decoded(pipe: Any, latents: Path) -> tuple[library.Video, dict[str, Any]] | None:
    """The video of latents that an earlier run left, and its facts; None where there are none, or damaged ones."""
    if not latents.is_file():
        return None
    try:
        found = library.Latents.load(latents)
    except library.LatentsError:
        return None  # denoised again, and replaced
    video = library.decode_latents(pipe, found)
    return video, {"seconds": video.seconds, "summary": found.facts.get("summary", ""), "plan": found.facts.get("plan")}


def _kept(finished: FinishedVideos, name: str, seed: int) -> FinishedVideo:
    """A video that is there: `_make` has made what was missing."""
    video = finished.get(name, seed)
    assert video is not None
    return video


def _entry(finished: FinishedVideos, name: str, seed: int, prompt: Shown, reason: str | None) -> dict[str, Any]:
    """What one video's report says. Scored from the kept bytes, so a resumed run scores as an uninterrupted one."""
    video = _kept(finished, name, seed)
    scores = None
    if reason is None and isinstance(prompt, str):
        scores = score(video.frames.astype(np.float32) / 255, prompt).as_dict()
    return {"seed": seed, **video.facts, "scores": scores}


def _real_clip(prompt: str, frames: int) -> dict[str, Any]:
    """Scores of one clip that the prompt describes, drawn: what the figures of a video without fault are."""
    return score(real(prompt, np.random.default_rng(0)).render(frames), prompt).as_dict()


def _mean(scores: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each number over the seeds that have it; NaN where none has."""
    result = {}
    for key, first in scores[0].items():
        if isinstance(first, (int, float)):
            known = [s[key] for s in scores if not math.isnan(s[key])]
            result[key] = sum(known) / len(known) if known else math.nan
    return result


def _report(
    job: Job,
    prompt: Shown,
    seeds: list[int],
    found: dict[str, list[dict[str, Any]]],
    means: dict[str, dict[str, float]],
    timing: dict[str, Any],
) -> dict[str, Any]:
    settings = {
        "prompt": prompt if isinstance(prompt, str) else {str(mark): text for mark, text in prompt.items()},
        **timing,
        "negative_prompt": job.negative_prompt,
        "model": job.model,
        "profile": job.profile.name if job.profile is not None else None,
        "frames": job.frames,
        "height": job.height,
        "width": job.width,
        "steps": job.steps,
        "guidance": job.guidance,
        "seeds": seeds,
        "dtype": str(job.dtype).removeprefix("torch."),
        "device": job.device,
        "backend": job.backend,
        "attention": job.attention,
    }
    import diffusers

    versions = {
        "freeloc_fx": installed_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    strategies = {name: {"scores": means.get(name), "runs": runs} for name, runs in found.items()}
    result: dict[str, Any] = without_nan({"settings": settings, "versions": versions, "strategies": strategies})
    return result
