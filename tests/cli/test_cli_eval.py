"""`freeloc eval`: tables, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from freeloc_fx.cli import evaluate as command
from freeloc_fx.cli.app import app
from freeloc_fx.evaluation.metrics.clip import MetricError
from freeloc_fx.evaluation.metrics.evaluation import MEASURES, Evaluation
from freeloc_fx.evaluation.metrics.vbench import Measure
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


def test_what_is_wrong_with_a_later_video_is_said_before_the_first_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "evaluate", lambda *_, **__: pytest.fail("measured"))
    short = write_video(tmp_path / "short.gif", SCENE.render(2))
    wide = write_video(tmp_path / "wide.mp4", np.random.default_rng(0).random((20, 32, 64, 3)))
    data = (folder / "moving.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "r_eval_results.json").write_text(
        json.dumps({"aesthetic_quality": [0.5, [{"video_path": "moving.mp4", "video_results": 0.5}]]})
    )
    for arguments, words in (
        ([short], "short.gif: expected at least 3 frames, found 2"),
        ([wide, "--segments", 25], "segments: expected between 1 and the 20 frames of"),
        ([wide, "--period", 20], "wide.mp4: NoRepeat expects a period inside the 20 frames"),
        ([wide, "--prompt", SCENE.prompt], "wide.mp4: scores need 64x64 pixels"),
        ([tmp_path / "cut.mp4"], "the file is cut short"),
        ([tmp_path / "text.mp4"], "text.mp4: not a video"),
        ([wide, "--vbench", tmp_path / "r_eval_results.json"], "wide.mp4: expected one video of that name in vbench"),
    ):
        result = run(folder / "moving.mp4", *arguments)
        assert result.exit_code == 2 and words in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MetricError("bad frames"), 2, "error: bad frames"),
        (RuntimeError("no memory"), 1, "1 of 3 videos were measured before that"),
        (KeyboardInterrupt(), 130, "interrupted, 1 of 3 videos were measured before that"),
    ],
)
@pytest.mark.parametrize("screen", [False, True])
def test_an_error_keeps_what_was_measured_before_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str,
    screen: bool,
) -> None:  # fmt: skip
    figures = dict.fromkeys(MEASURES, Measure(0.5, np.ones(4), np.linspace(0, 1, 4)))
    first = Evaluation(str(folder / "moving.mp4"), 33, 16.0, **figures, segments=2)

    def measured(path: Path, **_: object) -> Evaluation:
        if path.name == "moving.mp4":
            return first
        raise error

    monkeypatch.setattr(command, "evaluate", measured)
    path = tmp_path / "all.json"
    result = run(*[folder / n for n in ("moving.mp4", "still[1].mp4", "moving.mp4")], "--json", "-" if screen else path)
    assert result.exit_code == code and words in result.stderr, result.output
    (row,) = json.loads(result.stdout if screen else path.read_text())
    assert row["video"].endswith("moving.mp4") and row["measures"]["motion"]["value"] == 0.5
    assert screen or (" moving.mp4 " in result.stdout and str(path) in result.stdout)
