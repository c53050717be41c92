"""Plans of large clips from small pictures: what the real size gives, in memory that does not grow with it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers_models import CASES, build
from models import DiT, wan
from newer_models import MINIMAX_H3
from slow import slow

from freeloc_fx import Profile, plan
from freeloc_fx.compiler import on_paper
from freeloc_fx.compiler.on_paper import plan_on_paper
from freeloc_fx.errors import LengthError, ProfileError
from freeloc_fx.generation.without_weights import without_weights

PROFILE = Profile(trained_frames=4, layers="vrpr+tsa+temp")
QUICK = ("Wan", "LTX")


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_paper, "LARGE", 0)


def without_noise(made: Any) -> Any:
    """A plan as data, without the rounding of what was measured."""
    found = made.to_dict()
    for site in found["sites"]:
        site["rope"].pop("residual")
        site["rope"]["omega"] = [[round(rate, 4) for rate in row] for row in site["rope"]["omega"]]
    return found


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in CASES])
def test_it_is_the_plan_of_the_real_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    model = build(name)
    frames, height, width = (p * n for p, n in zip(case.patch, (9, 4, 6), strict=True))
    size = {"frames": frames, "height": height, "width": width}
    expected = plan(model, PROFILE, **size)
    torch._dynamo.reset()
    seen: list[tuple[int, ...]] = []
    inner = on_paper.example_inputs
    monkeypatch.setattr(on_paper, "example_inputs", lambda model, *s: (seen.append(s), inner(model, *s))[1])
    monkeypatch.setattr(on_paper.transform, "plan", lambda *a, **k: pytest.fail("the real size was captured"))
    assert without_noise(plan_on_paper(model, PROFILE, **size)) == without_noise(expected)
    assert [s[0] for s in seen] == [size["frames"]] * 2 and max(s[1] * s[2] for s in seen) < size["height"] * size[
        "width"
    ]


@pytest.mark.skipif(not hasattr(diffusers, "MiniMaxH3Transformer3DModel"), reason="an older diffusers")
def test_times_and_what_is_turned_beside_a_clip_are_kept() -> None:
    """MiniMax-H3's frames are spaced unevenly, behind words and sound that RoPE turns."""
    model = without_weights(dict(MINIMAX_H3))
    size = {"frames": 9, "height": 12, "width": 16}
    expected = plan(model, PROFILE, **size)
    torch._dynamo.reset()
    assert expected.grid.uneven and expected.grid.turned
    assert plan_on_paper(model, PROFILE, **size).grid == expected.grid


class Squeezed(DiT):
    """Turns with the frame by an angle that depends on the picture's height."""

    def tables(self, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = super().tables(shape)
        angle = torch.atan2(sin, cos)
        time = torch.arange(shape[0]).repeat_interleave(shape[1] * shape[2])[:, None] * self.omega(0).float()
        angle[:, : len(self.omega(0))] = time / shape[1]
        return angle.cos(), angle.sin()


def test_a_model_whose_frames_turn_with_the_picture_is_planned_at_its_real_size(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Squeezed(split=(5, 2, 1))
    with caplog.at_level(logging.INFO, "freeloc_fx"):
        found = plan_on_paper(model, PROFILE, frames=9, height=4, width=6)
    assert "how RoPE turns with the frame depends on the picture" in caplog.text
    torch._dynamo.reset()
    assert found.to_dict() == plan(model, PROFILE, frames=9, height=4, width=6).to_dict()


def test_small_clips_and_refusals_are_those_of_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan()
    with pytest.raises(LengthError, match="rope_max_seq_len is 64"):
        plan_on_paper(model, PROFILE, frames=65, height=8, width=12)
    with pytest.raises(ProfileError, match="7"):
        plan_on_paper(model, Profile(trained_frames=4, layers={7: "vrpr"}), frames=9, height=8, width=12)
    monkeypatch.setattr(on_paper, "LARGE", 2**25)
    monkeypatch.setattr(on_paper, "_enlarged", lambda *_: pytest.fail("a small clip"))
    assert plan_on_paper(model, PROFILE, frames=9, height=8, width=12).grid.frames == 9


COUNT = """
import resource, sys
from typer.testing import CliRunner
from freeloc_fx.cli.app import app
done = CliRunner().invoke(app, sys.argv[1:])
assert done.exit_code == 0, done.output
print(done.output)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "latent", "trained"),
    [
        ("WanTransformer3DModel", {"rope_max_seq_len": 1024}, "201x90x160", 21),
        ("HunyuanVideoTransformer3DModel", {"patch_size": 2}, "321x90x160", 33),
    ],
)
def test_ten_times_the_trained_length_at_720p_is_counted_in_two_gigabytes(
    name: str, config: dict[str, Any], latent: str, trained: int, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"_class_name": name, **config}))
    asked = ["inspect", f"--model={file}", f"--latent={latent}", f"--trained-frames={trained}", "--ranks=8"]
    done = subprocess.run([sys.executable, "-c", COUNT, *asked], stdout=subprocess.PIPE, check=True, text=True)
    assert "ulysses and fsdp" in done.stdout
    assert int(done.stdout.split()[-1]) * 1024 < 2e9
