"""The vbench package, VisionReward, DINO, CLIP and MUSIQ, each with a stand-in of its interface or random weights."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from freeloc_fx.evaluation.metrics import Clip, DependencyError, Evaluation, MetricError
from freeloc_fx.evaluation.metrics import vbench as definitions
from freeloc_fx.evaluation.metrics.adapters import DIMENSIONS, read_vbench, run_vbench, with_vbench
from freeloc_fx.evaluation.metrics.evaluation import MEASURES
from freeloc_fx.evaluation.metrics.hub import ClipFeatures, DinoFeatures, Musiq
from freeloc_fx.evaluation.metrics.visionreward import VisionReward, whole_seconds


def evaluation(name: str) -> Evaluation:
    measure = definitions.Measure(0.5, np.ones(2), np.array([0.0, 1.0]))
    return Evaluation(name=name, frames=3, fps=16, **{m: measure for m in MEASURES})


def write_results(path: Path, videos: dict[str, dict[str, Any]]) -> Path:
    dimensions = next(iter(videos.values()))
    data = {
        d: [0.0, [{"video_path": p, "video_results": values[d]} for p, values in videos.items()]] for d in dimensions
    }
    path.write_text(json.dumps(data))
    return path


def test_vbenchs_results_are_read(tmp_path: Path) -> None:
    values = {"subject_consistency": 0.97, "dynamic_degree": True, "imaging_quality": 64.0}
    found = read_vbench(write_results(tmp_path / "r.json", {"/x/a.mp4": values}))
    assert found == {"/x/a.mp4": {"subject_consistency": 0.97, "dynamic_degree": 1.0, "imaging_quality": 0.64}}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": [0, [{"video_path": "b"}]]}', '{"a": [0, [1]]}'])
def test_results_of_another_layout_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(MetricError, match=r"r\.json"):
        read_vbench(tmp_path / "r.json")


def test_missing_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"none\.json"):
        read_vbench(tmp_path / "none.json")


def test_vbenchs_figures_go_beside_ours() -> None:
    results = {"/x/a.mp4": {"aesthetic_quality": 0.6}, "/x/b.mp4": {"aesthetic_quality": 0.5}}
    found = with_vbench(evaluation("here/a.mp4"), results)
    assert found.vbench == {"aesthetic_quality": 0.6}
    assert found.as_dict()["not_measured"] is None and "loop" in str(found) and "0.6000" in str(found)
    with pytest.raises(MetricError, match=r"c\.mp4.*found none"):
        with_vbench(evaluation("c.mp4"), results)
    both = {"/x/a.mp4": {"loop": 0.0}, "/y/a.mp4": {"loop": 1.0}}
    with pytest.raises(MetricError, match="found 2"):
        with_vbench(evaluation("a.mp4"), both)
    assert with_vbench(evaluation("/y/a.mp4"), both).vbench == {"loop": 1.0}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A vbench that gives each video the length of its file; what it was called with."""
    calls: list[dict[str, Any]] = []

    class VBench:
        def __init__(self, device: Any, full_info_dir: str, output_path: str) -> None:
            self.output = Path(output_path)
            self.output.mkdir(parents=True, exist_ok=True)

        def evaluate(self, videos_path: str, name: str, dimension_list: list[str], mode: str) -> None:
            calls.append({"names": sorted(p.name for p in Path(videos_path).iterdir()), "mode": mode})
            videos = {str(p): {d: float(p.stat().st_size) for d in dimension_list} for p in Path(videos_path).iterdir()}
            write_results(self.output / f"{name}_eval_results.json", videos)

    module = types.ModuleType("vbench")
    module.VBench = VBench  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vbench", module)
    return calls


def test_vbench_is_run_on_videos_of_one_name_in_two_folders(package: list[dict[str, Any]], tmp_path: Path) -> None:
    videos = []
    for folder, size in (("x", 1), ("y", 2)):
        (tmp_path / folder).mkdir()
        videos.append(tmp_path / folder / "a.mp4")
        videos[-1].write_bytes(b"-" * size)
    found = run_vbench(videos, tmp_path / "out", ["subject_consistency", "dynamic_degree"])
    assert [found[str(v)]["subject_consistency"] for v in videos] == [1, 2]
    assert package == [{"names": ["0000.mp4", "0001.mp4"], "mode": "custom_input"}]


def test_vbench_is_not_run_on_what_it_does_not_take(package: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.gif").touch()
    (tmp_path / "a.mp4").touch()
    for videos, dimensions, message in (
        ([], DIMENSIONS, "at least one"),
        ([tmp_path / "a.gif"], DIMENSIONS, "a.gif"),
        ([tmp_path / "b.mp4"], DIMENSIONS, "b.mp4"),
        ([tmp_path / "a.mp4"], ["color"], "color"),
    ):
        with pytest.raises(MetricError, match=message):
            run_vbench(videos, tmp_path, dimensions)
    assert not package


def test_without_vbench_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    monkeypatch.setitem(sys.modules, "vbench", None)
    with pytest.raises(DependencyError, match="pip install vbench"):
        run_vbench([tmp_path / "a.mp4"], tmp_path)


class Tokenizer:
    def decode(self, token: torch.Tensor) -> str:
        return "yes" if int(token) else "no"


class Answers:
    """Says yes where the video is bright and the question is about light."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.shapes: list[tuple[int, ...]] = []

    def build_conversation_input_ids(self, *, query: str, images: list[torch.Tensor], **_: Any) -> dict[str, Any]:
        self.queries.append(query)
        self.shapes.append(tuple(images[0].shape))
        ids = torch.arange(5)
        return {"input_ids": ids, "token_type_ids": ids, "attention_mask": ids, "images": images}

    def generate(self, input_ids: torch.Tensor, images: list[list[torch.Tensor]], **_: Any) -> torch.Tensor:
        yes = images[0][0].mean() > 100 and "light" in self.queries[-1]
        return torch.cat([input_ids, torch.tensor([[int(yes)]])], 1)


def test_visionreward_is_the_weighted_mean_of_its_answers() -> None:
    model = Answers()
    reward = VisionReward(model, Tokenizer(), ["Is [[prompt]] light?", "Is it dark?"], [3.0, 0.5], fps=4)
    bright, dark = np.full((9, 8, 8, 3), 0.9), np.zeros((9, 8, 8, 3))
    assert reward(bright, "a lamp") == (3 - 0.5) / 2
    assert reward(dark, "a lamp") == (-3 - 0.5) / 2
    assert model.queries[0] == "Is a lamp light?" and model.shapes[0] == (3, 3, 8, 8)  # at 0, 1 and 2 s
    for_probe = reward.reward(["first", "second"], [7, 8, 9])
    for seed in (7, 8, 9):
        for_probe(bright, seed)
    assert [q for q in model.queries[4:] if "light" in q] == [f"Is {p} light?" for p in ("first", "second", "first")]


@pytest.mark.parametrize(
    ("frames", "fps", "expected"), [(17, 16, [0, 16]), (33, 16, [0, 16, 32]), (5, 16, [0]), (49, 24, [0, 24, 48])]
)
def test_visionreward_looks_at_whole_seconds(frames: int, fps: float, expected: list[int]) -> None:
    assert whole_seconds(frames, fps) == expected
    assert len(whole_seconds(10_000, fps)) == 24


def test_visionreward_refuses_a_wrong_checklist(tmp_path: Path) -> None:
    for questions, weights in (([], []), (["a"], [1.0, 2.0]), (["a"], [float("nan")])):
        with pytest.raises(MetricError, match="VisionReward"):
            VisionReward(Answers(), Tokenizer(), questions, weights)
    with pytest.raises(MetricError, match="checklist"):
        VisionReward.load(tmp_path / "q.txt", tmp_path / "w.json")
    (tmp_path / "q.txt").write_text("Is it [[prompt]]?\n\nIs it light?\n")
    (tmp_path / "w.json").write_text("[1, 2]")
    with pytest.raises(MetricError, match="cannot be loaded"):
        VisionReward.load(tmp_path / "q.txt", tmp_path / "w.json", tmp_path, device="cpu")
    with pytest.raises(MetricError, match="prompts and seeds"):
        VisionReward(Answers(), Tokenizer(), ["a"], [1.0]).reward([], [0])


FRAMES = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)


def test_dino_with_random_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    model = DinoFeatures(tmp_path)
    found = model.features(FRAMES)
    assert found.shape == (3, 16) and str(tmp_path) in model.name
    assert np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_allclose(model.features(FRAMES[1:2])[0], found[1], atol=1e-5)
    assert definitions.consistency(Clip(FRAMES, 8), model).model == model.name


def test_clip_with_random_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    found = ClipFeatures(tmp_path).features(FRAMES)
    assert found.shape == (3, 12)
    # 40x56 px becomes 32x44, of which the middle 32 columns count.
    edge = FRAMES.copy()
    edge[:, :, :4] = 0
    np.testing.assert_allclose(ClipFeatures(tmp_path).features(edge), found, atol=1e-5)
    with pytest.raises(MetricError, match="background"):
        ClipFeatures(tmp_path / "none")


def test_musiq_with_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def metric(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(pixels.shape))
        return pixels.mean() * 100

    module = types.ModuleType("pyiqa")
    module.create_metric = lambda name, device: {"musiq-spaq": metric}[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    found = Musiq().quality(np.full((2, 512, 1024, 3), 51, np.uint8))
    np.testing.assert_allclose(found, 0.2, atol=1e-6)
    assert seen == [(1, 3, 256, 512)] * 2
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(DependencyError, match="pip install pyiqa"):
        Musiq()
