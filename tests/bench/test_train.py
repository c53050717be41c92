"""The training script: it resumes to the bit wherever it was stopped, and never shows a clip twice."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import training_loop
from checkpoints import LARGEST, Checkpoint, State, read_part
from tiny_wan_vae import make_vae
from train_dit import spread_times
from train_vae import VaeStage
from training_loop import Budget, Clips, train

from freeloc_fx.generation import tiny_wan

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "train.py"
CPU = torch.device("cpu")


class Tiny(VaeStage):
    """One clip of five frames a step, a narrow VAE; `stops` are the steps before which the process is sent a signal."""

    def __init__(self, stops: tuple[int, ...] = ()) -> None:
        torch.manual_seed(3)
        super().__init__(make_vae(8), 3, CPU, batch=1, frames=5, held_out=1)
        self.stops = stops

    def loss(self, clips: torch.Tensor, prompts: list[str], step: int) -> torch.Tensor:
        if step in self.stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(clips, prompts, step)


def run(folder: Path, steps: int, stops: tuple[int, ...] = (), **options: Any) -> tuple[State, Path]:
    stage = Tiny(stops)
    checkpoint = Checkpoint(folder, {"model": stage.model, "average": stage.average}, stage.optimizers)
    state = train(stage, checkpoint, Budget(steps=steps), seed=3, device=CPU, report_every=1e9, **options)
    (newest,) = folder.iterdir()
    return state, newest


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = read_part(folder, "average")
    assert found is not None
    return found[0]


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", 50)
    assert whole.step == 50
    stopped, newest = run(tmp_path / "parts", 50, stops=(17,), workers=1)
    assert stopped.step == 18
    assert newest.name == "step-00000018"
    early = weights(tmp_path / "parts")
    again, newest = run(tmp_path / "parts", 50)
    assert again.step == 50
    assert len(again.curve) == len(whole.curve) == 1
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], value, rtol=0, atol=0)
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}
    assert all(path.stat().st_size <= LARGEST for path in newest.iterdir())
    # The same training less its last 32 steps has other weights, so the comparison can tell.
    assert any((early[n] != v).any() for n, v in weights(tmp_path / "whole").items())


def test_a_checkpoint_that_was_not_finished_is_not_read(tmp_path: Path) -> None:
    run(tmp_path, 3)
    (tmp_path / "writing").mkdir()
    (tmp_path / "writing" / "part-000.safetensors").write_bytes(b"half")
    state, newest = run(tmp_path, 5)
    assert state.step == 5
    assert newest.name == "step-00000005"


class Clock:
    """A clock that only steps and validations move."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_checkpoints_are_as_young_as_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(training_loop, "time", clock)
    saved, validated = [], []

    class Watched(Checkpoint):
        def save(self, state: State) -> Path:
            saved.append(clock.now)
            return self.folder

    class Slow(Tiny):
        def loss(self, clips: torch.Tensor, prompts: list[str], step: int) -> torch.Tensor:
            clock.now += 5
            return sum(p.sum() for p in self.model.parameters()) * 0

        def validate(self) -> dict[str, float]:
            validated.append(clock.now)
            clock.now += 10
            return {}

    stage = Slow()
    train(stage, Watched(tmp_path, {}), Budget(seconds=600), seed=3, device=CPU, save_every=40, report_every=60)
    assert max(b - a for a, b in itertools.pairwise([0, *saved])) <= 60
    # The second validation waits for twenty times what the first one took.
    assert validated[0] == 60
    assert validated[1] >= validated[0] + 200


def test_a_loss_that_is_not_a_number_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, 3)

    class Broken(Tiny):
        def loss(self, clips: torch.Tensor, prompts: list[str], step: int) -> torch.Tensor:
            return super().loss(clips, prompts, step) * (float("nan") if step == 4 else 1.0)

    stage = Broken()
    checkpoint = Checkpoint(tmp_path, {"model": stage.model, "average": stage.average}, stage.optimizers)
    with pytest.raises(FloatingPointError, match="vae at step 5: expected a finite loss, found nan"):
        train(stage, checkpoint, Budget(steps=5), seed=3, device=CPU, report_every=1e9)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_tensor_larger_than_a_file_is_refused(tmp_path: Path) -> None:
    wide = torch.nn.Linear(2048, 2048, bias=False)
    with pytest.raises(ValueError, match=r"tensor model.weight: expected at most \d+ bytes, found 16777216"):
        Checkpoint(tmp_path, {"model": wide}).save(State())


def test_batches_never_repeat_and_go_on_where_the_last_run_stopped() -> None:
    clips = Clips(0, 11, 2, 5)
    firsts = [clips[i][0] for i in range(6)]
    for a, b in itertools.combinations(range(6), 2):
        assert not torch.equal(firsts[a], firsts[b])
    later = Clips(0, 11, 2, 5, first=4)
    assert torch.equal(later[1][0], firsts[5])
    assert not torch.equal(Clips(0, 12, 2, 5)[0][0], firsts[0])


@pytest.mark.parametrize("uniform", [True, False])
def test_a_clip_has_one_noise_level_in_each_range(uniform: bool) -> None:
    drawn = spread_times(500, 4, torch.Generator().manual_seed(3), uniform).view(500, 4)
    place = drawn if uniform else torch.special.ndtr(torch.logit(drawn))
    assert torch.equal(torch.bucketize(place, torch.tensor([0.25, 0.5, 0.75])), torch.arange(4).expand(500, 4))
    # Together they are as asked for: a Kolmogorov-Smirnov distance of 2000 numbers that are not is above 0.04.
    below = place.flatten().sort().values
    assert float((below - (torch.arange(2000) + 0.5) / 2000).abs().max()) < 0.03
    assert 0 < spread_times(3, 1, torch.Generator().manual_seed(0), uniform).min() < 1


def test_the_rate_falls_at_the_end() -> None:
    budget = Budget(steps=1000, cooldown=0.25)
    rates = [budget.rate(step, 1.0) for step in (0, 99, 500, 749, 875, 999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 1.0, 0.5, 0.02], abs=0.01)


def command(folder: Path, *arguments: str) -> list[str]:
    given = ["--work", str(folder), "--device", "cpu", "--no-compile", "--batch", "1", "--held-out", "1"]
    return [sys.executable, str(SCRIPT), *given, *arguments]


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    """SIGKILL, which no process can answer: the checkpoint from before is whole and the same command goes on."""
    arguments = command(tmp_path, "--stage", "vae", "--steps", "50", "--save-every", "0.2")
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("vae/step-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    found = read_part(tmp_path / "vae", "average")
    assert found is not None and 0 < found[1].step < 50
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"from step {found[1].step} " in done.stdout
    found = read_part(tmp_path / "vae", "average")
    assert found is not None and found[1].step == 50


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-wan", "tiny-joint"])
def test_all_stages_give_a_pipeline_folder(tmp_path: Path, model: str) -> None:
    from diffusers import WanPipeline

    from freeloc_fx.generation.pipelines import generate
    from freeloc_fx.generation.tiny_joint.pipeline import TinyJointPipeline

    arguments = command(tmp_path, "--stage", "all", "--steps", "2", "--model", model)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / f"train_{model.replace('-', '_')}.json").read_text())
    assert recipe["dit"]["steps"] == recipe["short"]["steps"] == 2
    assert recipe["dit"]["curve"][-1]["validation"] > 0
    pipe = (WanPipeline if model == "tiny-wan" else TinyJointPipeline).from_pretrained(tmp_path / model)
    prompt = "two shapes wander slowly over a striped floor"
    video = generate(pipe, prompt, frames=9, height=64, width=64, seed=0, steps=1)
    assert video.frames.shape == (9, 64, 64, 3)


@pytest.mark.slow
def test_a_teacher_is_what_the_predictions_are_compared_with(tmp_path: Path) -> None:
    """A model that is its own teacher has nothing to learn, and a teacher of other latents is refused."""
    from train_dit import DitStage

    folder = tmp_path / "tiny-wan"
    shutil.copytree(tiny_wan.path(), folder)
    args = argparse.Namespace(
        model="tiny-wan", seed=3, levels=1, batch=1, held_out=1, work=tmp_path, heads=5, layers=None, muon=True,
        fresh=False, compile=False, teacher=folder, times="uniform",
    )  # fmt: skip
    stage = DitStage("dit", args, CPU)
    clips, prompts = Clips(3, 13, 1, 81)[0]
    assert stage.loss(clips, prompts, 0).item() <= 5e-3  # rounded in another order where gradients are kept
    stage.run, stage.teacher = stage.model, None
    assert stage.loss(clips, prompts, 0).item() > 0.05
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latents_std": [', '"latents_std": [9.0, '), encoding="utf-8")
    with pytest.raises(ValueError, match=r"--teacher .*expected latents_std"):
        DitStage("dit", args, CPU)
