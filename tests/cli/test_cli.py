"""The command line: what is written, what is refused before anything is loaded, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pipelines
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from freeloc_fx import Profile
from freeloc_fx.cli.app import app
from freeloc_fx.generation import pipelines as library

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"}).save(path)
    return path


@pytest.fixture
def small(model: Path, profile: Path) -> list[str]:
    return [f"--model={model}", f"--profile={profile}", "--steps=2", "--guidance=1", "--height=32", "--width=32"]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(library, "load_pipeline", fail)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of each generation; 13 means Ctrl-C within the first step."""
    seeds: list[int] = []
    original: Callable[..., library.Video] = library.generate

    def watched(*args: Any, seed: int, on_step: Any = None, **kwargs: Any) -> library.Video:
        def step(done: int, total: int) -> None:
            if on_step is not None:
                on_step(done, total)
            if seed == 13:
                raise KeyboardInterrupt

        video = original(*args, on_step=step, seed=seed, **kwargs)
        seeds.append(seed)
        return video

    monkeypatch.setattr(library, "generate", watched)
    return seeds


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_generate_writes_a_video_and_a_sheet(small: list[str], tmp_path: Path) -> None:
    result = run("generate", PROMPT, "--frames=13", *small, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 0, result.output
    assert "2 of 2 sites rewritten" in result.stdout and "strategy profile" in result.stdout
    video = iio.imread(tmp_path / "a.mp4")
    assert video.shape == (13, 256, 256, 3)
    assert Image.open(tmp_path / "a.png").width > 256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.mp4", "a.png", "profile.json"]


@pytest.mark.parametrize("name", ["take [final]/a.mp4", "x[/red].mp4", "[bold]:smile:.mp4"])
def test_file_names_are_no_markup(name: str, small: list[str], tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    result = run("generate", PROMPT, "--frames=5", *small, "-o", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / name) in result.stdout and (tmp_path / name).is_file()


def test_generate_at_pipeline_level(small: list[str], tmp_path: Path) -> None:
    found = {}
    for name, options in {
        "direct": ["--strategy=direct"],
        "windows": ["--windows"],
        "freenoise": ["--strategy=direct", "--noise=freenoise"],
        "both": ["--windows", "--noise=freenoise"],
    }.items():
        result = run("generate", PROMPT, "--frames=13", *small, *options, "-o", tmp_path / f"{name}.mp4")
        assert result.exit_code == 0, result.output
        found[name] = (tmp_path / f"{name}.mp4").read_bytes()
        settings = json.loads((tmp_path / f"{name}.json").read_text())["settings"]
        assert settings["windows"] == (name in ("windows", "both")), name
        assert settings["noise"] == ("freenoise" if name in ("freenoise", "both") else "plain"), name
    assert len(set(found.values())) == 4
    refused = run("generate", PROMPT, "--frames=13", *small, "--windows", "--strategy=tsa", "-o", tmp_path / "a.mp4")
    assert refused.exit_code == 2 and "--windows" in refused.stderr and not (tmp_path / "a.mp4").exists()


def test_generate_gif_direct_with_scores(small: list[str], tmp_path: Path) -> None:
    size = ["--height=64", "--width=64", "--strategy=direct"]
    result = run("generate", PROMPT, "--frames=5", *small, *size, "-o", tmp_path / "a.gif")
    assert result.exit_code == 0, result.output
    assert "untouched model" in result.stdout and "Scores against the prompt" in result.stdout
    assert Image.open(tmp_path / "a.gif").n_frames == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames=12"], "4n+1 frames, the nearest are 9 and 13"),
        (["--frames=257"], "rope_max_seq_len is 64"),
        (["--height=40"], "expected a multiple of 16 pixels"),
        (["-o", "out.avi"], "expected a file name ending in .mp4 or .gif"),
        (["-o", "none/out.mp4"], "the folder none does not exist"),
        (["--profile=none"], "profile 'none': expected the path of a JSON file"),
        (["--profile=wan2.1-t2v-1.3b"], "model.config.num_layers"),
        (["--profile=corrupt.json"], "line 1, column 2: not valid JSON"),
        (["--strategy=vrprr"], "unknown strategy 'vrprr'"),
        (["--strategy=window+temp+tsa"], "two parts set the visibility"),
        (["--model=./none"], "model './none': no such folder"),
    ],
)
@pytest.mark.usefixtures("no_loading")
def test_bad_input_is_refused_before_loading(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corrupt.json").write_text("{trained_frames: 2}")
    for command in (["generate", PROMPT], ["compare", PROMPT], ["inspect"]):
        if command == ["inspect"]:
            if arguments[0] == "-o":
                continue
            given = [item for item in small if "steps" not in item and "guidance" not in item]
        else:
            given = small
        words = [a.replace("--strategy=", "--strategies=direct,") if command[0] == "compare" else a for a in arguments]
        result = run(*command, "--frames=13", *given, *words)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance=inf"], "--guidance: expected a finite number from 0, found inf"),
        ([f"--seed={2**63}"], "--seed: expected a number from 0 to 2**63 - 1, found 9223372036854775808"),
        (["--fps=101", "-o", "a.gif"], "a.gif: a gif has at most 100 frames per second, found fps=101"),
    ],
)
def test_numbers_that_no_video_has_are_refused_before_loading(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("generate", "compare"):
        if command == "compare" and "seed" in arguments[0]:
            continue  # it has --seeds
        result = run(command, PROMPT, "--frames=13", *small, *arguments)
        assert result.exit_code == 2 and message in result.stderr, result.output


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("arguments", [["--seeds=0,x"], ["--seeds=-1"], ["--strategies=,"]])
def test_lists_that_make_no_sense(small: list[str], arguments: list[str], tmp_path: Path) -> None:
    result = run("compare", PROMPT, "--frames=13", *small, *arguments, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 2 and arguments[0].split("=")[0] in result.stderr


@pytest.mark.usefixtures("no_loading")
def test_a_failure_exits_1_with_one_line_and_a_traceback_on_request(small: list[str], tmp_path: Path) -> None:
    result = run("generate", PROMPT, "--frames=13", *small, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 1 and "AssertionError: loaded" in result.stderr and "Traceback" not in result.stderr
    result = run("generate", PROMPT, "--frames=13", *small, "-o", tmp_path / "a.mp4", "--debug")
    assert result.exit_code == 1 and "Traceback" in result.stderr


@pytest.mark.usefixtures("generated")
def test_an_interruption_leaves_no_file(small: list[str], tmp_path: Path) -> None:
    result = run("generate", PROMPT, "--frames=5", "--seed=13", *small, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 130
    assert "interrupted, nothing written" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


def test_compare_goes_on_where_it_was_interrupted(
    small: list[str], tmp_path: Path, generated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compare", PROMPT, "--frames=13", *small, "--height=64", "--width=64", "--seeds=3,4"]
    arguments += ["--strategies=direct,vrpr+temp", "-o", tmp_path / "c.mp4"]
    with monkeypatch.context() as patch:
        watched = library.generate

        def killed(*args: Any, **kwargs: Any) -> library.Video:
            if len(generated) == 3:
                raise KeyboardInterrupt
            return watched(*args, **kwargs)

        patch.setattr(library, "generate", killed)
        result = run(*arguments)
    assert result.exit_code == 130, result.output
    assert "3 finished videos are in" in result.stderr
    assert not (tmp_path / "c.mp4").exists()
    assert generated == [3, 4, 3]
    # A file cut short is not taken for a finished video.
    torn = next((tmp_path / "c.parts").glob("direct-4-*.npy"))
    torn.write_bytes(torn.read_bytes()[:100])

    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "2 of 4 videos are there" in result.stdout and "keeps" in result.stdout and "a real clip" in result.stdout
    assert generated == [3, 4, 3, 4, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.mp4", "c.png", "profile.json"]
    report = json.loads((tmp_path / "c.json").read_text())
    assert set(report["strategies"]) == {"direct", "vrpr+temp"}
    runs = report["strategies"]["vrpr+temp"]["runs"]
    assert [r["seed"] for r in runs] == [3, 4] and runs[0]["plan"]["rewritten"] == 2
    mean = report["strategies"]["direct"]["scores"]["foreign"]
    assert mean == pytest.approx(np.mean([r["scores"]["foreign"] for r in report["strategies"]["direct"]["runs"]]))
    assert report["real_clip"]["composite"] > 0.9 > mean
    assert report["settings"]["seeds"] == [3, 4] and set(report["versions"]) >= {"torch", "freeloc_fx"}


def test_compare_reuses_kept_parts_for_the_same_settings_only(
    small: list[str], tmp_path: Path, generated: list[int]
) -> None:
    arguments = ["compare", "anything", "--frames=5", *small, "-o", tmp_path / "c.gif", "--keep-parts"]
    assert run(*arguments, "--strategies=direct").exit_code == 0
    assert run(*arguments, "--strategies=direct").exit_code == 0
    assert len(generated) == 1
    assert run(*arguments, "--strategies=direct", "--steps=1").exit_code == 0
    assert len(generated) == 2
    assert json.loads((tmp_path / "c.json").read_text())["strategies"]["direct"]["scores"] is None


def test_inspect(model: Path, profile: Path, tmp_path: Path) -> None:
    options = [f"--model={model}", f"--profile={profile}", "--frames=13", "--height=32", "--width=32"]
    result = run("inspect", *options, "--json=-")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [s["strategy"]["name"] for s in data["sites"]] == ["vrpr", "vrpr+tsa"]
    sizes = {"frames": 4, "height": 2, "width": 2, "text_first": 0, "text_last": 0, "turned": 0}
    assert data["grid"] == sizes | {"before": [], "after": [], "uneven": []}
    assert data["class"] == "WanTransformer3DModel"
    assert data["sites"][0]["rope"]["pairing"] == "interleaved"
    assert 0 < data["totals"]["kept_pairs"] <= 1
    assert [s["path"] for s in data["skipped"]] == ["blocks.0.attn2", "blocks.1.attn2"]

    listed = run("inspect", *options, "--passes")
    assert listed.exit_code == 0 and "rewrite_attention: 2 matched" in listed.stdout, listed.output
    assert "freeloc_fx.long_attention.default 0 -> 2 (+2)" in listed.stdout

    pictures = tmp_path / "pictures"
    result = run("inspect", *options, "--strategy=tsa", f"--json={tmp_path / 'i.json'}", f"--pictures={pictures}")
    assert result.exit_code == 0, result.output
    assert "interleaved" in result.stdout and "blocks.1.attn1" in result.stdout and "left alone" in result.stdout
    assert sorted(p.name for p in pictures.iterdir()) == ["00-tsa-mask.png", "00-tsa-positions.png"]
    assert {s["strategy"]["name"] for s in json.loads((tmp_path / "i.json").read_text())["sites"]} == {"tsa"}


def test_profiles(profile: Path, tmp_path: Path) -> None:
    result = run("profiles", "list")
    assert result.exit_code == 0 and all(name in result.stdout for name in Profile.names())
    shown = run("profiles", "show", "wan2.1-t2v-1.3b")
    assert json.loads(shown.stdout)["trained_frames"] == 21
    assert run("profiles", "show", "none").exit_code == 2
    assert run("profiles", "validate", profile, "tiny-wan").exit_code == 0
    bad = tmp_path / "bad.json"
    bad.write_text('{"schema": 1, "trained_frames": 1}')
    result = run("profiles", "validate", profile, bad)
    assert result.exit_code == 2
    assert "trained_frames: expected an integer of at least 2" in result.stderr and "valid" in result.stdout


def test_version_and_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from freeloc_fx import __version__, cli

    assert run("--version").stdout == f"freeloc {__version__}\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "rich" else object())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert 'freeloc needs rich: pip install "freeloc_fx[cli]"' in capsys.readouterr().err


def test_probe_writes_a_profile_and_resumes(model: Path, tmp_path: Path, generated: list[int]) -> None:
    output = tmp_path / "probed.json"
    arguments = [
        "probe",
        f"--model={model}",
        "--trained=2",
        "--prompt=a cat",
        "--frames=17",
        "--steps=2",
        "--height=32",
        "--width=32",
    ]
    result = run(*arguments, "-o", output)
    assert result.exit_code == 0, result.output
    profile = Profile.load(output)
    assert profile.sensitivities is not None
    assert sorted(profile.sensitivities) == [0, 1]
    assert profile.name == "probed"
    first = output.read_bytes()
    made = len(generated)
    assert made == 2
    output.unlink()
    assert run(*arguments, "-o", output).exit_code == 0
    assert output.read_bytes() == first
    assert len(generated) == made  # everything came from the journal


def test_probe_refuses_a_bad_length_before_loading(model: Path, tmp_path: Path, no_loading: None) -> None:
    result = run("probe", f"--model={model}", "--trained=2", "--prompt=a cat", "--frames=18", "-o", tmp_path / "p.json")
    assert result.exit_code == 2
    assert "frames=18" in result.output
