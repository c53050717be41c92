"""MiniMax-H3 through diffusers' own modular pipeline: enabled in place, with and without references."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers_models import CASES, build

import freeloc_fx
from freeloc_fx import Profile, plans

pytest.importorskip("diffusers.modular_pipelines.minimax_h3", reason="this diffusers has no MiniMax-H3")

PROFILE = Profile(trained_frames=20, layers="vrpr+tsa")
FRAMES, LATENT = 124, 37  # the shortest that the pipeline makes


def transformer() -> Any:
    """Of the channels that the pipeline packs where it has no VAE to ask."""
    case = CASES["MiniMax-H3"]
    return build("MiniMax-H3", case=replace(case, config={**case.config, "in_channels": 24, "audio_in_channels": 32}))


def pipeline(name: str) -> Any:
    """The workflow of one kind of request, which loads the one transformer that it runs."""
    from diffusers import MiniMaxH3Scheduler
    from diffusers.modular_pipelines.minimax_h3 import modular_blocks_minimax_h3 as blocks

    kinds = {"transformer": blocks.MiniMaxH3CoreDenoiseStep, "transformer_ref": blocks.MiniMaxH3Ref2VACoreDenoiseStep}
    made: Any = kinds[name]().init_pipeline()
    parts: dict[str, Any] = {name: transformer(), "scheduler": MiniMaxH3Scheduler()}
    made.update_components(**parts, audio_scheduler=MiniMaxH3Scheduler())
    made.set_progress_bar_config(disable=True)
    return made


def request(pipe: Any, model: Any, references: bool) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, 5, model.config.text_dim, generator=random),
        "text_token_tags": torch.ones(5, dtype=torch.long),
    }
    if references:
        image = SimpleNamespace(kind="image", has_audio=False)
        given |= {"normalized_references": [image], "audio_condition_latents": []}
        given["condition_latents"] = [torch.randn(1, 24, 1, 4, 6, generator=random)]
    latents = pipe(
        **given, num_frames=FRAMES, height=64, width=96, num_inference_steps=2, generator=random, output="latents"
    )
    assert isinstance(latents, torch.Tensor) and latents.shape[2] == LATENT
    return latents


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer", "transformer_ref"])
def test_the_modular_pipeline_is_enabled_in_place(name: str) -> None:
    pipe = pipeline(name)
    model, references = getattr(pipe, name), name == "transformer_ref"
    plain = request(pipe, model, references)
    freeloc_fx.enable(pipe, PROFILE, backend="eager", attention="calls")
    found = request(pipe, model, references)
    made = plans(getattr(pipe, name))[-1]
    assert made.rewritten == 2 and made.grid.frames == LATENT and len(made.grid.before) == references
    assert (found - plain).norm() > 1e-3 * plain.norm(), "the strategy does not show in the output"
    freeloc_fx.enable(pipe, PROFILE, backend="eager", attention="reference")
    assert (request(pipe, model, references) - found).norm() <= 1e-4 * found.norm()
    freeloc_fx.disable(pipe)
    assert getattr(pipe, name) is model
    assert torch.equal(request(pipe, model, references), plain)
