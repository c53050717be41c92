"""`freeloc report`: results of bench/tables.py and videos as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freeloc_fx.evaluation.report.page import render
from freeloc_fx.evaluation.report.rows import Results
from freeloc_fx.files import write_text
from freeloc_fx.generation.video import check_output

from . import common
from .common import UsageError, exits, out

__all__ = ["report"]


def report(
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a tables.json, repeat for more models.", show_default="none"),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of more .mp4 files to show side by side.", show_default="none")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .html file; an older one is replaced.")] = Path(
        "report.html"
    ),
    megabytes: Annotated[int, typer.Option(min=1, help="Most that all videos together may take.")] = 64,
    debug: common.Debug = False,
) -> None:
    """Make one HTML page of tables, plots, claims with their verdicts, and playing videos. It needs no other file."""
    with exits(debug):
        check_output(output, (".html",))
        if not results and videos is None:
            raise UsageError("report: expected --results FOLDER or --videos FOLDER, found neither")
        text = render([Results.load(folder) for folder in results or ()], videos, megabytes * 2**20)
        write_text(output, text)
        out.print(f"{output}, {len(text) / 1e6:.1f} MB", highlight=False, soft_wrap=True)
