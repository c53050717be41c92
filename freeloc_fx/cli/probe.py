"""`freeloc probe`: measure a checkpoint's layers and write its profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.table import Table

from .. import generate as library
from ..metrics import score
from ..probe import probe as run_probe
from ..profile import Profile
from ..video import check_output
from . import common
from .common import EXAMPLE, exits, load, out, prepare, progress, scorable

__all__ = ["probe"]


def probe(
    model: common.Model = library.TINY_WAN,
    output: Annotated[Path, typer.Option("-o", "--output", help="The profile, a .json file.")] = Path("profile.json"),
    mode: Annotated[
        Literal["observe", "full"],
        typer.Option(help="observe: two generations. full: the paper's, one for each layer and shift."),
    ] = "observe",
    prompts: Annotated[list[str] | None, typer.Option("--prompt", help="Repeat for more; one for each seed.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    trained: Annotated[
        int | None, typer.Option(min=2, help="Latent frames the model was trained on.", show_default="its profile's")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Target length in frames.", show_default="four times")] = None,
    steps: common.Steps = None,
    height: common.Height = None,
    width: common.Width = None,
    dtype: common.DtypeOption = "auto",
    device: common.DeviceOption = "auto",
    journal: Annotated[
        Path | None, typer.Option(help="Folder of finished units, for resuming.", show_default="OUTPUT.journal")
    ] = None,
    debug: common.Debug = False,
) -> None:
    """Measure how sensitive each layer is to position and to context, and assign its strategy.

    A probe that was interrupted goes on from its journal when the same command runs again.
    """
    folder = journal if journal is not None else output.with_suffix(".journal")
    with exits(debug, lambda: f"finished units are in {folder}, the same command goes on"):
        check_output(output, (".json",))
        facts = library.Facts.read(model)
        if trained is None:
            trained = Profile.for_model(facts.transformer).trained_frames
        target = (trained - 1) * 4 + 1 if frames is None else (frames - 1) // facts.temporal + 1
        wanted = frames if frames is not None else (target - 1) * facts.temporal + 1
        job = prepare(model, None, ["direct"], wanted, height, width, steps, dtype=dtype, device=device)
        texts = prompts or [EXAMPLE]
        scored = mode == "full" and all(scorable(job, text) is None for text in texts)
        pipe = load(job)
        with progress() as bar:
            task = bar.add_task("probing", total=None)
            profile = run_probe(
                pipe,
                prompts=texts,
                trained_frames=trained,
                target_frames=target,
                mode=mode,
                seeds=range(seeds),
                steps=job.steps,
                height=job.height,
                width=job.width,
                reward=(lambda video, seed: score(video, texts[seed % len(texts)]).composite) if scored else None,
                journal=folder,
                on_unit=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
            )
        profile = replace(profile, name=output.stem)
        profile.save(output)
        out.print(_table(profile))
        out.print(f"{output}; the measurements are kept in {folder}", highlight=False, soft_wrap=True)


def _table(profile: Profile) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("layer", "position", "context", "temp.", "strategy"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for layer, found in (profile.sensitivities or {}).items():
        cells = [
            f"{value:.3f}" + (f" +-{error:.3f}" if error is not None else "")
            for value, error in ((found.position, found.position_error), (found.context, found.context_error))
        ]
        factor = profile.settings(layer, profile.trained_frames + 1)["temperature"]
        table.add_row(str(layer), *cells, f"{factor:.3f}", profile.strategy_name(layer))
    return table
