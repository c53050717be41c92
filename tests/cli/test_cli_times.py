"""Prompts that change over time on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from freeloc_fx import Profile
from freeloc_fx.cli import times
from freeloc_fx.cli.app import app
from freeloc_fx.cli.common import Job
from freeloc_fx.errors import FreelocError
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation import video as v

FIRST, SECOND = "a red circle", "a white square over navy grid"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("model")
    Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"}).save(folder / "profile.json")
    model = pipelines.save(folder / "model")
    return [f"--model={model}", f"--profile={folder / 'profile.json'}", "--steps=1", "--height=32", "--width=32"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each generation was told to show."""
    found: list[Any] = []
    original = library.generate

    def watched(pipe: Any, prompt: Any, **kwargs: Any) -> library.Video:
        found.append(prompt)
        return original(pipe, prompt, **kwargs)

    monkeypatch.setattr(library, "generate", watched)
    return found


@pytest.mark.parametrize("latent", [(1, 4, 4), (1, 8, 6)])
def test_one_frame_is_told_like_any_clip(latent: tuple[int, int, int]) -> None:
    size: dict[str, Any] = {"frames": 1, "height": 32, "width": 32, "latent": latent}
    job = Job("m", None, steps=1, guidance=1.0, negative_prompt=None, dtype=torch.float32, device="cpu",
              backend="eager", attention="auto", **size)  # fmt: skip
    assert times.told([FIRST], None, job, 16.0, "16") == times.told([FIRST], ["0"], job, 16.0, "1s") == FIRST
    with pytest.raises(FreelocError, match="inside the clip, at most frame 0"):
        times.told([FIRST, SECOND], ["1"], job, 16.0, "16")


def test_generate_records_the_prompts_and_letters_the_sheet(small: list[str], told: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    arguments = ["--at", "0", FIRST, "--at", "1s", SECOND, "--fps=9", "--blend=1s", "--frames=17", *small]
    done = CliRunner().invoke(app, ["generate", *arguments, "-o", str(output)])
    assert done.exit_code == 0, done.output
    settings = json.loads(output.with_suffix(".json").read_text())["settings"]
    assert settings["prompt"] == {"0": FIRST, "9": SECOND} and (settings["blend"], settings["fps"]) == ("1s", 9.0)
    assert told == [{0: FIRST, 9: SECOND}]
    plain = tmp_path / "b.mp4"
    assert CliRunner().invoke(app, ["generate", FIRST, "--frames=17", *small, "-o", str(plain)]).exit_code == 0
    sheets = [Image.open(path.with_suffix(".png")) for path in (output, plain)]
    assert sheets[0].height > sheets[1].height and sheets[0].width == sheets[1].width
    assert json.loads(plain.with_suffix(".json").read_text())["settings"]["prompt"] == FIRST


@pytest.mark.parametrize("more", [["--strategy=direct"], ["--windows"]])
def test_the_untouched_model_can_have_it(small: list[str], told: list[Any], tmp_path: Path, more: list[str]) -> None:
    arguments = [FIRST, "--at=8", SECOND, "--frames=17", *small, *more, "-o", str(tmp_path / "a.mp4")]
    done = CliRunner().invoke(app, ["generate", *arguments])
    assert done.exit_code == 0, done.output
    assert told == [{0: FIRST, 8: SECOND}]


def test_compare(small: list[str], told: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "c.mp4"
    arguments = ["--at=0", FIRST, "--at=8", SECOND, "--strategies=direct,vrpr", "--frames=17", *small]
    done = CliRunner().invoke(app, ["compare", *arguments, "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert told == [{0: FIRST, 8: SECOND}] * 2
    settings = json.loads(output.with_suffix(".json").read_text())["settings"]
    assert settings["prompt"] == {"0": FIRST, "8": SECOND} and settings["blend"] == "16"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected a PROMPT, or one for each --at TIME, found 0 and 0"),
        (["--at=0", FIRST, "--at=8"], "found 1 and 2"),
        ([FIRST, SECOND], "found 2 and 0"),
        ([FIRST, "--at=0", SECOND], "--at 0: expected times that rise"),
        ([FIRST, "--at=40", SECOND], "expected times inside the clip, at most frame 16, found frame 40"),
        ([FIRST, "--at=8", SECOND, "--at=4", FIRST], "rise, found 4 after 8"),
        ([FIRST, "--at=soon", SECOND], "found 'soon'"),
        ([FIRST, "--at=8", SECOND, "--blend=long"], "found 'long'"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "compare"])
def test_what_makes_no_sense_is_refused_before_loading(
    command: str, arguments: list[str], words: str, small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "load_pipeline", None)
    done = CliRunner().invoke(app, [command, *arguments, "--frames=17", *small, "-o", str(tmp_path / "a.mp4")])
    assert done.exit_code == 2 and words in " ".join(done.stderr.split()), done.stderr
    assert not list(tmp_path.iterdir())


def test_sheets_write_each_prompt_under_its_frames(tmp_path: Path) -> None:
    clip = np.zeros((16, 20, 60, 3), np.uint8)
    texts = {0: "one", 8: "a text that is too long for a single line of its frames"}
    plain, lettered = (
        np.asarray(Image.open(v.contact_sheet(tmp_path / "a.png", clip, 4, 2, labels=False, scale=1, texts=given)))
        for given in (None, texts)
    )
    assert lettered.shape[1] == plain.shape[1] and lettered.shape[0] >= plain.shape[0] + 3 * v.CAPTION
    dark = (lettered.min(2) < 100).any(1)
    assert dark.any()
    videos = {"a": clip, "b": clip}
    both = [
        np.asarray(Image.open(v.comparison_sheet(tmp_path / "b.png", videos, 4, 1, texts=given)))
        for given in (None, texts)
    ]
    assert both[1].shape[1] == both[0].shape[1] and both[1].shape[0] > both[0].shape[0]
    assert (both[1][: len(both[0])] == both[0]).all(), "the prompts are below"
