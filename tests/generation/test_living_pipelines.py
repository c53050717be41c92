"""A pipeline of two transformers, as Wan 2.2's: one denoises the early steps, the other the late ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import torch

from freeloc_fx import Profile, plans
from freeloc_fx.generation import pipelines as library

PROMPT = "a red circle and a white square bounce slowly over a navy grid"
BY_HAND = Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"})
SMALL: dict[str, Any] = {"frames": 13, "height": 32, "width": 32, "steps": 3, "guidance": 1.0}


def test_both_transformers_are_transformed_and_both_run(tmp_path: Path) -> None:
    from diffusers import WanPipeline, WanTransformer3DModel

    one: Any = library.load_pipeline(pipelines.save(tmp_path))
    torch.manual_seed(1)
    second: Any = WanTransformer3DModel.from_config(one.transformer.config).eval()
    parts = {name: part for name, part in one.components.items() if not name.startswith("transformer")}
    pipe: Any = WanPipeline(**parts, transformer=one.transformer, transformer_2=second, boundary_ratio=0.9)
    first = pipe.transformer
    direct = library.generate(pipe, PROMPT, **SMALL).frames
    library.apply(pipe, BY_HAND)
    long = library.generate(pipe, PROMPT, **SMALL).frames
    for changed in (pipe.transformer, pipe.transformer_2):
        (plan,) = plans(changed)
        assert plan.rewritten == 2 and plan.grid.frames == 4
    assert np.abs(long - direct).max() > 1e-4, "the strategy does not show"
    library.apply(pipe, strategy="direct")
    assert pipe.transformer is first and pipe.transformer_2 is second
