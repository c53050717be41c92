"""`freeloc eval`: tables, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from freeloc_fx.cli import evaluate as command
from freeloc_fx.cli.app import app
from freeloc_fx.evaluation.metrics.evaluation import MEASURES
from freeloc_fx.generation.tiny_wan.scenes import Scene
from freeloc_fx.generation.video import write_video

pytest.importorskip("cv2")

SCENE = Scene.random(np.random.default_rng(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """moving.mp4, still.mp4, and moving.json with the prompt."""
    path = tmp_path_factory.mktemp("videos")
    video = SCENE.render(33)
    write_video(path / "moving.mp4", video, scale=2)
    write_video(path / "still[1].mp4", np.repeat(video[:1], 33, 0), scale=2)
    (path / "moving.json").write_text(json.dumps({"settings": {"prompt": SCENE.prompt}}))
    return path


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["eval", *(str(a) for a in arguments)])


def test_two_videos_side_by_side(folder: Path) -> None:
    result = run(folder / "moving.mp4", folder / "still[1].mp4")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    header = next(line for line in lines if "subj." in line)
    assert all(heading in header for heading in command.HEADINGS.values())
    assert any(line.startswith(" moving.mp4 ") for line in lines)
    assert any(line.startswith(" still[1].mp4 ") for line in lines)
    drift = next(i for i, line in enumerate(lines) if line.startswith("Over time"))
    assert max(map(len, lines[: drift + 16])) <= 80 and "…" not in "".join(lines[: drift + 16])
    assert "Scores against the prompt" in result.stdout
    assert "proxy: DIS optical flow" in result.stdout and "aesthetic quality is not measured" in result.stdout
    assert "still[1].mp4: frozen" in result.stderr and "moving.mp4: frozen" not in result.stderr
    assert "slope" in result.stdout and " 4/4 " in result.stdout


def test_json_on_the_screen_is_all_there_is(folder: Path) -> None:
    result = run(folder / "moving.mp4", "--json", "-", "--period", 10, "--segments", 3)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert set(row["measures"]) == set(MEASURES)
    assert all(len(m["segments"]) == 3 for m in row["measures"].values())
    assert row["ground_truth"]["composite"] > 0.8
    assert row["no_repeat"]["period"] == 10 and row["no_repeat"]["repeats"] is False


def test_json_in_a_file_and_vbenchs_figures(folder: Path, tmp_path: Path) -> None:
    results = {"aesthetic_quality": [0.5, [{"video_path": "elsewhere/moving.mp4", "video_results": 0.5}]]}
    (tmp_path / "r_eval_results.json").write_text(json.dumps(results))
    path = tmp_path / "out.json"
    result = run(folder / "moving.mp4", "--json", path, "--vbench", tmp_path / "r_eval_results.json")
    assert result.exit_code == 0, result.output
    assert json.loads(path.read_text())[0]["vbench"] == {"aesthetic_quality": 0.5}
    assert "vbench: aesthetic_quality 0.5000" in result.stdout and "dyn." in result.stdout


def test_a_prompt_on_the_command_line(folder: Path) -> None:
    result = run(folder / "still[1].mp4", "--prompt", SCENE.prompt, "--json", "-")
    assert json.loads(result.stdout)[0]["ground_truth"]["speed"] == pytest.approx(0, abs=0.05)
    bad = run(folder / "moving.mp4", "--prompt", "a cat")
    assert bad.exit_code == 2 and "prompt" in bad.stderr


def test_bad_input_is_one_line_and_exit_code_2(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    (tmp_path / "text.mp4").write_text("not a video")
    write_video(tmp_path / "short.mp4", SCENE.render(2))
    for arguments, words in (
        ([tmp_path / "text.mp4"], "not a video"),
        ([tmp_path / "short.mp4"], "at least 3 frames"),
        ([folder / "moving.mp4", "--vbench", tmp_path / "none.json"], "none.json"),
        ([folder / "moving.mp4", "--segments", 100], "segments"),
        ([folder / "moving.mp4", "--period", 100], "NoRepeat"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and words in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.stderr
    monkeypatch.setattr(command, "evaluate", fail)
    for arguments, words in (
        ([folder / "moving.mp4", tmp_path / "none.mp4"], "none.mp4"),
        ([folder / "moving.mp4", folder], "a folder"),
        ([folder / "moving.mp4", "--json", tmp_path / "no" / "out.json"], "does not exist"),
        ([], "Missing argument"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and words in result.stderr, result.output
