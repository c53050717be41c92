"""`evaluate`: everything together, drift over time, the ground truth, reading files."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from freeloc_fx.evaluation.metrics import (
    Clip,
    DependencyError,
    Evaluation,
    MetricError,
    Models,
    evaluate,
    read_clip,
    score,
)
from freeloc_fx.evaluation.metrics import clip as clip_module
from freeloc_fx.evaluation.metrics.evaluation import MEASURES, NO_AESTHETIC
from freeloc_fx.evaluation.metrics.models import FeatureModel, FlowModel, InterpolationModel, QualityModel
from freeloc_fx.generation.tiny_wan.scenes import Scene
from freeloc_fx.generation.video import write_video

pytest.importorskip("cv2")

SCENE = Scene.random(np.random.default_rng(3))
FRAMES = 49


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return SCENE.render(FRAMES)


@pytest.fixture(scope="module")
def found(real: np.ndarray) -> Evaluation:
    return evaluate(real, prompt=SCENE.prompt)


def test_consistency_comes_with_what_exposes_it(found: Evaluation) -> None:
    text, data = str(found), found.as_dict()
    for name in ("subject_consistency", "dynamic_degree", "motion", "freeze", "loop"):
        assert name.replace("_", " ") in text
        assert math.isfinite(data["measures"][name]["value"])
    required = {f.name for f in fields(Evaluation) if f.default is f.default_factory}  # both missing
    assert set(MEASURES) <= required


@pytest.mark.parametrize("name", ["dynamic_degree", "motion", "freeze", "loop"])
def test_an_evaluation_without_dynamics_or_loop_cannot_be_made(found: Evaluation, name: str) -> None:
    measure = getattr(found, name)
    for bad in (None, replace(measure, value=math.nan)):
        with pytest.raises(MetricError, match=name):
            replace(found, **{name: bad})


def test_every_default_model_is_named_a_proxy(found: Evaluation) -> None:
    models = Models()
    assert isinstance(models.subject, FeatureModel) and isinstance(models.flow, FlowModel)
    assert isinstance(models.interpolation, InterpolationModel) and isinstance(models.quality, QualityModel)
    for name, measure in found.measures():
        assert measure.model.startswith("proxy:") or name == "loop"
        assert measure.model in str(found)
    data = found.as_dict()
    assert data["measures"]["imaging_quality"]["model"].startswith("proxy:")
    assert data["not_measured"] == NO_AESTHETIC


def test_a_real_clip(found: Evaluation, real: np.ndarray) -> None:
    assert found.freeze.value == 0 and found.loop.value < 0.15 and found.cautions == ()
    assert found.ground_truth is not None and found.ground_truth.composite > 0.95
    exact = score((real * 255).round().astype(np.float32) / 255, SCENE.prompt)
    assert found.ground_truth.composite == pytest.approx(exact.composite)
    assert len(found.ground_truth_segments) == 4


def test_a_frozen_clip_is_consistent_and_says_so(real: np.ndarray, found: Evaluation) -> None:
    frozen = evaluate(np.repeat(real[:1], FRAMES, 0))
    assert frozen.subject_consistency.value > found.subject_consistency.value
    assert frozen.dynamic_degree.value == 0 and frozen.freeze.value == 1 and frozen.loop.value == 0
    assert "frozen" in frozen.cautions[0] and "caution: frozen" in str(frozen)
    assert frozen.ground_truth is None and frozen.no_ground_truth == "no prompt"


def test_a_clip_that_plays_three_times_loops(real: np.ndarray) -> None:
    found = evaluate(np.concatenate([real[:20]] * 3), fps=8, period=20)
    assert found.loop.value > 0.6 and found.loop_period == 20
    assert found.no_repeat is not None and found.no_repeat.repeats and found.no_repeat.lag == 20
    assert "loops" in found.cautions[0] and "repeats" in str(found)


def test_noise_is_neither_consistent_nor_smooth(found: Evaluation) -> None:
    noise = evaluate(np.random.default_rng(0).uniform(size=(17, 64, 64, 3)))
    assert noise.motion_smoothness.value < found.motion_smoothness.value - 0.1
    assert noise.imaging_quality.value < found.imaging_quality.value


def test_a_clip_that_degrades_drifts_down(real: np.ndarray, found: Evaluation) -> None:
    weight = np.linspace(0, 0.9, FRAMES)[:, None, None, None]
    blurred = np.mean([np.roll(real, (a, b), (1, 2)) for a in range(-3, 4) for b in range(-3, 4)], 0)
    faded = real * (1 - weight) + blurred * weight
    drift = evaluate(faded, prompt=SCENE.prompt).drift()
    for name in ("imaging_quality", "subject_consistency", "ground_truth"):
        segments = drift[name]["segments"]
        assert drift[name]["slope"] < 0 and segments[-1] < segments[0], name
    assert drift["imaging_quality"]["slope"] < 3 * min(found.drift()["imaging_quality"]["slope"], -0.01)


def test_the_drift_has_every_measure_and_as_many_segments_as_asked(real: np.ndarray) -> None:
    drift = evaluate(real, segments=6).drift()
    assert set(drift) == set(MEASURES)
    assert all(len(d["segments"]) == 6 and math.isfinite(d["slope"]) for d in drift.values())


def test_turning_the_picture_changes_little(real: np.ndarray) -> None:
    one, other = evaluate(real[:17]), evaluate(real[:17].swapaxes(1, 2))
    for name, measure in one.measures():
        assert getattr(other, name).value == pytest.approx(measure.value, abs=0.15 * max(1, measure.value)), name


def test_models_can_be_replaced(real: np.ndarray) -> None:
    class Half:
        name = "half"

        def quality(self, frames: np.ndarray) -> np.ndarray:
            return np.full(len(frames), 0.5)

    found = evaluate(real[:9], models=Models(quality=Half()))
    assert found.imaging_quality.value == 0.5 and found.imaging_quality.model == "half"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 8, 8, 3)), "at least 3 frames, found 2"),
        (np.zeros((9, 8, 8)), r"\(frames, height, width, 3\)"),
        (np.full((9, 8, 8, 3), np.nan), "NaN"),
        (np.zeros((9, 8, 8, 3), int), "uint8"),
    ],
)
def test_videos_that_cannot_be_measured(bad: np.ndarray, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        evaluate(bad)


def test_arguments_that_make_no_sense(real: np.ndarray) -> None:
    with pytest.raises(MetricError, match="segments"):
        evaluate(real, segments=0)
    with pytest.raises(MetricError, match="NoRepeat"):
        evaluate(real, period=FRAMES)
    with pytest.raises(MetricError, match="frame rate"):
        evaluate(real, fps=0)
    with pytest.raises(MetricError, match="prompt"):
        evaluate(real, prompt="a cat")
    with pytest.raises(MetricError, match=r"64x64 pixels.*32x64"):
        evaluate(real[:, :, :32], prompt=SCENE.prompt)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_files_are_read_as_they_were_written(real: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}", real[:13], fps=16, scale=4)
    clip = read_clip(path)
    assert clip.frames.shape == (13, 256, 256, 3) and clip.frames.dtype == np.uint8
    assert clip.fps == pytest.approx(16, rel=0.02) and clip.name == str(path)
    assert np.abs(clip.frames[::4, 2::4, 2::4] / 255 - real[:13:4]).mean() < 0.04
    assert read_clip(path, fps=8).fps == 8


def test_the_prompt_in_the_report_beside_a_video_is_used(real: np.ndarray, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", real[:25], scale=2)
    assert evaluate(path).no_ground_truth == "no prompt"
    report = path.with_suffix(".json")
    for data in ({"prompt": SCENE.prompt}, {"settings": {"prompt": SCENE.prompt}}):
        report.write_text(json.dumps(data))
        truth = evaluate(path).ground_truth
        assert truth is not None and truth.composite > 0.8
    for text, reason in (('{"prompt": "a cat"}', "cat"), ("{", "JSON"), ("[1]", "no prompt")):
        report.write_text(text)
        assert reason in str(evaluate(path).no_ground_truth)


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="no such file"):
        evaluate(tmp_path / "none.mp4")
    with pytest.raises(MetricError, match="folder"):
        evaluate(tmp_path)
    for name in ("text.mp4", "text.gif"):
        (tmp_path / name).write_text("this is not a video")
        with pytest.raises(MetricError, match=name):
            evaluate(tmp_path / name)


def test_a_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch, real: np.ndarray) -> None:
    original = clip_module.importlib.import_module

    def without(name: str, *rest: str) -> object:
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return original(name, *rest)

    monkeypatch.setattr(clip_module.importlib, "import_module", without)
    with pytest.raises(DependencyError, match=r"cv2.*freeloc_fx\[metrics\]"):
        evaluate(real)


def test_a_clip_keeps_its_rate_unless_told() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    assert Clip.of(frames).fps == 16 and Clip.of(frames, 8).fps == 8
    assert Clip.of(Clip(frames, 5)).fps == 5 and Clip.of(Clip(frames, 5), 6).fps == 6
