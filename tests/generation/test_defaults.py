"""Size, steps and guidance follow the transformer and the VAE, whatever they were loaded from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pipelines
import pytest

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.cli import common
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation import tiny_joint, tiny_wan
from freeloc_fx.generation.pipelines import Defaults, Facts, defaults

EMBEDDED = Defaults(64, 64, 20, 3.0)
WAN = Defaults(480, 832, 50, 5.0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.save(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", ["tiny-wan", "tiny-joint"])
def test_an_embedded_model_put_together_again(name: str, tmp_path: Path) -> None:
    pipe = library.load_pipeline(name)
    assert defaults(pipe) == EMBEDDED == defaults(model=name)
    again: Any = type(pipe)(**pipe.components)
    assert defaults(again) == EMBEDDED
    again.transformer = freeloc_fx.transform(pipe.transformer, Profile(trained_frames=21), backend="eager")
    assert defaults(again) == EMBEDDED
    again.transformer = type(pipe.transformer).from_config(pipe.transformer.config)  # trained otherwise
    assert defaults(again) == EMBEDDED
    assert defaults(library.load_pipeline(name, transformer_only=True)) == EMBEDDED


def test_a_copy_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_wan.path(), folder)
    assert defaults(model=folder) == EMBEDDED == defaults(library.load_pipeline(folder))
    job = common.prepare(str(folder), None, ["direct"], 161)
    assert (job.height, job.width, job.steps, job.guidance) == (64, 64, 20, 3.0)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_another_part_in_an_embedded_folder(part: str, other: Path) -> None:
    """The folder's name says tiny-wan; what would run is something else."""
    pipe, theirs = library.load_pipeline("tiny-wan"), library.load_pipeline(other)
    setattr(pipe, part, getattr(theirs, part))
    assert Path(pipe.name_or_path) == Path(tiny_wan.path())
    assert defaults(pipe) == WAN
    mixed = library.load_pipeline("tiny-joint")
    assert Path(mixed.name_or_path) == Path(tiny_joint.path())
    mixed.transformer = theirs.transformer
    assert defaults(mixed) == EMBEDDED  # the size that its own call defaults to


def test_other_pipelines_follow_their_call(other: Path) -> None:
    assert defaults(model=other) == WAN == defaults(Facts.read(str(other)))
    assert defaults(model="owner/model") == WAN == defaults()


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("HunyuanVideoPipeline", Defaults(720, 1280, 50, 6.0)),
        ("LTXPipeline", Defaults(512, 704, 50, 3.0)),
        ("CogVideoXPipeline", Defaults(8 * 60, 8 * 90, 50, 6.0)),  # its call says no size, its transformer does
        ("NoSuchPipeline", Defaults(8 * 60, 8 * 90, 50, 5.0)),
        (None, Defaults(8 * 60, 8 * 90, 50, 5.0)),
    ],
)
def test_a_model_that_is_not_loaded_follows_the_call_of_its_class(pipeline: str | None, expected: Defaults) -> None:
    from torch import nn

    stand_in: Any = type("CogVideoXTransformer3DModel", (nn.Module,), {})()
    stand_in.config = {"sample_height": 60, "sample_width": 90}
    assert defaults(Facts(stand_in, 4, 8, {}, pipeline)) == expected
