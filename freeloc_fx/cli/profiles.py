"""`freeloc profiles`: list, show, validate."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from freeloc_fx.errors import ProfileError
from freeloc_fx.planning.profile import Profile

from .common import err, exits, out

__all__ = ["profiles"]


profiles = typer.Typer(help="The profiles that say what each layer of a model gets.", no_args_is_help=True)


@profiles.command("list")
def show_all() -> None:
    """List the shipped profiles."""
    with exits():
        table = Table()
        for column in ("name", "model", "trained on", "layers", "source"):
            table.add_column(column, no_wrap=column == "name")
        for name in Profile.names():
            profile = Profile.load(name)
            model = "any" if profile.model is None else str(profile.model["class"])
            count = "any number" if profile.layer_count is None else str(profile.layer_count)
            source = str((profile.provenance or {}).get("source", ""))
            table.add_row(name, model, f"{profile.trained_frames} latent frames", count, source)
        out.print(table)


@profiles.command("show")
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped profile, or a JSON file.")]) -> None:
    """Print a profile as JSON."""
    with exits():
        typer.echo(_text(name), nl=False)


def _text(name: str) -> str:
    Profile.load(name)  # refuses what is not a profile
    if name in Profile.names():
        return (importlib.resources.files("freeloc_fx.profiles") / f"{name}.json").read_text(encoding="utf-8")
    return Path(name).read_text(encoding="utf-8")


@profiles.command("validate")
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="JSON files, or names of shipped profiles.")],
) -> None:
    """Check profiles; exit code 2 if one is not valid."""
    bad = 0
    with exits():
        for name in files:
            try:
                profile = Profile.load(name)
            except ProfileError as error:
                bad += 1
                err.print(f"{name}: not valid: {error}", markup=False, highlight=False, soft_wrap=True)
            else:
                words = f"{name}: valid, {profile.name!r}, trained on {profile.trained_frames} latent frames"
                out.print(words, markup=False, highlight=False, soft_wrap=True)
    if bad:
        raise typer.Exit(2)
