"""`freeloc inspect`: what `transform` would do with a model at one length, as a table, JSON and pictures."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from torch import nn

from freeloc_fx.compiler.listing import Listing
from freeloc_fx.compiler.on_paper import plan_on_paper
from freeloc_fx.compiler.runner import PassRun
from freeloc_fx.compiler.transform import rehearse
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.video import check_folder, check_output
from freeloc_fx.generation.without_weights import without_weights
from freeloc_fx.planning.plan import Plan, PlannedSite
from freeloc_fx.planning.profile import Profile

from . import common
from .common import Job, exits, load, out, prepare, write_json
from .outputs import check_apart, check_report
from .shares import shares, shares_notes, shares_table

__all__ = ["inspect"]


def inspect(
    model: common.Model = library.TINY_WAN,
    profile: common.ProfileName = None,
    strategy: Annotated[
        str | None, typer.Option(help="One for every layer.", show_default="the profile's, layer by layer")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Length of the video; 4n+1 for Wan.", show_default="321")] = None,
    height: common.Height = None,
    width: common.Width = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything as JSON; - prints it instead of the table.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for pictures of each strategy's position map and mask.")
    ] = None,
    latent: Annotated[
        str | None,
        typer.Option(help="Latent frames x height x width, where --model is a configuration.", metavar="33x60x104"),
    ] = None,
    trained_frames: Annotated[
        int | None, typer.Option(min=2, help="Latent frames of the training clips, where no profile is for the model.")
    ] = None,
    passes: Annotated[
        bool, typer.Option("--passes", help="Also list the passes: matches, seconds, how operations changed.")
    ] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Also print the first rewritten block before and after, as CUDA gets it.")
    ] = False,
    ranks: Annotated[
        int | None,
        typer.Option(min=2, help="Also count what so many GPUs would exchange and hold.", show_default="none"),
    ] = None,
    debug: common.Debug = False,
) -> None:
    """Show the attention sites that were found, their RoPE and token grid, and each layer's strategy and cost.

    --model may also be a transformer's config.json, or a class name of diffusers: no weights are needed then.
    """
    with exits(debug):
        to_screen = json_file == Path("-")
        listings: list[Listing] = []
        if json_file is not None and not to_screen:
            check_output(json_file, (".json",))
            check_apart([json_file], [("--profile", profile), ("--model", model)])
            check_report(json_file)
        if pictures is not None:
            check_folder(pictures)
        if model.endswith(".json") or re.fullmatch(r"[A-Z]\w*Model", model):
            given = {"--frames": frames, "--height": height, "--width": width}
            if pixels := [option for option, value in given.items() if value is not None]:
                raise common.UsageError(
                    f"{', '.join(pixels)}: of a model without its VAE only latent sizes are known; expected --latent "
                    f"FRAMESxHEIGHTxWIDTH beside --model {model}"
                )
            transformer, chosen, size = _from_configuration(model, profile, strategy, latent, trained_frames)
            plan, runs = _planned(transformer, chosen, size, passes, graph, listings)
            name = type(transformer).__name__
            title = f"{name}: {plan.grid.frames} frames of tokens, from its configuration"
            data = {"model": model, "class": name, "request": {"latent": latent}, **_totals(plan), **plan.to_dict()}
        elif latent is not None or trained_frames is not None:
            raise common.UsageError("--latent and --trained-frames go with --model config.json; else give --frames")
        else:
            job = prepare(model, profile, [None, strategy], 321 if frames is None else frames, height, width)
            assert job.profile is not None
            chosen = job.profile if strategy in (None, "profile") else job.profile.with_layers(str(strategy))
            transformer = _transformer(job, counted=ranks is not None and not (passes or graph))
            plan, runs = _planned(transformer, chosen, job.latent, passes, graph, listings)
            name = type(transformer).__name__
            title = f"{name} of {job.model}: {job.frames} frames of {job.width}x{job.height} pixels"
            data = _report(job, name, plan)
        if ranks is not None:
            data["ranks"] = shares(transformer, plan, ranks)
        if passes:
            data["passes"] = [[asdict(run) for run in graph] for graph in runs]
        if graph:
            data["graph"] = [asdict(listing) for listing in listings[:1]]
        if to_screen:
            write_json(None, data)
        else:
            _show(title, plan)
            if ranks is not None:
                out.print(shares_table(data["ranks"]))
                for line in shares_notes(data["ranks"]):
                    out.print(line, highlight=False, markup=False, soft_wrap=True)
            if passes:
                _show_passes(runs)
            if graph:
                _show_graph(listings)
        if json_file is not None and not to_screen:
            write_json(json_file, data)
            out.print(f"{json_file}", highlight=False, soft_wrap=True)
        if pictures is not None:
            from .pictures import draw

            for path in draw(plan, pictures):
                if not to_screen:
                    out.print(f"{path}", highlight=False, soft_wrap=True)


def _attention_of(graph: bool) -> str:
    """How attention is to run: with --graph as on CUDA, whose graph says what it does."""
    return "flex" if graph else "auto"


def _show_graph(listings: list[Listing]) -> None:
    for listing in listings[:1]:
        before = set(listing.before)
        for title, lines in (("before", listing.before), ("after", listing.after)):
            out.print(f"\n{listing.path} {title}", highlight=False, markup=False)
            for line in lines:
                mark = "+" if title == "after" and line not in before else " "
                out.print(f"  {mark} {line}", highlight=False, markup=False, soft_wrap=True)


def _from_configuration(
    source: str, profile: str | None, strategy: str | None, latent: str | None, trained_frames: int | None
) -> tuple[nn.Module, Profile, tuple[int, int, int]]:
    """A model without weights, its profile, and the latent size in question."""
    sizes = re.fullmatch(r"(\d{1,9})x(\d{1,9})x(\d{1,9})", latent or "")
    if sizes is None or not all(map(int, sizes.groups())):
        raise common.UsageError(f"--latent: expected FRAMESxHEIGHTxWIDTH, such as 33x60x104, found {latent!r}")
    model = without_weights(source)
    if trained_frames is not None:
        if profile is not None:
            raise common.UsageError("--trained-frames: expected without --profile, which says it, found both")
        chosen = Profile(trained_frames=trained_frames, layers="vrpr+temp", name="--trained-frames")
    else:
        chosen = library.choose_profile(model, Profile.load(profile) if profile is not None else None)
    if strategy not in (None, "profile"):
        chosen = chosen.with_layers(str(strategy))
    frames, height, width = map(int, sizes.groups())
    return model, chosen, (frames, height, width)


def _transformer(job: Job, counted: bool) -> nn.Module:
    """The model of a request; without its weights where sizes alone are asked for and a configuration tells them."""
    if counted and job.model not in library.EMBEDDED:
        config: Any = library.Facts.read(job.model).transformer.config
        made = without_weights(config)
        # RoPE that is learned is in the weights only.
        if not any("freq" in name for name, _ in made.named_parameters()):
            return made
    found: nn.Module = library.Facts.of(load(job, transformer_only=True)).transformer
    return found


def _planned(
    model: nn.Module,
    profile: Profile,
    size: tuple[int, int, int],
    passes: bool,
    graph: bool,
    listings: list[Listing],
) -> tuple[Plan, list[list[PassRun]]]:
    """The plan, and the passes where somebody wants to see them: they run on the graph of the real size."""
    frames, height, width = size
    if not (passes or graph):
        return plan_on_paper(model, profile, frames=frames, height=height, width=width), []
    return rehearse(
        model,
        profile,
        frames=frames,
        height=height,
        width=width,
        attention=_attention_of(graph),
        listings=listings,
    )


def _totals(plan: Plan) -> dict[str, Any]:
    kept = sum(s.kept for s in plan.sites) / len(plan.sites)
    return {"totals": {"kept_pairs": kept, "attention_arithmetic": _attention(plan) / _attention(plan, dense=True)}}


def _report(job: Job, name: str, plan: Plan) -> dict[str, Any]:
    request = {"frames": job.frames, "height": job.height, "width": job.width, "latent": list(job.latent)}
    return {"model": job.model, "class": name, "request": request, **_totals(plan), **plan.to_dict()}


def _attention(plan: Plan, dense: bool = False) -> float:
    """Multiply-adds of q k and weights v over all video self-attentions, for one forward pass of one sample."""
    return sum(2.0 * s.heads * s.head_dim * s.grid.sequence**2 * (1.0 if dense else s.arithmetic) for s in plan.sites)


def _show(title: str, plan: Plan) -> None:
    def say(text: str) -> None:
        out.print(text, highlight=False, markup=False, soft_wrap=True)

    say(title)
    say(str(plan).splitlines()[0])
    if plan.grid.further or plan.grid.turned or plan.grid.uneven:
        for words, first, end in plan.grid.spans():
            say(f"tokens {first}-{end - 1}: {words}")
    for rope, sites in _distinct(plan, lambda s: s.rope).items():
        fast, slow = max(map(max, rope.omega)), min(map(min, rope.omega))
        say(
            f"RoPE ({_layers(sites)}, {sites[0].heads} heads): {rope.pairing}, "
            f"{len(rope.first)} of {rope.head_dim // 2} channel pairs turn with the frame, "
            f"by {fast:.3g} to {slow:.3g} rad per latent frame; measured to {rope.residual:.1g}"
        )
    for strategy, sites in _distinct(plan, lambda s: s.strategy).items():
        settings = {k: v for k, v in strategy.describe().items() if k != "name"}
        say(f"{strategy.name} ({_layers(sites)}): " + ", ".join(f"{k} {_short(v)}" for k, v in settings.items()))
    out.print(_table(plan))
    dense, kept = _attention(plan, dense=True), _attention(plan)
    say(f"Attention: {kept:.3g} multiply-adds a step and sample against {dense:.3g} dense ({kept / dense:.1%})")
    for path, reason in plan.skipped:
        say(f"left alone: {path}: {reason}")
    for note in plan.notes:
        say(f"note: {note}")


def _table(plan: Plan) -> Table:
    measured = any(s.position_sensitivity is not None for s in plan.sites)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    columns = ["layer", "site", "strategy", "temp.", "pairs kept", "arithmetic"]
    for column in columns + (["position", "context"] if measured else []):
        table.add_column(column, justify="left" if column in ("site", "strategy") else "right")
    for s in plan.sites:
        row = [
            str(s.layer),
            s.path,
            s.strategy.name,
            s.strategy.temperatures,
            f"{s.kept:.1%}",
            f"{s.arithmetic:.1%}",
        ]
        if measured:
            row += ["-" if v is None else f"{v:.3g}" for v in (s.position_sensitivity, s.context_sensitivity)]
        table.add_row(*row)
    return table


def _show_passes(graphs: list[list[PassRun]]) -> None:
    """Each captured graph's passes, a line each; graphs with the same passes (equal blocks) once."""
    for index, runs in enumerate(graphs):
        same = [(run.name, run.matched, run.operations) for run in runs]
        if any(same == [(run.name, run.matched, run.operations) for run in other] for other in graphs[:index]):
            continue
        for run in runs:
            out.print(f"  {run}", highlight=False, markup=False, soft_wrap=True)


def _distinct(plan: Plan, of: Any) -> dict[Any, list[PlannedSite]]:
    groups: dict[Any, list[PlannedSite]] = {}
    for site in plan.sites:
        groups.setdefault(of(site), []).append(site)
    return groups


def _layers(sites: list[PlannedSite]) -> str:
    """Layer numbers with runs shortened: "layers 0-3, 7"."""
    numbers = sorted({s.layer for s in sites})
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    words = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
    return f"layer{'s' if len(numbers) > 1 else ''} {words}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
