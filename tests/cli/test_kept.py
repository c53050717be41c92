"""What a command does when it fails late: good files stay, latents are kept, and the next command goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import disk
import imageio.v3 as iio
import numpy as np
import pipelines
import pytest
import torch
from typer.testing import CliRunner, Result

from freeloc_fx import Profile, files
from freeloc_fx.cli import finished, latents
from freeloc_fx.cli.app import app
from freeloc_fx.files import ClaimedError, claimed
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation import video

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    profile = tmp_path_factory.mktemp("profile") / "profile.json"
    Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"}).save(profile)
    return [f"--model={model}", f"--profile={profile}", "--steps=2", "--guidance=1", "--height=32", "--width=32"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def fail_decoding(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    from diffusers import AutoencoderKLWan

    def fail(*_: Any, **__: Any) -> None:
        raise error

    patch.setattr(AutoencoderKLWan, "decode", fail)


def test_latents_outlive_a_decoder_and_decode_makes_the_same_video(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a long [take].mp4"
    command = ["generate", PROMPT, "--frames=17", *small, "--height=64", "--width=64", "--fps=8", "-o", output]
    assert run(*command).exit_code == 0
    expected, report = iio.imread(output), json.loads(output.with_suffix(".json").read_text())
    good = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    # The second failure does not overwrite what the first one left.
    for number, error, code in (("", RuntimeError("out of order"), 1), ("-2", KeyboardInterrupt(), 130)):
        with monkeypatch.context() as patch:
            fail_decoding(patch, error)
            failed = run(*command)
        assert failed.exit_code == code, failed.output
        file = tmp_path / f"a long [take]{number}.latents.safetensors"
        assert f"denoising is done, its latents are in {file}" in failed.stderr and file.is_file()
    assert all((tmp_path / name).read_bytes() == data for name, data in good.items())
    output.unlink()

    told = re.search(r"freeloc (decode .*)", failed.stderr)
    assert told is not None
    result = run(*shlex.split(told[1]))
    assert result.exit_code == 0, result.output
    assert np.array_equal(iio.imread(output), expected)
    again = json.loads(output.with_suffix(".json").read_text())
    assert again["settings"] == report["settings"] and again["plan"] == report["plan"]
    assert "2 of 2 sites rewritten" in result.stdout and "Scores against the prompt" in result.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "found no such file"), (b"", "a damaged one"), (b"\0" * 99, "a damaged one")],
)
def test_decode_refuses_what_holds_no_latents(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "x.latents.safetensors"
    if content is not None:
        file.write_bytes(content)
    result = run("decode", file, "-o", tmp_path / "x.mp4")
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_generate_on_a_full_disk(small: list[str], tmp_path: Path) -> None:
    """The video does not fit, its latents do."""
    output = tmp_path / "keep.mp4"
    command = ["generate", PROMPT, "--frames=41", *small, "--strategy=direct", "-o", output]
    assert run(*command).exit_code == 0
    good = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert len(good["keep.mp4"]) > 20_000
    with disk.limited(20_000):
        failed = run(*command)
    assert failed.exit_code == 1, failed.output
    assert "error: " in failed.stderr and "keep.mp4: expected to write the whole file" in failed.stderr
    assert "keep.mp4, " not in failed.stdout  # no word of success
    assert {name: (tmp_path / name).read_bytes() for name in good} == good
    assert names(tmp_path) == sorted([*good, "keep.latents.safetensors"])
    assert run("decode", tmp_path / "keep.latents.safetensors", "-o", output).exit_code == 0
    assert output.read_bytes() == good["keep.mp4"]


def test_latents_that_fit_nowhere_are_told_and_no_failure(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.Latents, "save", full)
    result = run("generate", PROMPT, "--frames=5", *small, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 0 and "the denoised latents are not kept" in result.stderr
    assert (tmp_path / "a.mp4").is_file()


def test_compare_on_a_full_disk_keeps_its_parts(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "c.mp4"
    command = ["compare", PROMPT, "--frames=13", *small, "--strategies=direct,vrpr", "-o", output]
    output.write_bytes(b"good work")
    real = finished.np.save

    with disk.limited(60_000):
        failed = run(*command)
    assert failed.exit_code == 1, failed.output
    assert "c.mp4: expected to write the whole file" in failed.stderr
    assert f"2 finished videos are in {tmp_path / 'c.parts'}, the same command goes on" in failed.stderr
    assert output.read_bytes() == b"good work" and names(tmp_path) == ["c.mp4", "c.parts"]

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(library, "generate", forbidden)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert iio.imread(output).shape[0] == 13 and names(tmp_path) == ["c.json", "c.mp4", "c.png"]
    assert finished.np.save is real


def test_a_part_whose_end_is_lost_is_not_taken_for_finished(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.save

    def cut(file: Any, frames: np.ndarray) -> None:
        real(file, frames)
        with open(file, "rb+") as opened:
            opened.truncate(frames.nbytes)  # numpy does not look at what closing the file gives

    command = ["compare", PROMPT, "--frames=5", *small, "--strategies=direct", "-o", tmp_path / "c.mp4"]
    with monkeypatch.context() as patch:
        patch.setattr(finished.np, "save", cut)
        failed = run(*command)
    assert failed.exit_code == 1 and "expected to write the whole file" in failed.stderr, failed.output
    (left,) = (tmp_path / "c.parts").iterdir()
    assert left.name.startswith("direct-0-") and left.name.endswith(".latents.safetensors")


def test_compare_goes_on_with_latents_that_were_not_decoded(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compare", PROMPT, "--frames=13", *small, "--strategies=vrpr", "--keep-parts"]
    assert run(*command, "-o", tmp_path / "whole.gif").exit_code == 0
    with monkeypatch.context() as patch:
        fail_decoding(patch, MemoryError())
        failed = run(*command, "-o", tmp_path / "c.gif")
    assert failed.exit_code == 1 and "denoising is done" in failed.stderr
    (file,) = (tmp_path / "c.parts").iterdir()
    assert file.name.endswith(".latents.safetensors")
    monkeypatch.setattr(library, "generate", lambda *_, **__: pytest.fail("denoised again"))
    assert run(*command, "-o", tmp_path / "c.gif").exit_code == 0
    assert (tmp_path / "c.gif").read_bytes() == (tmp_path / "whole.gif").read_bytes()
    runs = [json.loads((tmp_path / f"{n}.json").read_text())["strategies"]["vrpr"]["runs"][0] for n in ("c", "whole")]
    assert runs[0]["plan"] == runs[1]["plan"] and runs[0]["summary"] == runs[1]["summary"]
    assert not file.exists()


def test_parts_of_other_settings_go_with_a_finished_comparison(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "c.gif"
    command = ["compare", PROMPT, "--frames=5", *small, "-o", output]
    with monkeypatch.context() as patch:
        patch.setattr("freeloc_fx.cli.compare.side_by_side", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run(*command, "--strategies=direct", "--seeds=1").exit_code == 130
    parts = tmp_path / "c.parts"
    (parts / "notes.txt").write_text("mine")
    assert run(*command, "--strategies=direct", "--seeds=2", "--keep-parts").exit_code == 0
    kept = {p.name for p in parts.glob("direct-2-*")}
    assert len(kept) == 2 and len(list(parts.glob("direct-1-*"))) == 2
    result = run(*command, "--strategies=direct", "--seeds=3")
    assert result.exit_code == 0 and "1 finished video of other settings was removed" in result.stdout
    assert set(names(parts)) == {*kept, "kept.json", "notes.txt"}  # what somebody wanted kept stays
    assert run(*command, "--strategies=direct", "--seeds=2").exit_code == 0
    assert names(parts) == ["notes.txt"]


@pytest.mark.parametrize("content", ["5", '{"a": 1}', "[1]", '{"a": [1'])
def test_a_damaged_list_of_kept_parts_is_found_before_the_work(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    parts = tmp_path / "c.parts"
    parts.mkdir()
    (parts / "kept.json").write_text(content)
    monkeypatch.setattr("freeloc_fx.cli.compare.side_by_side", lambda *_: pytest.fail("it worked"))
    result = run("compare", PROMPT, "--frames=5", *small, "--strategies=direct", "-o", tmp_path / "c.gif")
    assert result.exit_code == 2 and "kept.json" in result.stderr, result.stderr
    assert names(parts) == ["kept.json"] and names(tmp_path) == ["c.parts"]


def test_latents_of_other_settings_stay(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["compare", PROMPT, "--frames=5", *small, "--strategies=direct", "-o", tmp_path / "c.gif"]
    with monkeypatch.context() as patch:
        fail_decoding(patch, MemoryError())
        assert run(*command, "--seeds=1").exit_code == 1
    parts = tmp_path / "c.parts"
    (file,) = parts.iterdir()
    (parts / f".{file.name.removesuffix('.latents.safetensors')}-x1y2.latents.safetensors").write_bytes(b"half")
    result = run(*command, "--seeds=2")
    assert result.exit_code == 0 and f"denoised latents of other settings stay in {parts}: {file.name}" in result.stdout
    assert names(parts) == [file.name]
    assert run("decode", file, "-o", tmp_path / "d.gif").exit_code == 0
    assert run(*command, "--seeds=1").exit_code == 0 and not parts.exists()  # the video was made of them


def test_a_second_comparison_into_one_output_is_refused_while_the_first_runs(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, seconds = tmp_path / "c.parts", []
    command = ["compare", PROMPT, "--frames=5", *small, "--strategies=direct"]

    def meanwhile(*arguments: Any) -> np.ndarray:
        before = names(parts)
        for more in (["-o", tmp_path / "c.gif"], ["--seeds=1", "-o", tmp_path / "c.mp4"]):
            seconds.append(run(*command, *more))
        assert names(parts) == before
        return video.side_by_side(*arguments)

    monkeypatch.setattr("freeloc_fx.cli.compare.side_by_side", meanwhile)
    assert run(*command, "-o", tmp_path / "c.gif").exit_code == 0
    for second in seconds:
        assert second.exit_code == 2 and second.stderr.startswith(f"error: {parts}: expected a folder in which no")
        assert f"found process {os.getpid()} on" in second.stderr and len(second.stderr.splitlines()) == 1
    assert len(seconds) == 2 and names(tmp_path) == ["c.gif", "c.json", "c.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "x.parts"
    code = "import os, sys; from pathlib import Path; from freeloc_fx.files import claimed\n"
    code += "with claimed(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == -9
    assert names(folder) == [".claim"]  # nobody has cleaned up
    with claimed(folder):
        with pytest.raises(ClaimedError, match=f"x.parts: .* found process {os.getpid()} on "), claimed(folder):
            raise AssertionError("claimed twice")
        (folder / "work").touch()
    assert names(folder) == ["work"]
    (folder / "work").unlink()
    with claimed(folder):
        assert names(folder) == [".claim"]
    assert not folder.exists()


def test_runs_at_once_keep_their_latents_under_names_of_their_own(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(latent=(21, 8, 8))
    runs = [latents.kept(tmp_path / "v.gif", {"prompt": p}, "direct", job) for p in "abc"]
    for number, keep in enumerate([run.__enter__() for run in runs]):  # all of them are denoising
        keep(library.Latents(torch.full((2,), float(number)), "WanPipeline", {}))
    runs[0].__exit__(None, None, None)
    assert not runs[1].__exit__(MemoryError, MemoryError(), None)  # the error goes on
    (left, other) = sorted(tmp_path.iterdir())
    assert library.Latents.load(left).tensor.tolist() == [1, 1] and left.name == "v-2.latents.safetensors"
    assert library.Latents.load(other).tensor.tolist() == [2, 2]
    runs[2].__exit__(None, None, None)
    assert names(tmp_path) == [left.name]


def test_a_disk_without_locks_refuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for system in (None, SimpleNamespace(flock=unknown, LOCK_EX=2, LOCK_NB=4)):
        monkeypatch.setattr(files, "fcntl", system)
        with claimed(tmp_path / "x"), claimed(tmp_path / "x"):
            assert names(tmp_path / "x") == []
        assert names(tmp_path) == []
    assert "this disk has no locks" in caplog.text and "No locks available" in caplog.text


def test_latents_that_could_not_be_written_leave_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("freeloc_fx.generation.latents.write_bytes", stopped)
    job: Any = SimpleNamespace(latent=(21, 8, 8))
    with pytest.raises(KeyboardInterrupt), latents.kept(tmp_path / "v.gif", {}, "direct", job) as keep:
        keep(library.Latents(torch.zeros(3), "WanPipeline", {}))
    assert names(tmp_path) == []
