"""`freeloc generate`: one prompt, one video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freeloc_fx.compiler.capture.conventions import patches
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.noise import default_stride, for_pipeline
from freeloc_fx.generation.video import check_rate
from freeloc_fx.generation.windows import context_windows

from . import common, times
from .common import UsageError, exits, load, prepare, progress, scorable, warn
from .latents import kept
from .outputs import check_video
from .ranks import Parallel, Shard, ranks
from .writing import describe, filmed, is_streamed, settings_of, write

__all__ = ["generate"]


def generate(
    prompts: times.Prompts = None,
    frames: Annotated[int, typer.Option(help="Length of the video; 4n+1 for Wan.")] = 321,
    model: common.Model = library.TINY_WAN,
    profile: common.ProfileName = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="For every layer: direct (the untouched model), profile, or parts joined by + as in vrpr+tsa+temp.",
            show_default="the profile's, layer by layer",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial noise.")] = 0,
    at: times.At = None,
    blend: times.Blend = "16",
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
    parallel: Parallel = None,
    shard: Shard = None,
    output: common.VideoOutput = Path("out.mp4"),
    debug: common.Debug = False,
) -> None:
    """Generate one video, with a contact sheet (PNG) of its frames and what made it (JSON) beside it.

    With --at the prompt changes over time: --at 0 "a red circle ..." --at 10s "a blue circle ...".

    An embedded model prints how well the video shows what the prompt asks for, where the prompt is in its grammar. What
    fails once denoising is done keeps the latents beside the output; freeloc decode makes the video of them. Several
    GPUs: torchrun --nproc_per_node N -m freeloc_fx.cli generate ... --parallel ulysses, and --shard fsdp.
    """
    written: list[Path] = []
    with (
        exits(debug, lambda: f"wrote {written[0]} before that" if written else "nothing written"),
        ranks(parallel, shard) as here,
    ):
        if here.writes:
            check_video(output, [("--profile", profile), ("--model", model)])
        check_rate(output, fps)
        if seed >= 2**63:
            raise UsageError(f"--seed: expected a number from 0 to 2**63 - 1, found {seed}")
        if windows and strategy not in (None, "direct"):
            raise UsageError(f"--windows: a window has the trained length, so --strategy {strategy} would do nothing")
        strategy = "direct" if windows else strategy
        job = prepare(
            model, profile, [strategy], frames, height, width, steps, guidance, negative_prompt,
            dtype, device, backend, attention,
        )  # fmt: skip
        prompt = times.told(prompts, at, job, fps, blend)
        timing = {} if isinstance(prompt, str) else {"blend": blend, "fps": fps}
        reason = scorable(job, prompt)
        if model in library.EMBEDDED and reason:
            warn(f"no scores: {reason}")
        pipe = load(job)
        here.share(pipe, job)
        times.apply(pipe, job, strategy, prompt)
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
            counted = trained * patches(pipe.transformer)[0]  # a profile counts positions, noise has latent frames
            latents = for_pipeline(pipe, job.frames, job.height, job.width, counted, seed=seed)
        settings = settings_of(job, prompt, strategy, seed, fps, noise=noise, windows=windows)
        if timing:
            settings["blend"] = blend
        if not here.writes:
            here.denoise(job, pipe, prompt, seed, latents, timing, decode=is_streamed(job))
            return
        with kept(output, settings, strategy, job) as keep:
            with filmed(output, job, fps) as film, progress() as bar:
                task = bar.add_task("denoising", total=job.steps)

                def on_step(done: int, total: int) -> None:
                    bar.update(task, completed=done, description="denoising" if done < total else "decoding")

                take = None if film is None else film.add
                shards = None if film is None else here.shards
                video = job.run(pipe, prompt, seed, on_step, latents, keep, take, shards, timing)
                bar.update(task, description="done")
            plan = None if video.plan is None else video.plan.to_dict()
            content = {"settings": settings, "seconds": video.seconds, "plan": plan}
            summary = describe(video.plan, strategy, job.latent[0])
            shown = prompt if isinstance(prompt, str) and reason is None else None
            write(output, video, fps, content, summary, strategy or "profile", shown, written, film)
