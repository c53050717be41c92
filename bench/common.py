"""What every bench script records: hardware, versions, command, date; results as JSON, replaced atomically."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from freeloc_fx.files import write_text

RESULTS = Path(__file__).parent / "results"

ALLOCATION = ("MALLOC_", "GLIBC_TUNABLES")
"""Begin the names of variables that say whether freed memory is kept or faulted in again, which long clips feel."""


def environment() -> dict[str, Any]:
    """Hardware and versions, as a reader needs them to judge a figure."""
    from importlib.metadata import version

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(ALLOCATION)},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "command": "python " + " ".join([f"bench/{Path(sys.argv[0]).name}", *map(_of_anywhere, sys.argv[1:])]),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Flags of /proc/cpuinfo -> what they are called, the best first."""


def processor() -> str:
    """The processor's name and the best of its vector instructions, as in "Intel Xeon (AMX)"."""
    info = Path("/proc/cpuinfo")
    found = dict(re.findall(r"^(model name|flags)\s*: (.*)$", info.read_text(), re.M)) if info.exists() else {}
    name = found.get("model name") or platform.processor() or platform.machine()
    name = " ".join(re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*", "", name).split())
    flags = set(found.get("flags", "").split())
    best = next((word for flag, word in INSTRUCTIONS.items() if flag in flags), None)
    return f"{name} ({best})" if best else name


def _of_anywhere(argument: str) -> str:
    """An argument without the folders of the machine it was given on."""
    return Path(argument).name if os.path.isabs(argument) else argument


def results_name(base: str, model: str) -> str:
    """Name of a question's result files: the question's own for tiny-wan, with the model's name for another."""
    return base if model == "tiny-wan" else f"{base}_{Path(model).name.replace('-', '_')}"


def mark_lengths(axis: Any, rows: Iterable[dict[str, Any]]) -> None:
    """Ticks of a logarithmic x axis at the rows' lengths, which are multiples of the trained one: 4x, 10x."""
    from matplotlib.ticker import NullLocator

    lengths = sorted({r["extension"] for r in rows})
    axis.set_xticks(lengths, [f"{n}x" for n in lengths])
    axis.xaxis.set_minor_locator(NullLocator())


def save_table(name: str, table: str, folder: Path = RESULTS) -> None:
    """Write NAME.md into a folder: the table with the environment under it."""
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{name}.md", f"{table}\n\nMeasured: {json.dumps(environment())}\n")


def save(name: str, data: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write NAME.json into a folder, with the environment beside the data."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    write_text(path, json.dumps({"environment": environment(), **data}, indent=1) + "\n")
    return path


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head_line, *body = ("|" + "|".join(f" {c} " if c else " " for c in cells) + "|" for cells in (head, *rows))
    return "\n".join([head_line, "|" + "---|" * len(head), *body])


def results(name: str) -> Any:
    """What a script has saved under bench/results."""
    return json.loads((RESULTS / name).read_text())
