"""`freeloc inspect --ranks`: what is counted, and which ways of sharing are refused as a run would refuse them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers_models import CASES
from slow import slow
from typer.testing import CliRunner

from freeloc_fx.cli.app import app

NO_PLAN = "its class has no _cp_plan"
HIDDEN = "padding is hidden by a mask over all"
# Class, ranks, frames over the trained ones, what is refused at all, what is refused without a plan of one's own.
LOOKED_AT: dict[str, tuple[str, int, int, str | None, str | None]] = {
    "Wan": ("Wan", 2, 10, None, None),
    "more ranks than heads": ("Wan", 4, 10, "expected at least one head a rank, found 2 heads for 4 ranks", None),
    "more ranks than heads, short": ("Wan", 4, 5, "found 2 heads for 4 ranks", None),
    "HunyuanVideo, short": ("HunyuanVideo", 2, 5, None, NO_PLAN),
    "HunyuanVideo": ("HunyuanVideo", 2, 10, HIDDEN, NO_PLAN),
    "CogVideoX": ("CogVideoX", 2, 10, None, NO_PLAN),
    "Allegro": ("Allegro", 2, 10, None, NO_PLAN),
    "Cosmos3": ("Cosmos3", 2, 10, "keys are tokens that no query stands at", NO_PLAN),
}
QUICK = ("Wan", "HunyuanVideo", "CogVideoX")


def inspected(folder: Path, name: str, ranks: int, frames: int, *options: str) -> Any:
    path = folder / "config.json"
    path.write_text(json.dumps({"_class_name": CASES[name].cls, **CASES[name].config}), encoding="utf-8")
    height, width = CASES[name].size
    size = f"--latent={frames}x{height}x{width}"
    asked = ["inspect", f"--model={path}", size, "--trained-frames=5", f"--ranks={ranks}", *options]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    return found


@pytest.mark.parametrize("case", [case if case in QUICK else slow(case) for case in LOOKED_AT])
def test_what_a_run_refuses_is_not_counted(case: str, tmp_path: Path) -> None:
    name, ranks, frames, refused, by_hand = LOOKED_AT[case]
    if name not in CASES:
        pytest.skip(f"this diffusers has no {name}")
    told = json.loads(inspected(tmp_path, name, ranks, frames, "--json=-").stdout)["ranks"]
    assert ({"one GPU", "fsdp"} <= told["held"].keys()) and told["count"] == ranks
    for said, words in ((told["refused"], refused), (told["by_hand"], by_hand)):
        assert (said is None) == (words is None) and (words or "") in (said or ""), said
    counted = [key for key in told if key.endswith(("_a_layer", "_a_step"))]
    assert [way for way in told["held"] if "ulysses" in way] == counted == [] if refused else len(counted) == 3


def test_the_screen_says_so(tmp_path: Path) -> None:
    shown = inspected(tmp_path, "HunyuanVideo", 2, 10).output
    assert f"(Ulysses) are refused: transformer_blocks.0.attn: {HIDDEN} 76 tokens, which" in shown
    assert "expected FSDP or tensor parallelism" in shown and "fsdp" in shown and "ulysses" not in shown
