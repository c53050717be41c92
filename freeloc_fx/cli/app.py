"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from freeloc_fx.files import installed_version

from .bench import bench
from .compare import compare
from .evaluate import evaluate_videos
from .generate import generate
from .inspect import inspect
from .latents import decode
from .probe import probe
from .profiles import profiles
from .report import report

__all__ = ["app"]


app = typer.Typer(
    name="freeloc",
    help="Generate long video from a video diffusion model that was trained on short clips, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"freeloc {installed_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


app.command()(generate)


app.command()(decode)


app.command()(compare)


app.command("eval")(evaluate_videos)


app.command()(inspect)


app.command()(probe)


app.command()(bench)


app.command()(report)


app.add_typer(profiles, name="profiles")
