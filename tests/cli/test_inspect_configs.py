"""`freeloc inspect` on every class from its configuration alone: what it found, or why there is nothing to plan."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import newer_models
import pytest
from diffusers_models import CASES, build
from refused_models import REFUSED
from slow import slow
from typer.testing import CliRunner, Result

from freeloc_fx import Profile, plan, transform
from freeloc_fx.cli.app import app
from freeloc_fx.compiler.capture.conventions import check_one_clip
from freeloc_fx.errors import CaptureError

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")


def run(folder: Path, cls: str, config: dict[str, Any], latent: str, *options: str) -> Result:
    path = folder / "config.json"
    path.write_text(json.dumps({"_class_name": cls, **config}), encoding="utf-8")
    arguments = ["inspect", f"--model={path}", f"--latent={latent}", "--trained-frames=5", *options]
    return CliRunner().invoke(app, arguments)


QUICK = ("Wan", "HunyuanVideo", "CogVideoX", "LTX", "Kandinsky5", "Mochi", "Allegro", "AnyFlow")


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in CASES])
def test_every_class_from_its_configuration(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    height, width = case.size
    result = run(tmp_path, case.cls, dict(case.config), f"{10 * case.patch[0]}x{height}x{width}", "--json=-")
    if name == "Mochi":  # its rates are weights, which a configuration does not hold
        assert result.exit_code == 1
        assert "no RoPE" in result.output or "no channel" in result.output, result.output
        return
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["class"] == case.cls
    assert [site["path"] for site in data["sites"]] == list(case.sites)
    assert (data["grid"]["frames"], data["grid"]["text_first"], data["grid"]["text_last"]) == (10, *case.text)


@pytest.mark.parametrize("latent", ["0x4x6", "10x0x6", "00x00x00", "10x4", f"{10**30}x4x6"])
def test_a_latent_size_that_is_none(latent: str, tmp_path: Path) -> None:
    result = run(tmp_path, "WanTransformer3DModel", {}, latent)
    assert result.exit_code == 2 and "--latent: expected FRAMESxHEIGHTxWIDTH" in result.stderr, result.output


@pytest.mark.parametrize("option", ["--frames=321", "--height=4", "--width=4"])
def test_sizes_in_pixels_are_not_left_aside(option: str, tmp_path: Path) -> None:
    result = run(tmp_path, "WanTransformer3DModel", {}, "10x4x4", option)
    words = f"{option.partition('=')[0]}: of a model without its VAE"
    assert result.exit_code == 2 and words in result.stderr, result.output


def test_trained_frames_of_two_sources(tmp_path: Path) -> None:
    result = run(tmp_path, "WanTransformer3DModel", {}, "10x4x4", "--profile=tiny-wan")
    assert result.exit_code == 2 and "--trained-frames: expected without --profile" in result.stderr, result.output


@pytest.mark.skipif(not hasattr(diffusers, "MiniMaxH3Transformer3DModel"), reason="an older diffusers")
@pytest.mark.parametrize(("size", "beside"), [("8x4x6", 102), ("16x16x24", 190)])
def test_a_clip_among_words_and_sound(size: str, beside: int, tmp_path: Path) -> None:
    """MiniMax-H3's sound is as long as its clip, and steadier; it stands before it, after the words."""
    config = dict(newer_models.MINIMAX_H3)
    frames, height, width = map(int, size.split("x"))
    result = run(tmp_path, config.pop("_class_name"), config, size, "--json=-")
    assert result.exit_code == 0, result.output
    grid = json.loads(result.stdout)["grid"]
    assert [grid[name] for name in ("frames", "height", "width")] == [frames, height // 2, width // 2]
    assert (grid["text_first"], grid["text_last"], grid["turned"]) == (beside, 0, beside - 1)


@pytest.mark.parametrize("name", REFUSED)
def test_classes_without_anything_to_plan_say_why(name: str, tmp_path: Path) -> None:
    case = REFUSED[name]
    height, width = case.size
    result = run(tmp_path, case.cls, dict(case.config), f"8x{height}x{width}")
    assert result.exit_code == 1, result.output
    assert re.search(case.refused, " ".join(result.output.split())), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", [name for name in REFUSED if "takes" in REFUSED[name].refused])
def test_autoregressive_models_are_refused_before_any_work(name: str) -> None:
    case = REFUSED[name]
    model = build(name, case=case)
    profile = Profile(trained_frames=5, layers="vrpr")
    with pytest.raises(CaptureError, match=case.refused):
        transform(model, profile)
    with pytest.raises(CaptureError, match=case.refused):
        plan(model, profile, frames=10, height=4, width=6)


def test_no_supported_class_is_taken_for_an_autoregressive_one() -> None:
    for name in CASES:
        check_one_clip(build(name))
    for name, case in REFUSED.items():
        if "takes" not in case.refused:
            check_one_clip(build(name, case=case))
