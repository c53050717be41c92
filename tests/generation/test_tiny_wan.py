"""The embedded model: the gate on its quality, and the whole pipeline within and beyond its trained length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gate import mean, reconstructions, scene
from slow import slow

import freeloc_fx
from freeloc_fx.evaluation.metrics import GroundTruthScore, score
from freeloc_fx.generation import tiny_wan
from freeloc_fx.generation.pipelines import apply, generate, load_pipeline

SEEDS = (0, 1, 2, 3)
CHANNELS = 16  # of the latents


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("tiny-wan")


@pytest.fixture(scope="module")
def clips(pipe: Any) -> list[np.ndarray]:
    apply(pipe, strategy="direct")
    return [generate(pipe, scene(s).prompt, frames=81, seed=s).frames for s in SEEDS]


@pytest.fixture(scope="module")
def generated(clips: list[np.ndarray]) -> list[GroundTruthScore]:
    return [score(clip, scene(s).prompt) for clip, s in zip(clips, SEEDS, strict=True)]


@pytest.fixture(scope="module")
def reconstructed(pipe: Any) -> list[GroundTruthScore]:
    return reconstructions(pipe.vae, SEEDS)


def test_the_folder_is_a_wan_pipeline() -> None:
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    pipe = WanPipeline.from_pretrained(tiny_wan.path())
    assert isinstance(pipe.transformer, WanTransformer3DModel)
    assert isinstance(pipe.vae, AutoencoderKLWan)
    assert pipe.transformer.config.num_layers == 10
    assert (pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial) == (4, 8)


# How far below the VAE's own reconstruction of real clips the generated ones may be, as a share of it.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("presence", 0.95),
        ("sharpness", 0.93),
        ("motion", 0.85),
        ("shape_accuracy", 0.93),
        ("constancy", 0.88),
        ("permanence", 0.95),
        ("composite", 0.88),
    ],
)
def test_short_clips_are_close_to_the_reconstruction(
    generated: list[GroundTruthScore], reconstructed: list[GroundTruthScore], name: str, share: float
) -> None:
    assert mean(generated, name) >= share * mean(reconstructed, name)


@pytest.mark.slow
def test_a_kind_belongs_to_its_colour(pipe: Any) -> None:
    """Swapping two shapes' kinds in a prompt swaps them in the clip; earlier weights knew only the set of kinds."""
    apply(pipe, strategy="direct")
    for kinds in (("circle", "triangle"), ("triangle", "circle")):
        prompt = f"a red {kinds[0]} and a white {kinds[1]} bounce slowly over a navy grid, the camera is still"
        video = generate(pipe, prompt, frames=81, seed=5)
        assert score(video.frames, prompt).shape_accuracy > 0.6


@pytest.mark.slow
def test_shapes_have_their_size(generated: list[GroundTruthScore], reconstructed: list[GroundTruthScore]) -> None:
    assert mean(generated, "area") == pytest.approx(mean(reconstructed, "area"), rel=0.2)


@pytest.mark.slow
def test_the_gate_can_fail(clips: list[np.ndarray], reconstructed: list[GroundTruthScore]) -> None:
    """Frozen clips and clips of another prompt are not close."""
    frozen = [score(np.repeat(clip[:1], 81, 0), scene(s).prompt) for clip, s in zip(clips, SEEDS, strict=True)]
    assert mean(frozen, "motion") < 0.3 * mean(reconstructed, "motion")
    other = [score(clip, scene(s + 10).prompt) for clip, s in zip(clips, SEEDS, strict=True)]
    assert mean(other, "presence") < 0.8 * mean(reconstructed, "presence")


def test_81_frames_are_bitwise_those_of_the_untransformed_model(pipe: Any) -> None:
    apply(pipe, strategy="direct")
    expected = generate(pipe, scene(0).prompt, frames=81, seed=0, steps=4)
    apply(pipe, "tiny-wan")
    video = generate(pipe, scene(0).prompt, frames=81, seed=0, steps=4)
    assert video.plan is not None
    assert video.plan.rewritten == 0
    np.testing.assert_array_equal(video.frames, expected.frames)


@pytest.mark.parametrize("strategy", ["profile", *map(slow, ("vrpr", "tsa+temp", "vrpr+tsa"))])
def test_161_frames_through_the_whole_pipeline(pipe: Any, strategy: str) -> None:
    """The profile's own strategy here; "vrpr+tsa" is compared like this with tiny-joint."""
    outputs = []
    for attention in ("tiles", "reference"):
        apply(pipe, "tiny-wan", strategy, attention=attention)
        video = generate(pipe, scene(1).prompt, frames=161, seed=1, steps=2)
        assert video.frames.shape == (161, 64, 64, 3)
        assert video.plan is not None
        assert video.plan.rewritten == 10
        outputs.append(video.frames)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=2e-3)


def test_guidance_and_batches(pipe: Any) -> None:
    """Two prompts at once, with guidance, are the same two videos as one by one."""
    apply(pipe, "tiny-wan", "vrpr+tsa")
    prompts = [scene(2).prompt, scene(3).prompt]
    noise = torch.randn(2, CHANNELS, 26, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(prompt: list[str], latents: torch.Tensor) -> torch.Tensor:
        result = pipe(
            prompt, num_frames=101, height=64, width=64, num_inference_steps=2, guidance_scale=3.0, latents=latents,
            output_type="latent",
        )  # fmt: skip
        return result.frames

    together = run(prompts, noise)
    apart = torch.cat([run([p], noise[i : i + 1]) for i, p in enumerate(prompts)])
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)


def test_restore_gives_the_pipelines_model_back(pipe: Any) -> None:
    apply(pipe, strategy="direct")
    original = pipe.transformer
    pipe.transformer = freeloc_fx.transform(original, "tiny-wan", backend="eager")
    assert pipe.transformer is not original
    assert freeloc_fx.restore(pipe.transformer) is original
    apply(pipe, strategy="direct")
    assert pipe.transformer is original
