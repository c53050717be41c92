"""`freeloc inspect` on every class from its configuration alone: what it found, or why there is nothing to plan."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import newer_models
import pytest
from diffusers_models import CASES, build
from slow import slow
from typer.testing import CliRunner, Result

from freeloc_fx import Profile, plan, transform
from freeloc_fx.cli.app import app
from freeloc_fx.compiler.capture.conventions import check_one_clip
from freeloc_fx.errors import CaptureError

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

_TINY = {"num_attention_heads": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1}
_WAN = CASES["Wan"].config

# Class, configuration, and what the refusal says.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Latte": (
        "LatteTransformer3DModel",
        _TINY | {"attention_head_dim": 8, "out_channels": 8, "sample_size": 8, "patch_size": 2, "video_length": 8,
                 "cross_attention_dim": 16, "caption_channels": 16, "activation_fn": "gelu-approximate",
                 "norm_type": "ada_norm_single"},
        "no video self-attention with temporal RoPE",
    ),
    "CogVideoX-2b": (
        "CogVideoXTransformer3DModel",
        {**CASES["CogVideoX"].config, "use_rotary_positional_embeddings": False, "sample_frames": 29},
        "transformer_blocks.0.attn1: other: .*no RoPE",
    ),
    "SanaVideo": (
        "SanaVideoTransformer3DModel",
        _TINY | {"attention_head_dim": 12, "num_cross_attention_heads": 2, "cross_attention_head_dim": 12,
                 "cross_attention_dim": 24, "caption_channels": 16, "sample_size": 4, "rope_max_seq_len": 32},
        "no video self-attention with temporal RoPE.*transformer_blocks.0.attn2: cross",
    ),
    "SkyReels-DF": (
        "SkyReelsV2Transformer3DModel",
        {**_WAN, "num_frame_per_block": 2},
        "blocks.0.attn1: other: .*autoregressive",
    ),
    "Framepack": (
        "HunyuanVideoFramepackTransformer3DModel",
        {k: v for k, v in CASES["HunyuanVideo"].config.items()} | {"has_clean_x_embedder": True},
        "takes latents_history_2x.*autoregressive",
    ),
    "Helios": (
        "HeliosTransformer3DModel",
        {k: v for k, v in _WAN.items() if k != "rope_max_seq_len"} | {"rope_dim": [4, 4, 4]},
        "takes indices_latents_history_short.*autoregressive",
    ),
    "AnyFlowFAR": (
        "AnyFlowFARTransformer3DModel",
        {k: v for k, v in _WAN.items() if k != "qk_norm"},
        "takes kv_cache.*autoregressive",
    ),
}  # fmt: skip
REFUSED |= {name: (case.cls, dict(case.config), case.refused) for name, case in newer_models.REFUSED.items()}


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
    import re

    cls, config, reason = REFUSED[name]
    result = run(tmp_path, cls, config, "8x4x6")
    assert result.exit_code == 1, result.output
    assert re.search(reason, " ".join(result.output.split())), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", ["Framepack", "Helios", "AnyFlowFAR"])
def test_autoregressive_models_are_refused_before_any_work(name: str) -> None:
    cls, config, reason = REFUSED[name]
    model = getattr(diffusers, cls)(**config)
    profile = Profile(trained_frames=5, layers="vrpr")
    with pytest.raises(CaptureError, match=reason):
        transform(model, profile)
    with pytest.raises(CaptureError, match=reason):
        plan(model, profile, frames=10, height=4, width=6)


def test_no_supported_class_is_taken_for_an_autoregressive_one() -> None:
    for name in CASES:
        check_one_clip(build(name))
    for cls, _, _ in (REFUSED[n] for n in ("Latte", "CogVideoX-2b", "SanaVideo", "SkyReels-DF")):
        assert not any("history" in p for p in inspect.signature(getattr(diffusers, cls).forward).parameters)
