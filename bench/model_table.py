"""What works with which video transformer of diffusers? Every cell is measured on a tiny random model of the class.

    python bench/model_table.py                    # every class, minutes
    python bench/model_table.py --models Wan,LTX   # part of it, merged into the results that are there
    python bench/model_table.py --models new       # those without a row yet
    python bench/model_table.py --columns LoRA     # one column of every class, merged

Writes results/model_table.json and model_table.md, and the tables of bench/README.md: model_table_short.md (what is
found, what the model lives with), model_table_calls.md (kinds of calls), model_table_refused.md. A cell that could not
be measured holds the error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, save

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))

from conditioned import NAMES, conditioned
from diffusers_models import CASES, arguments, build
from kinds import FAILS, KINDS, NONE, PAIR, autocast, calls
from newer_models import first_tensor
from refused_models import REFUSED
from two_transformers import PIPELINES, latents, pipeline

from freeloc_fx import Profile, enable, plan, plans, transform
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.errors import FreelocError
from freeloc_fx.files import write_text
from freeloc_fx.planning.plan import Plan

TRAINED = 5
PROFILE = Profile(trained_frames=TRAINED, layers="vrpr+tsa")


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result = model(**given)
    return first_tensor(result)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


class Measured:
    """One class: the model, a call of twice the trained length, and the reference's answer to it."""

    def __init__(self, name: str) -> None:
        self.name, self.case, self.model = name, CASES[name], build(name)
        patch = self.case.patch[0]
        self.short = arguments(name, self.model, TRAINED * patch)
        self.long = arguments(name, self.model, 2 * TRAINED * patch, text_shown=11)
        self.changed = transform(self.model, PROFILE, backend="eager", attention="reference")

    @cached_property
    def expected(self) -> torch.Tensor:
        return run(self.changed, self.long)

    @cached_property
    def plan(self) -> Plan:
        assert self.expected is not None  # a plan is made when the model is called
        return plans(self.changed)[0]

    def sites(self) -> str:
        assert [s.path for s in self.plan.sites] == list(self.case.sites)
        return f"{len(self.plan.sites)} of {len(self.case.sites)}"

    def rope(self) -> str:
        rope = self.plan.sites[0].rope
        heads = "" if len(rope.omega) == 1 else ", rates per head"
        return f"{rope.pairing}, {len(rope.first)} of {rope.head_dim // 2} pairs{heads}, to {rope.residual:.0e}"

    def grid(self) -> str:
        grid = self.plan.grid
        text = f", text first {grid.text_first}" if grid.text_first else ""
        text += f", text last {grid.text_last}" if grid.text_last else ""
        return f"{grid.frames}x{grid.height}x{grid.width}{text}"

    def identity(self) -> str:
        return "yes" if torch.equal(run(self.changed, self.short), run(self.model, self.short)) else "no"

    def lowering(self, name: str) -> Callable[[], str]:
        def measure() -> str:
            changed = transform(self.model, PROFILE, backend="eager", attention=name)
            return f"{distance(run(changed, self.long), self.expected):.0e}"

        return measure

    def full_graph(self) -> str:
        state = state_of(self.changed)
        assert state is not None and self.expected is not None
        return "yes" if state.by_block is None else "block by block"

    def compiled(self) -> str:
        changed = transform(self.model, PROFILE, backend="aot_eager", attention="tiles")
        return f"{distance(run(changed, self.long), self.expected):.0e}"

    def lora(self) -> str:
        from peft import LoraConfig

        model = build(self.name)
        if not hasattr(model, "add_adapter"):
            return "no LoRA in diffusers"
        config = LoraConfig(r=2, target_modules=list(self.case.lora), init_lora_weights=False)
        changed = transform(model, PROFILE, backend="eager", attention="reference")
        model.add_adapter(config, "style")
        found = run(changed, self.long)
        again = transform(model, PROFILE, backend="eager", attention="tiles")
        assert distance(found, self.expected) > 1e-3, "the adapter does not show"
        assert plans(changed)[0].rewritten == len(self.case.sites)
        return f"{distance(run(again, self.long), found):.0e}"

    def group_offload(self) -> str:
        from diffusers.hooks import apply_group_offloading

        model = build(self.name)
        apply_group_offloading(model, torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
        changed = transform(model, PROFILE, backend="eager", attention="reference")
        return f"{distance(run(changed, self.long), self.expected):.0e}"

    def model_offload(self) -> str:
        from accelerate import cpu_offload_with_hook

        changed = transform(self.model, PROFILE, backend="eager", attention="reference")
        cpu_offload_with_hook(changed, execution_device="cpu")
        return f"{distance(run(changed, self.long), self.expected):.0e}"

    def beside(self) -> str:
        """A start image, two keyframes and a reference as the class's pipeline gives them: frames beside the clip, and
        the difference between tiles and the reference; empty where no call of the class is known here."""
        names = [name for name in NAMES if name == self.name or name.startswith(f"{self.name} ")]
        worst, frames = 0.0, 0
        for name in names:
            torch._dynamo.reset()
            case = conditioned(name, 2 * TRAINED)
            plain, changed = (
                transform(case.model, PROFILE, backend="eager", attention=how) for how in ("reference", "tiles")
            )
            worst = max(worst, distance(run(changed, case.given), run(plain, case.given)))
            (plan,) = plans(changed)
            assert (plan.grid.before, plan.grid.after) == (case.before, case.after)
            frames = max(frames, len(plan.grid.further))
        return f"{frames or 'none'}, {worst:.0e}" if names else ""

    def kind(self, kind: str) -> str:
        """Tiles against the reference in the calls of one kind that the class takes, or why there is none."""
        worst = None
        for call in calls(kind, self.name, 2 * TRAINED):
            torch._dynamo.reset()
            with autocast(kind):
                if message := FAILS.get((kind, self.name)):
                    try:
                        run(call.model, call.given)
                    except RuntimeError as error:
                        assert re.search(message, str(error)), error
                        return "fails in diffusers"
                plain, changed = (
                    transform(call.model, PROFILE, backend="eager", attention=how) for how in ("reference", "tiles")
                )
                found = run(changed, call.given)
                assert found.isfinite().all(), "infinite or not a number"
                worst = max(worst or 0.0, distance(found, run(plain, call.given)))
            (made,) = plans(changed)
            assert made.rewritten == len(made.sites), "not every site is rewritten"
        return NONE if worst is None else f"{worst:.0e}"

    def pair(self) -> str:
        """A whole pipeline that goes from one transformer to another, both rewritten."""
        if self.name not in PIPELINES:
            return NONE
        made = []
        for how in ("reference", "tiles"):
            pipe = pipeline(self.name)
            enable(pipe, PROFILE, backend="eager", attention=how)
            made.append(latents(pipe, 2 * TRAINED))
            for each in (pipe.transformer, pipe.transformer_2):
                assert [p.rewritten for p in plans(each)] == [len(self.case.sites)]
        return f"{distance(made[1], made[0]):.0e}"

    def row(self, columns: list[str]) -> dict[str, str]:
        """The cells of `columns`, all for an empty list."""
        cells: dict[str, Callable[[], str]] = {
            "sites found": self.sites,
            "RoPE": self.rope,
            "grid at 2x": self.grid,
            "identity bitwise": self.identity,
            "tiles - reference": self.lowering("tiles"),
            "flex - reference": self.lowering("flex"),
            "full graph": self.full_graph,
            "aot_eager - reference": self.compiled,
            "LoRA": self.lora,
            "group offload": self.group_offload,
            "model offload": self.model_offload,
            "frames beside the clip": self.beside,
            **{kind: partial(self.kind, kind) for kind in KINDS if kind != PAIR},
            PAIR: self.pair,
        }
        if unknown := set(columns) - cells.keys():
            raise ValueError(f"--columns: expected some of {', '.join(cells)}; found {', '.join(sorted(unknown))}")
        return {column: _cell(measure) for column, measure in cells.items() if not columns or column in columns}


def refusal(name: str) -> str:
    """What the compiler says of a class that it refuses."""
    case = REFUSED[name]
    model = build(name, case=case)
    height, width = case.size
    try:
        plan(model, PROFILE, frames=8, height=height, width=width)  # as many as Latte has positions
    except FreelocError as error:
        found = " ".join(str(error).split())
        if not re.search(case.refused, found):
            return f"refused: for another reason than {case.refused!r}: {found}"
        parts = (re.search(part, found) for part in case.refused.split(".*"))
        return "refused: " + " ... ".join(part[0].strip() for part in parts if part)
    raise AssertionError(f"{name} is not refused")


def _cell(measure: Callable[[], str]) -> str:
    torch._dynamo.reset()
    try:
        return measure()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}"[:160]


COLUMNS = (
    "sites found", "RoPE", "grid at 2x", "identity bitwise", "tiles - reference", "flex - reference", "full graph",
    "aot_eager - reference", "LoRA", "group offload", "model offload", "frames beside the clip",
)  # fmt: skip


def is_refused(row: dict[str, str]) -> bool:
    return row.get("sites found", "").startswith("refused: ")


def table(rows: dict[str, dict[str, str]], columns: tuple[str, ...]) -> str:
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        if not is_refused(row):
            lines.append(f"| {name} | " + " | ".join(row.get(c, "").replace("|", "/") for c in columns) + " |")
    return "\n".join(lines) + "\n"


def refused_table(rows: dict[str, dict[str, str]]) -> str:
    lines = ["| model | class | what the refusal says |", "|---|---|---|"]
    for name, row in rows.items():
        if is_refused(row):
            reason = row["sites found"].removeprefix("refused: ").replace("|", "/")
            lines.append(f"| {name} | `{REFUSED[name].cls}` | {reason} |")
    return "\n".join(lines) + "\n"


def short_table(rows: dict[str, dict[str, str]]) -> str:
    """The README's: a tick or a word for a cell, differences from the reference as the largest of a row."""

    def number(row: dict[str, str], *columns: str) -> str:
        values = [row.get(c, "not measured") for c in columns]
        try:
            return f"{max(map(float, values)):.0e}"
        except ValueError:
            return next(v for v in values if not v.replace("e", "").replace("-", "").replace("+", "").isdigit())

    heads = ["model", "sites", "RoPE inferred", "grid at 2x", "1x bitwise", "lowerings", "full graph", "compiled"]
    heads += ["LoRA", "offload", "frames beside"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        if is_refused(row):
            continue
        cells = [
            name,
            row.get("sites found", "not measured"),
            row.get("RoPE", "not measured").rpartition(", to ")[0],
            row.get("grid at 2x", "not measured"),
            row.get("identity bitwise", "not measured"),
            number(row, "tiles - reference", "flex - reference"),
            row.get("full graph", "not measured"),
            number(row, "aot_eager - reference"),
            number(row, "LoRA"),
            number(row, "group offload", "model offload"),
            row.get("frames beside the clip", ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join([*CASES, *REFUSED]), help="comma-separated names, or new")
    parser.add_argument("--columns", default="", help="comma-separated headings, default all")
    given = parser.parse_args()
    every = [*CASES, *REFUSED]
    path = RESULTS / "model_table.json"
    rows: dict[str, dict[str, str]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    chosen = [name for name in every if name not in rows] if given.models == "new" else given.models.split(",")
    columns = [c for c in given.columns.split(",") if c]
    unknown = set(chosen) - set(every)
    if unknown:
        parser.error(f"--models: expected some of {', '.join(every)}; found {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    for name in chosen:
        torch._dynamo.reset()
        if name in REFUSED:
            rows[name] = {"sites found": refusal(name)}
        else:
            rows[name] = rows.get(name, {}) | Measured(name).row(columns)
        print(name, rows[name], flush=True)
        ordered = {known: rows[known] for known in every if known in rows}
        save("model_table", {"trained_frames": TRAINED, "strategy": PROFILE.layers, "rows": ordered})
        calls_of, refused = table(ordered, KINDS).replace(NONE, "none"), refused_table(ordered)
        write_text(RESULTS / "model_table.md", "\n".join([table(ordered, COLUMNS), calls_of, refused]))
        write_text(RESULTS / "model_table_short.md", short_table(ordered))
        write_text(RESULTS / "model_table_calls.md", calls_of)
        write_text(RESULTS / "model_table_refused.md", refused)


if __name__ == "__main__":
    main()
