"""A path that cannot be written is refused before the work, whatever the command; none is read as markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from freeloc_fx import Profile
from freeloc_fx.cli import bench as bench_command
from freeloc_fx.cli import common
from freeloc_fx.cli.app import app
from freeloc_fx.generation import pipelines as library


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(library, "load_pipeline", fail)
    for name in ("_attention", "_masks", "_memory"):
        monkeypatch.setattr(bench_command, name, fail)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--json", "none/b.json"], "the folder none does not exist"),
        (["bench", "--json", "folder"], "folder is a folder; expected the name of a file"),
        (["bench", "masks", "--json", "file/b"], "the folder file does not exist"),
        (["inspect", "--pictures", "file"], "file: expected a folder"),
        (["inspect", "--pictures", "file/deep/er"], "file is a file"),
        (["inspect", "--json", "none/i.json"], "the folder none does not exist"),
        (["probe", "-o", "taken.json"], "taken.png is a folder"),
        (["probe", "-o", "p.json", "--journal", "file"], "file: expected a folder"),
        (["probe", "-o", "held.json"], "held.journal: expected a folder"),
        (["compare", "words", "-o", "held.mp4"], "held.parts: expected a folder"),
        (["compare", "words", "-o", "taken.mp4"], "taken.png is a folder"),
        (["generate", "words", "-o", "taken.mp4"], "taken.png is a folder"),
        (["decode", "x.safetensors", "-o", "taken.mp4"], "taken.png is a folder"),
        (["eval", "file", "--json", "none/e.json"], "the folder none does not exist"),
        (["report", "--videos", "folder", "-o", "none/r.html"], "the folder none does not exist"),
    ],
)
def test_a_path_is_checked_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "taken.png"):
        (tmp_path / name).mkdir()
    for name in ("file", "held.journal", "held.parts"):
        (tmp_path / name).touch()
    before = sorted(p.name for p in tmp_path.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["inspect --pictures", "probe --journal"])
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("freeloc_fx.generation.video.tempfile.TemporaryFile", refuse)  # root may write anywhere
        result = run(*command.split(), tmp_path / "new" / "er")
    assert result.exit_code == 2 and "cannot be written to (Permission denied)" in result.stderr


def test_what_is_shown_while_loading_is_no_markup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = []
    monkeypatch.setattr(library, "load_pipeline", lambda *_, **__: "pipe")
    monkeypatch.setattr(common.err, "status", lambda words: shown.append(words) or common.err.capture())
    job = common.prepare("tiny-wan", None, ["direct"], 5)
    object.__setattr__(job, "model", "models/[/red]:smile:")
    common.load(job)
    assert str(shown[0]) == "loading models/[/red]:smile:" and not isinstance(shown[0], str)


@pytest.mark.parametrize("name", ["[bold]x[red].mp4", ":smile:[x].mp4"])
def test_eval_shows_names_as_they_are(tmp_path: Path, name: str) -> None:
    import numpy as np

    from freeloc_fx.generation.video import write_video

    write_video(tmp_path / name, np.random.default_rng(0).random((6, 32, 32, 3)))
    result = run("eval", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert name[:13] in result.stdout and "\\[" not in result.stdout


@pytest.mark.parametrize("name", ["cost $5 and $6", r"$\nothing$", "a$b"])
def test_a_profile_name_is_no_formula(tmp_path: Path, name: str) -> None:
    import matplotlib

    from freeloc_fx.planning.profile_fields import Sensitivity
    from freeloc_fx.probing.plot import draw

    found = {0: Sensitivity(0.1, 0.2), 1: Sensitivity(0.3, 0.1)}
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(Profile(trained_frames=5, sensitivities=found, name=name), tmp_path / "x.svg")
    assert f">{name}: sensitivity by layer" in (tmp_path / "x.svg").read_text()
