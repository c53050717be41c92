"""Folders whose pipeline class is the package's own, not diffusers': saved again, without a part, of no known class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from freeloc_fx.errors import ModelError
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation import tiny_joint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("saved")
    library.load_pipeline("tiny-joint").save_pretrained(folder)
    return folder


def test_a_saved_pipeline_of_ours_loads_again(saved: Path) -> None:
    assert json.loads((saved / "model_index.json").read_text())["_class_name"] == "TinyJointPipeline"
    again, first = library.load_pipeline(saved), library.load_pipeline("tiny-joint")
    assert type(again) is type(first)
    for name, value in first.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], value), name
    assert library.defaults(again) == library.defaults(first)


def test_another_vae_than_the_borrowed_one_is_asked_for(tmp_path: Path) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    source = Path(tiny_joint.path())
    for part in ("scheduler", "text_encoder", "tokenizer"):
        (tmp_path / part).symlink_to(source / part, target_is_directory=True)
    (tmp_path / "model_index.json").write_text((source / "model_index.json").read_text())
    config: Any = HunyuanVideoTransformer3DModel.load_config(source / "transformer")
    wide = {"in_channels": config["in_channels"] + 4, "out_channels": config["out_channels"] + 4}
    HunyuanVideoTransformer3DModel.from_config({**config, **wide}).save_pretrained(tmp_path / "transformer")
    with pytest.raises(ModelError, match=f"a folder vae beside a transformer of {wide['in_channels']} latent"):
        library.load_pipeline(tmp_path)


def test_a_class_that_diffusers_does_not_have_is_named(tmp_path: Path) -> None:
    index = {"_class_name": "PipelineOfTomorrow", "_diffusers_version": "9.9.9"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="PipelineOfTomorrow"):
        library.load_pipeline(tmp_path)
