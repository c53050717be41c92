"""`freeloc bench`: the short benchmarks, in a minute or so. The long ones are scripts in the repository's bench/."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.table import Table

from freeloc_fx.attention import op
from freeloc_fx.attention.registry import Specs
from freeloc_fx.evaluation.cost import count_blocks, make_spec, mask_cost, peak_bytes
from freeloc_fx.generation.video import check_output
from freeloc_fx.method.build import parse

from .common import UsageError, exits, out, write_json
from .outputs import check_report

__all__ = ["bench"]


QUESTIONS = ("attention", "masks", "memory")


HEADS, DIM = 4, 64


def bench(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[attention] [masks] [memory]", show_default="all three")
    ] = None,
    strategies: Annotated[str, typer.Option(help="Names, separated by commas.")] = "vrpr,tsa,vrpr+tsa",
    extension: Annotated[int, typer.Option(min=1, help="Times the trained length of 21 latent frames.")] = 4,
    size: Annotated[str, typer.Option(help="Tokens of a frame, height x width.")] = "8x8",
    attention: Annotated[str, typer.Option(help="The lowering: tiles, calls, flex or reference.")] = "tiles",
    device: Annotated[str, typer.Option(help="Where attention runs.")] = "cpu",
    runs: Annotated[int, typer.Option(min=1, help="Alternating runs; the median counts.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure long attention here: time against dense attention, block masks, memory."""
    with exits(debug):
        if json is not None:
            check_output(json, None)
            check_report(json)
        wanted = list(questions or QUESTIONS)
        for name in wanted:
            if name not in QUESTIONS:
                raise UsageError(f"bench: expected {', '.join(QUESTIONS)}, found {name!r}")
        names = strategies.split(",")
        for name in names:
            parse(name)
        height, width = _size(size)
        _check_device(device)
        try:
            attention = op.choose(attention, torch.device(device))
        except ValueError as error:
            raise UsageError(str(error)) from error
        rows: dict[str, list[dict[str, Any]]] = {}
        if "attention" in wanted:
            rows["attention"] = _attention(names, extension, height, width, attention, device, runs)
            _show("time of one long attention", rows["attention"])
        if "masks" in wanted:
            rows["masks"] = [_masks(name, extension, height, width) for name in names]
            _show("tiles of 128x128 that FlexAttention computes", rows["masks"])
        if "memory" in wanted:
            rows["memory"] = [_memory(name, extension, height, width, attention, device) for name in names]
            _show("peak memory, the output included", rows["memory"])
        if json is not None:
            write_json(json, rows)


def _check_device(name: str) -> None:
    """Refuse a device that cannot hold numbers here."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(f"--device: expected a device that torch can use here, found {name!r} ({why})") from error


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        raise UsageError(f"--size: expected height x width, such as 8x8, found {text!r}") from None
    if height < 1 or width < 1:
        raise UsageError(f"--size: expected positive numbers, found {text!r}")
    return height, width


def _tensors(tokens: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, tokens, HEADS, DIM, generator=generator).transpose(1, 2).to(device) for _ in range(3)]


def _attention(
    names: list[str], extension: int, height: int, width: int, lowering: str, device: str, runs: int
) -> list[dict[str, Any]]:
    specs = {name: make_spec(name, extension, height, width, DIM) for name in names}
    first = next(iter(specs.values()))
    q, k, v = _tensors(first.grid.video, device)
    times: dict[str, list[float]] = {name: [] for name in ("dense", *specs)}

    def once(name: str) -> float:
        started = time.perf_counter()
        if name == "dense":
            F.scaled_dot_product_attention(q, k, v)
        else:
            op.run(lowering, q, k, v, specs[name])
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with torch.no_grad():
        for name in times:  # tables, masks and kernels are made once
            once(name)
        for _ in range(runs):
            for name, seconds in times.items():
                seconds.append(once(name))
    dense = statistics.median(times["dense"])
    kept = {"dense": 1.0} | {name: known.kept_pairs() for name, known in specs.items()}
    return [
        {
            "strategy": name,
            "tokens": first.grid.video,
            "milliseconds": 1e3 * statistics.median(seconds),
            "of dense": statistics.median(seconds) / dense,
            "pairs kept": kept[name],
            "time / work": statistics.median(seconds) / dense / kept[name],
        }
        for name, seconds in times.items()
    ]


def _masks(name: str, extension: int, height: int, width: int) -> dict[str, Any]:
    known = make_spec(name, extension, height, width, DIM)
    tiles = count_blocks(known)
    seconds, peak = mask_cost(known)
    return {
        "strategy": name,
        "calls": tiles.calls,
        "full": tiles.full / tiles.dense,
        "partial": tiles.partial / tiles.dense,
        "computed": tiles.area / known.grid.video**2,
        "build, ms": 1e3 * seconds,
        "peak, MB": peak / 1e6,
    }


def _memory(name: str, extension: int, height: int, width: int, lowering: str, device: str) -> dict[str, Any]:
    known = make_spec(name, extension, height, width, DIM)
    q, k, v = _tensors(known.grid.video, device)
    specs = Specs()  # the operator finds a spec as long as this lives
    key, own = specs.add(known), q.nbytes + k.nbytes + v.nbytes

    def run() -> torch.Tensor:
        result: torch.Tensor = op.long_attention(q, k, v, key, lowering, None, None, False)
        return result

    with torch.no_grad():
        run()
        peak = peak_bytes(run, device)
    return {"strategy": name, "q, k, v, MB": own / 1e6, "peak, MB": peak / 1e6, "of q, k, v": peak / own}


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    out.print(table)
