"""What the commands share: options, exit codes, the model, the progress bar."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from freeloc_fx.errors import FreelocError
from freeloc_fx.files import write_text
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.tiny_wan.scenes import SIZE, parse_prompt
from freeloc_fx.method.build import parse
from freeloc_fx.method.shards import Shards
from freeloc_fx.planning.profile import Profile

__all__ = [
    "EXAMPLE",
    "Job",
    "UsageError",
    "exits",
    "load",
    "out",
    "prepare",
    "progress",
    "scorable",
    "warn",
    "without_nan",
    "write_json",
]


EXAMPLE = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"


out = Console(markup=False, emoji=False)  # what comes from outside, a file name say, is no markup


err = Console(stderr=True, markup=False, emoji=False)


Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["auto", "eager", "inductor"]
Attention = Literal["auto", "flex", "tiles", "calls", "reference"]


Model = Annotated[
    str,
    typer.Option("--model", help="tiny-wan or tiny-joint (embedded), the folder of a diffusers pipeline, or a hub id."),
]


ProfileName = Annotated[
    str | None,
    typer.Option("--profile", help="A shipped profile or a JSON file.", show_default="the one for the model"),
]


VideoOutput = Annotated[
    Path,
    typer.Option("-o", "--output", help="A .mp4 or .gif file; an older one is replaced when all is done."),
]


Height = Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default="the model's")]


Width = Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default="the model's")]


Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")]


Guidance = Annotated[float | None, typer.Option(min=0.0, help="Guidance scale.", show_default="the model's")]


Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What to avoid.", show_default="none")]


DtypeOption = Annotated[Dtype, typer.Option(help="Of the weights; auto: bfloat16 on CUDA, float32 elsewhere.")]


DeviceOption = Annotated[Device, typer.Option(help="auto: CUDA where there is one.")]


BackendOption = Annotated[Engine, typer.Option(help="auto: inductor on CUDA, eager elsewhere.")]


AttentionOption = Annotated[
    Attention,
    typer.Option(
        help="How long attention runs; auto: flex on CUDA with inductor; on CPU tiles, or calls where clearly quicker."
    ),
]


Fps = Annotated[float, typer.Option(min=0.1, max=240.0, help="Frames per second of the file.")]


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class UsageError(FreelocError, ValueError):
    """An option's value makes no sense."""


@contextmanager
def exits(debug: bool = False, interrupted: Callable[[], str] = lambda: "nothing written") -> Iterator[None]:
    """Turn what ends a command into one line and an exit code: 2 bad input, 1 failure, 130 Ctrl-C.

    Args:
        debug: print the traceback too.
        interrupted: what is on disk after Ctrl-C or a failure.
    """
    code = 1
    try:
        yield
        return
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        code, message = 130, f"interrupted, {interrupted()}"
    except torch.OutOfMemoryError as error:
        message = (
            f"error: out of memory on the device ({str(error).splitlines()[0]}); try fewer frames or a smaller size"
        )
    except FreelocError as error:
        code, message = 2 if isinstance(error, ValueError) else 1, f"error: {error}"
    except Exception as error:
        message = f"error: {type(error).__name__}: {str(error).strip() or 'no message'}"
        if not debug:
            message = "\n".join([message.splitlines()[0], "(--debug shows where)"])
    if code == 1 and (there := interrupted()) != "nothing written":
        message += f"\n{there}"
    if debug:
        traceback.print_exc()
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Print a warning to standard error.

    Args:
        message: one line.
    """
    err.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Job:
    """A checked request: everything but prompt, seed and strategy.

    Args:
        model: as the command line names it.
        profile: None where the untouched model runs alone.
        frames: video frames.
        height: pixels.
        width: pixels.
        steps: denoising steps.
        guidance: guidance scale.
        negative_prompt: what to avoid, if anything.
        dtype: of the weights.
        device: where the model runs.
        backend: "eager" or "inductor".
        attention: the lowering, or "auto".
        latent: latent frames, and height and width in tokens.
    """

    model: str
    profile: Profile | None
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    negative_prompt: str | None
    dtype: torch.dtype
    device: str
    backend: str
    attention: str
    latent: tuple[int, int, int]

    def run(
        self,
        pipe: Any,
        prompt: str | Mapping[int, str],
        seed: int,
        on_step: Callable[[int, int], None],
        latents: torch.Tensor | None = None,
        on_latents: Callable[[library.Latents], None] | None = None,
        on_frames: Callable[[Any], None] | None = None,
        shards: Shards | None = None,
        timing: Mapping[str, Any] | None = None,
    ) -> library.Video:
        """Generate one video.

        Args:
            pipe: the loaded pipeline.
            prompt: what to show, or from which frame on to show what.
            seed: of all noise.
            on_step: called as on_step(done, total) after each denoising step.
            latents: initial noise; None for the pipeline's own.
            on_latents: called with the denoised latents before they are decoded.
            on_frames: takes the frames as they are decoded.
            shards: ranks that share the decoding.
            timing: `fps` and `blend` of a prompt that changes over time, as of `timeline`.

        Returns:
            The video.
        """
        return library.generate(
            pipe,
            prompt,
            frames=self.frames,
            height=self.height,
            width=self.width,
            steps=self.steps,
            guidance=self.guidance,
            seed=seed,
            negative_prompt=self.negative_prompt,
            on_step=on_step,
            latents=latents,
            on_latents=on_latents,
            on_frames=on_frames,
            shards=shards,
            **(timing or {}),
        )


def prepare(
    model: str,
    profile: str | None,
    strategies: list[str | None],
    frames: int,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    backend: str = "auto",
    attention: str = "auto",
) -> Job:
    """Check everything that can be checked without the weights: strategies, profile, model, sizes, device.

    Args:
        model: as the command line names it.
        profile: a shipped profile or a file; None for the one for the model.
        strategies: names, "profile" and None among them.
        frames: video frames.
        height: pixels; None for the model's.
        width: pixels; None for the model's.
        steps: denoising steps; None for the model's.
        guidance: guidance scale; None for the model's.
        negative_prompt: what to avoid, if anything.
        dtype: "auto" or a name of torch's.
        device: "auto" or where the model runs.
        backend: "auto", "eager" or "inductor".
        attention: "auto" or a lowering.

    Returns:
        The checked request.

    Raises:
        FreelocError: what is wrong with the request.
    """
    for name in strategies:
        if name not in (None, "profile"):
            parse(name)
    if not math.isfinite(guidance or 0.0):
        raise UsageError(f"--guidance: expected a finite number from 0, found {guidance}")
    loaded = Profile.load(profile) if profile is not None else None
    facts = library.Facts.read(model)
    if loaded is not None or any(name != "direct" for name in strategies):
        loaded = library.choose_profile(facts.transformer, loaded)
    usual = library.defaults(facts)
    height, width = height or usual.height, width or usual.width
    latent = library.check_request(facts, frames, height, width)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device 'cuda': this machine has no CUDA device that torch can use")
    elif device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device 'mps': this machine has no MPS device that torch can use")
    cuda = device == "cuda"
    return Job(
        model=model,
        profile=loaded,
        frames=frames,
        height=height,
        width=width,
        steps=usual.steps if steps is None else steps,
        guidance=usual.guidance if guidance is None else guidance,
        negative_prompt=negative_prompt,
        dtype=getattr(torch, ("bfloat16" if cuda else "float32") if dtype == "auto" else dtype),
        device=device,
        backend=("inductor" if cuda else "eager") if backend == "auto" else backend,
        attention=attention,
        latent=latent,
    )


def load(job: Job, transformer_only: bool = False) -> Any:
    """Load the pipeline of a request, saying so on standard error.

    Args:
        job: the request.
        transformer_only: without text encoder and VAE.

    Returns:
        The pipeline.
    """
    with err.status(Text(f"loading {job.model}")):
        return library.load_pipeline(job.model, dtype=job.dtype, device=job.device, transformer_only=transformer_only)


def progress() -> Progress:
    """A progress bar with time left, on standard error."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=err,
    )


def scorable(job: Job, prompt: str | Mapping[int, str]) -> str | None:
    """Say whether videos can be scored against a prompt.

    Args:
        job: the request.
        prompt: the prompt, or when it is what.

    Returns:
        None if they can, else the reason why not.
    """
    if not isinstance(prompt, str):
        return "the prompt changes over time"
    if (job.height, job.width) != (SIZE, SIZE) or job.frames < 2:
        return f"scores need a video of {SIZE}x{SIZE} pixels and two frames or more"
    try:
        parse_prompt(prompt)
    except ValueError as error:
        return str(error)
    return None


def without_nan(value: Any) -> Any:
    """Make data fit for JSON, which has no NaN and no infinity: they become None.

    Args:
        value: nested dictionaries, lists and tuples of plain values.

    Returns:
        The same with lists for tuples.
    """
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path | None, data: Any) -> None:
    """Write JSON to a file, whole or not at all, or to standard output.

    Args:
        path: the file; None for standard output.
        data: JSON data without NaN.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # of a file name that is no text
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    write_text(path, text)
