"""Denoised latents kept on disk until the video made of them is there, and `freeloc decode`, which makes it later."""

from __future__ import annotations

import itertools
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.latents import Latents, LatentsError
from freeloc_fx.generation.video import check_rate

from . import common
from .common import Job, UsageError, err, exits, load, scorable, warn
from .outputs import check_video
from .writing import describe, filmed, write

__all__ = ["SUFFIX", "decode", "kept"]


SUFFIX = ".latents.safetensors"


@contextmanager
def kept(
    output: Path, settings: Mapping[str, Any], strategy: str | None, job: Job, file: Path | None = None
) -> Iterator[Callable[[Latents], None]]:
    """Keep a generation's latents for as long as the context lasts; if it fails, they stay, and where is said.

    They are written before they are decoded: a process that the system kills for its memory, which decoding a long clip
    takes most of, says nothing.

    Args:
        output: the video that is to be made.
        settings: of the request, kept with them.
        strategy: its name; None for the profile's.
        job: the checked request.
        file: where to, which nobody else writes; None: beside the output, under a name that is free once they are
            there.

    Yields:
        What takes the latents, for `generate(on_latents=...)`.
    """
    there: list[Path] = []

    def keep(latents: Latents) -> None:
        facts = {**latents.facts, "summary": describe(latents.plan, strategy, job.latent[0])}
        known = replace(latents, settings=dict(settings), facts=facts)
        failures: list[str] = []
        for folder in (output.parent, Path(tempfile.gettempdir())):
            try:
                if file is not None and not failures:
                    there.append(known.save(file))
                else:
                    there.append(_save_new(known, folder, output.stem))
                return
            except OSError as error:
                failures.append(str(error))
        warn(f"the denoised latents are not kept, so that what fails from here on loses them: {'; '.join(failures)}")

    try:
        yield keep
    except BaseException:
        for place in there:
            command = f"freeloc decode {shlex.quote(str(place))} -o {shlex.quote(str(output))}"
            err.print(f"denoising is done, its latents are in {place}: {command}", highlight=False, soft_wrap=True)
        raise
    for place in there:
        place.unlink(missing_ok=True)


def _save_new(latents: Latents, folder: Path, stem: str) -> Path:
    """Save under a name that is not taken: what an earlier failure left there, or another run has, is somebody's work.

    The name is taken by an empty file, which the system makes for one process only.
    """
    for number in itertools.count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}{SUFFIX}"
        try:
            path.touch(exist_ok=False)
            break
        except FileExistsError:
            continue
    try:
        return latents.save(path)
    except BaseException:
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
        raise


def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="The file that a failed run left.")],
    output: common.VideoOutput = Path("out.mp4"),
    model: Annotated[
        str | None, typer.Option("--model", help="As of generate.", show_default="the one that made them")
    ] = None,
    tiling: Annotated[
        bool | None,
        typer.Option(
            "--tiling/--no-tiling", help="Decode in spatial tiles, which takes less memory.",
            show_default="tiles for large clips",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.1, max=240.0, help="Frames per second of the file.", show_default="that of the run"),
    ] = None,
    dtype: common.DtypeOption = "auto",
    device: common.DeviceOption = "auto",
    debug: common.Debug = False,
) -> None:  # fmt: skip
    """Make the video of denoised latents, which a run that failed after denoising has left.

    Writes what that run would have written; the transformer does not run again. The latents stay where they are.
    """
    with exits(debug):
        check_video(output, [("the latents", latents), ("--model", model)])
        found = Latents.load(latents)
        settings = dict(found.settings)
        source = model or settings.get("model")
        if not isinstance(source, str):
            raise UsageError(f"{latents}: it does not say which model made it; expected --model")
        try:
            frames, height, width = (int(settings[name]) for name in ("frames", "height", "width"))
        except (KeyError, TypeError, ValueError):
            raise LatentsError(
                f"{latents}: expected the size of a video among its settings, found {settings}"
            ) from None
        rate = fps if fps is not None else float(settings.get("fps") or 16.0)
        check_rate(output, rate)
        job = common.prepare(source, None, ["direct"], frames, height, width, dtype=dtype, device=device)
        pipe = load(job)
        with err.status("decoding"), filmed(output, job, rate) as film:
            take = None if film is None else film.add
            video = library.decode_latents(pipe, found, vae_tiling=tiling, on_frames=take)
        report = {"settings": {**settings, "fps": rate}, "seconds": video.seconds, "plan": found.facts.get("plan")}
        prompt = settings.get("prompt") or ""
        shown = prompt if isinstance(prompt, str) and scorable(job, prompt) is None else None
        summary, strategy = str(found.facts.get("summary") or ""), str(settings.get("strategy") or "profile")
        write(output, video, rate, report, summary, strategy, shown, film=film)
