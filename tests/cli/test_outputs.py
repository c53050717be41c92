"""No command writes over what it reads, nor over the report of another video."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from freeloc_fx import Profile
from freeloc_fx.cli import evaluate as eval_command
from freeloc_fx.cli import outputs
from freeloc_fx.cli.app import app
from freeloc_fx.evaluation.metrics.clip import MetricError, prompt_beside
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.latents import Latents


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.chdir(tmp_path)
    for name in ("load_pipeline", "generate"):
        monkeypatch.setattr(library, name, fail)
    monkeypatch.setattr(eval_command, "evaluate", fail)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("generate words --profile own.json -o own.gif", "--profile own.json"),
        ("generate words --profile sub/../own.json -o own.mp4", "--profile sub/../own.json"),
        ("generate words --profile link.json -o own.mp4", "--profile link.json"),
        ("generate words --profile own.json -o link.mp4", "--profile own.json"),
        ("generate words --model pipe -o pipe/model_index.mp4", "--model pipe/model_index.json"),
        ("generate words --model pipe -o pipe/vae/config.gif", "--model pipe/vae/config.json"),
        ("compare words --profile own.json -o own.mp4", "--profile own.json"),
        ("decode x.mp4 -o x.mp4", "the latents x.mp4"),
        ("decode x.json -o x.gif", "the latents x.json"),
        ("probe --visionreward x.txt own.json -o own.json", "--visionreward own.json"),
        ("probe --visionreward own.png x.txt -o own.json", "--visionreward own.png"),
        ("probe -o kept/job.json --journal kept", "--journal kept/job.json"),
        ("probe --model pipe -o pipe/model_index.json", "--model pipe/model_index.json"),
        ("inspect --model pipe/vae/config.json --json pipe/vae/config.json", "--model pipe/vae/config.json"),
        ("inspect --profile own.json --json own.json", "--profile own.json"),
        ("eval x.json --json x.json", "the video x.json"),
        ("eval x.mp4 --vbench own.json --json own.json", "--vbench own.json"),
        ("eval x.mp4 told.mp4 --json told.json", "a video's report told.json"),
        ("eval x.mp4 --subject-model pipe/vae --json pipe/vae/config.json", "--subject-model pipe/vae/config.json"),
    ],
)
def test_an_input_is_no_output(tmp_path: Path, arguments: str, named: str) -> None:
    Profile(11, "vrpr", name="made by hand").save("own.json")
    os.symlink("own.json", "link.json")
    for folder in ("sub", "kept", "pipe/vae", "pipe/videos"):
        Path(folder).mkdir(parents=True)
    for name in ("x.mp4", "x.json", "x.txt", "told.mp4", "own.png", "kept/job.json", "pipe/model_index.json"):
        Path(name).write_text("{}")
    Path("pipe/vae/config.json").write_text("{}")
    Path("told.json").write_text('{"prompt": "words"}')
    before = contents(tmp_path)
    result = run(*arguments.split())
    assert result.exit_code == 2, result.output
    assert f"would be written over {named}, which is the same file" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and contents(tmp_path) == before


def test_what_is_no_input_is_no_reason(tmp_path: Path) -> None:
    """Earlier results, also in a model's folder and where a name is that of something shipped."""
    for folder in ("pipe/vae", "pipe/videos"):
        Path(folder).mkdir(parents=True)
    for name in ("model_index", "out", "vae/config", "videos/out"):
        Path(f"pipe/{name}.json").write_text("{}")
    inputs = [("--model", "pipe"), ("--profile", "wan2.1-t2v-1.3b"), ("none", None), ("hub", "owner/name")]
    for name in ("pipe/out.mp4", "pipe/videos/out.gif", "wan.mp4"):
        assert outputs.check_video(Path(name), inputs)[1] == Path(name).with_suffix(".json")


@pytest.mark.parametrize("report", [{"file": "a.mp4", "settings": {}}, {"settings": {"prompt": "words"}}])
@pytest.mark.parametrize(
    "arguments",
    ["generate words -o a.gif", "compare words -o a.gif", "decode x.st -o a.gif", "probe -o a.json",
     "inspect --json a.json", "bench --json a.json", "eval b.mp4 --json a.json"],
)  # fmt: skip
def test_the_report_of_a_video_that_is_there_stays(tmp_path: Path, arguments: str, report: dict[str, Any]) -> None:
    for name in ("a.mp4", "a.png", "b.mp4", "x.st"):
        Path(name).write_bytes(b"work")
    Path("a.json").write_text(json.dumps(report))
    before = contents(tmp_path)
    result = run(*arguments.split())
    assert result.exit_code == 2 and "a.json: is the report of a.mp4" in result.stderr, result.output
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("video", "report", "there"),
    [
        ("a.mp4", {"file": "a.mp4", "settings": {}}, "a.mp4"),  # made again
        ("a.gif", {"file": "a.mp4", "settings": {}}, "b.mp4"),  # the other one is gone
        ("a.gif", {"settings": {}}, "a.gif"),  # of an earlier version, and its own
        ("a.gif", [{"video": "a.mp4"}], "a.mp4"),  # of freeloc eval
    ],
)
def test_a_report_may_be_made_anew(video: str, report: Any, there: str) -> None:
    Path(there).write_bytes(b"work")
    Path("a.json").write_text(json.dumps(report))
    outputs.check_report(Path("a.json"), Path(video))


def test_a_report_says_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    video = library.Video(frames=np.zeros((5, 8, 8, 3), np.float32), plan=None, seconds=1.0)
    monkeypatch.setattr("freeloc_fx.cli.latents.load", lambda *_: None)
    monkeypatch.setattr(library, "decode_latents", lambda *_, **__: video)
    settings = {"model": "tiny-wan", "frames": 5, "height": 64, "width": 64, "prompt": "words"}
    Latents(torch.zeros(1, 16, 2, 8, 8), "WanPipeline", settings).save("x.st")
    result = run("decode", "x.st", "-o", "b.gif")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("b.json").read_text())["file"] == "b.gif"
    assert prompt_beside("b.gif") == "words"
    with pytest.raises(MetricError, match=r"b\.json: expected the report of b\.mp4, found that of b\.gif"):
        prompt_beside("b.mp4")
    shutil.copy("b.json", "renamed.json")
    assert prompt_beside("renamed.gif") == "words"
