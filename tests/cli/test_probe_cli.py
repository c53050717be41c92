"""`freeloc probe --lengths --temperature`: which files it writes, from a probe whose measurements are made up."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any, ClassVar

import pipelines
import pytest
from torch import nn
from typer.testing import CliRunner, Result

from freeloc_fx import Profile
from freeloc_fx.cli.app import app
from freeloc_fx.generation import pipelines as library
from freeloc_fx.probing.result import Unit, assignment, made_profile, settled, uniform
from freeloc_fx.probing.statistics import TEMPERATURES

command = importlib.import_module("freeloc_fx.cli.probe")


def made_up(frames: int, contexts: tuple[float, float]) -> dict[str, Any]:
    """What a unit would give: two layers whose entropy rises with the number of frames."""

    def value(mean: Any) -> dict[str, Any]:
        return {"mean": mean, "error": 0.01, "rows": 16}

    layers = {}
    for layer, context in enumerate(contexts):
        entropies = [frames / factor for factor in TEMPERATURES]
        quantities = {"ald": value(2.0), "output": value(1.0 + layer), "context": value(context)}
        quantities["entropy"] = value(float(frames))
        layers[str(layer)] = {**quantities, "entropies": value(entropies)}
    return {"frames": frames, "text": False, "layers": layers, "reward": None}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """No model is loaded or run; returns what the probe was asked for."""
    seen: dict[str, Any] = {}
    contexts = {2: (0.1, 2.0), 3: (0.1, 2.0), 5: (0.1, 2.0), 11: (2.0, 0.1)}

    def probe(pipe: Any, *, lengths: list[int], trained_frames: int, temperature: bool, **rest: Any) -> Profile:
        seen.update(rest, lengths=lengths, temperature=temperature)
        job = {"seeds": [0], "mode": "observe", "trained_frames": trained_frames, "settings": None}
        units = [Unit("observe", 0, n) for n in (trained_frames, *lengths)]
        results = {unit.name: made_up(unit.frames, contexts[unit.frames]) for unit in units}
        return made_profile(nn.Module(), job, lengths, units, results, temperature)

    monkeypatch.setattr(command, "run_probe", probe)
    monkeypatch.setattr(command, "load", lambda job: None)
    return seen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.save(tmp_path_factory.mktemp("model"))


def run(model: Path, *arguments: Any) -> Result:
    """With a prompt where videos are not of tiny-wan's size, whose scenes are the default."""
    given = [*map(str, arguments)]
    if not any(one.startswith(("--prompt", "--height=64")) for one in given):
        given.append("--prompt=a dog")
    return CliRunner().invoke(app, ["probe", f"--model={model}", "--trained=2", *given])


def test_one_profile_has_the_layers_of_every_length(model: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "p.json"
    result = run(model, "--lengths=2,4,10", "-o", output)
    assert result.exit_code == 0, result.output
    assert asked["lengths"] == [3, 5, 11]
    assert not asked["temperature"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "p.png"]
    profile = Profile.load(output)
    assert (profile.name, profile.temperature) == ("p", None)
    assert profile.layers == profile.at(3).layers == profile.at(4).layers == {0: "vrpr", 1: "vrpr+tsa"}
    assert profile.at(11).layers == profile.at(40).layers == {0: "vrpr+tsa", 1: "vrpr"}
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    for frames in (3, 5, 11):
        assert f"at {frames} latent frames:" in result.output


@pytest.mark.parametrize("given", [None, 2.5])
def test_a_probe_samples_at_the_guidance_that_is_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: float | None
) -> None:
    """Layers and rewards differ with the scale, so a probe has it, says it, and keeps its units apart by it."""
    scales: list[float] = []
    pipeline = type(library.load_pipeline(model))
    plain = pipeline.__call__

    def counted(self: Any, *args: Any, guidance_scale: float, **rest: Any) -> Any:
        scales.append(guidance_scale)
        return plain(self, *args, guidance_scale=guidance_scale, **rest)

    monkeypatch.setattr(pipeline, "__call__", functools.wraps(plain)(counted))
    usual = library.defaults(library.load_pipeline(model)).guidance
    options = ["--steps=1", "--lengths=2", "--height=16", "--width=16", "--trained=2", "--prompt=a dog"]
    output = tmp_path / "p.json"
    result = run(model, *options, *([] if given is None else [f"--guidance={given}"]), "-o", output)
    assert result.exit_code == 0, result.output
    wanted = usual if given is None else given
    assert set(scales) == {wanted}
    assert Profile.load(output).provenance["guidance"] == wanted  # type: ignore[index]
    result = run(model, *options, f"--guidance={wanted + 1}", "-o", output)
    assert result.exit_code != 0
    assert "different: guidance" in result.output


def test_temperatures_are_per_length_and_not_beside_tsa(model: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    result = run(model, "--lengths=2,4", "--temperature", "-o", tmp_path / "p.json")
    assert result.exit_code == 0, result.output
    for frames, ratio in ((3, 3 / 2), (5, 5 / 2)):
        profile = Profile.load(tmp_path / "p.json").at(frames)
        assert profile.layers == {0: "vrpr+temp", 1: "vrpr+tsa"}
        assert profile.temperature is not None
        assert dict(profile.temperature) == {0: pytest.approx(ratio, rel=0.02)}  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", ["", "2,x", "0.5", "4,-1"])
def test_bad_lengths_are_refused(model: Path, asked: dict[str, Any], tmp_path: Path, lengths: str) -> None:
    result = run(model, f"--lengths={lengths}", "-o", tmp_path / "p.json")
    assert result.exit_code == 2
    assert "--lengths: expected multiples of the trained length" in result.output
    assert not asked


def test_lengths_and_frames_exclude_each_other(model: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    result = run(model, "--lengths=2", "--frames=17", "-o", tmp_path / "p.json")
    assert result.exit_code == 2
    assert "expected one of them, found both" in result.output


def test_candidates_are_rewarded_and_what_came_of_them_is_said(
    model: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_probe = command.run_probe

    def probe(*arguments: Any, **options: Any) -> Profile:
        profile = made_up_probe(*arguments, **options)
        ruled = assignment(profile, 5)
        return settled(profile, {5: {ruled: [0.5, 0.6, 0.7], "window": [0.6, 0.7, 0.81], "tsa": [0.4, 0.6, 0.9]}})

    monkeypatch.setattr(command, "run_probe", probe)
    monkeypatch.setattr(command, "_judge", lambda job, needed, *rest: needed and (lambda video, seed: 0.0))
    options = ["--candidate=window", "--candidate=tsa", "--seeds=3", "-o", tmp_path / "p.json"]
    result = run(model, *options)
    assert result.exit_code == 0, result.output
    assert asked["candidates"] == {"window": None, "tsa": None} and asked["reward"] is not None
    assert "window: reward 0.703, +0.103 +-0.003 from the rule's assignment (taken)" in result.output
    assert "tsa: reward 0.633, +0.033 +-0.088 from the rule's assignment\n" in result.output
    profile = Profile.load(tmp_path / "p.json")
    assert profile.layers == "window"
    assert "layers " in result.output  # the rule's own assignment, which has no one name


def test_a_candidate_may_be_for_some_lengths_only(
    model: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_judge", lambda *_: lambda video, seed: 0.0)
    options = ["--lengths=2,4", "--candidate=vrpr+temp@4,2", "--candidate=window@4", "--candidate=tsa", "--seeds=3"]
    result = run(model, *options, "-o", tmp_path / "p.json")
    assert result.exit_code == 0, result.output
    assert asked["candidates"] == {"vrpr+temp": [5, 3], "window": [5], "tsa": None}


@pytest.mark.parametrize("matched", [False, True])
def test_a_candidates_temperature_is_the_closed_formula_unless_matched_is_asked_for(matched: bool) -> None:
    units = [Unit("observe", 0, n) for n in (3, 5)]
    results = {unit.name: made_up(unit.frames, (2.0, 2.0)) for unit in units}
    job = {"seeds": [0], "mode": "observe", "trained_frames": 3, "settings": None}
    ruled = made_profile(nn.Module(), job, [5], units, results, matched)
    found = settled(ruled, {5: {assignment(ruled, 5): [0.5, 0.6, 0.7], "vrpr+temp": [0.6, 0.7, 0.81]}})
    tried = uniform(ruled, 5, "vrpr+temp")
    assert found.layers == tried.layers == "vrpr+temp"
    expected = {0: pytest.approx(5 / 3, rel=0.02), 1: pytest.approx(5 / 3, rel=0.02)} if matched else None
    assert found.temperature == tried.temperature == expected


def test_bad_candidates_are_refused_before_the_model_is_loaded(
    model: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    for options, words in (
        (["--candidate=window", "--seeds=2"], "candidates: expected at least 3 seeds"),
        (["--candidate=windo", "--seeds=3"], "unknown strategy 'windo'"),
        (["--candidate=window@2", "--seeds=3"], "'window' is to be tried at 3, expected lengths of the probe: 5"),
        (["--candidate=window@x", "--seeds=3"], "--candidate: expected multiples of the trained length above 1"),
        (["--candidate=window", "--candidate=window@4", "--seeds=3"], "--candidate: expected each strategy once"),
        (["--candidate=window", "--seeds=3", "--prompt=a cat"], "--candidate: expected prompts that can be scored"),
        (["--candidate=window", "--seeds=3", "--prompt=a cat"], "found: scores need a video of 64x64 pixels"),
    ):
        result = run(model, *options, "-o", tmp_path / "p.json")
        assert result.exit_code != 0 and words in " ".join(result.output.split()), result.output
    assert not asked


class Judge:
    """VisionReward, as far as the command knows it."""

    loaded: ClassVar[list[Any]] = []

    @classmethod
    def load(cls, *arguments: Any, **options: Any) -> Judge:
        cls.loaded.append((arguments, options))
        return cls()

    def reward(self, prompts: list[str], seeds: Any) -> Any:
        return lambda video, seed: (prompts, list(seeds), video, seed)


def test_visionreward_rewards_a_full_probe(
    model: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "VisionReward", Judge)
    files = (tmp_path / "q.txt", tmp_path / "w.json")
    for file in files:
        file.touch()
    options = ["--visionreward", *files, "--seeds=2", "--prompt", "a cat", "-o", tmp_path / "p.json"]
    result = run(model, "--mode=full", *options, "--visionreward-model=here", "--trust-remote-code")
    assert result.exit_code == 0, result.output
    (arguments, given) = Judge.loaded[0]
    assert arguments == (*files, "here") and given["trust_remote_code"] is True
    assert asked["reward"]("video", 1) == (["a cat"], [0, 1], "video", 1)
    named = asked["reward_name"]
    assert named.startswith("VisionReward here ")
    files[1].write_text("[1.0]")  # another reward: the journal's would be of the one before
    again = run(model, "--mode=full", *options, "--visionreward-model=here", "--trust-remote-code")
    assert again.exit_code == 0 and asked["reward_name"] not in (named, "composite"), again.output
    refused = run(model, *options)
    assert refused.exit_code == 2 and "--mode full" in refused.stderr and len(Judge.loaded) == 2


def test_a_full_probe_without_a_reward_says_so(model: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    for options, told in (("--height=64", "--width=64"), "prompt 'a cat' is not in"), ((), "scores need a video of"):
        result = run(model, "--mode=full", *options, "--prompt=a cat", "-o", tmp_path / f"p{len(options)}.json")
        assert result.exit_code == 0 and asked["reward"] is None, result.output
        assert f"positions are measured by ALD: {told}" in " ".join(result.stderr.split()), result.stderr


def test_what_only_the_user_knows_is_asked_for(model: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    """On how many frames another's model was trained, and which prompts it knows."""
    output = ["-o", str(tmp_path / "p.json")]
    refused = CliRunner().invoke(app, ["probe", f"--model={model}", "--prompt=a cat", *output])
    assert refused.exit_code == 2 and "--trained: expected the latent frames of the training clips" in refused.stderr
    assert "no shipped profile is for this WanTransformer3DModel" in " ".join(refused.stderr.split())
    refused = CliRunner().invoke(app, ["probe", f"--model={model}", "--trained=2", *output])
    assert refused.exit_code == 2 and "--prompt: expected one such as the model was trained on" in refused.stderr
    assert not asked and not list(tmp_path.iterdir())


def test_without_its_files_visionreward_is_not_loaded(model: Path, tmp_path: Path) -> None:
    result = run(model, "--mode=full", "--visionreward", tmp_path / "q", tmp_path / "w", "-o", tmp_path / "p.json")
    assert result.exit_code == 2 and "checklist" in result.stderr
