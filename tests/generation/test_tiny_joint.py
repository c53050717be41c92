"""The embedded joint model: its files, its pipeline within and beyond its trained length, text mask and quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate import mean, reconstructions, scene
from slow import slow

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.evaluation.metrics import GroundTruthScore, score
from freeloc_fx.generation import tiny_joint, tiny_wan
from freeloc_fx.generation.noise import for_pipeline
from freeloc_fx.generation.pipelines import apply, generate, load_pipeline
from freeloc_fx.generation.request import Facts, check_request, choose_profile, defaults
from freeloc_fx.generation.tiny_joint.pipeline import MAX_TEXT, TinyJointPipeline

SEEDS = (0, 1, 2, 3)
CHANNELS = 16  # of the latents
LAYERS = 8


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("tiny-joint")


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


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_folder_is_a_pipeline_around_a_hunyuan_transformer(pipe: Any) -> None:
    from diffusers import AutoencoderKLWan, DiffusionPipeline, HunyuanVideoTransformer3DModel

    assert isinstance(pipe, TinyJointPipeline) and isinstance(pipe, DiffusionPipeline)
    assert isinstance(pipe.transformer, HunyuanVideoTransformer3DModel)
    assert isinstance(pipe.vae, AutoencoderKLWan)
    assert pipe.transformer.config.num_layers + pipe.transformer.config.num_single_layers == LAYERS
    assert (pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial) == (4, 8)
    assert pipe.dtype == torch.float32
    assert isinstance(load_pipeline(tiny_joint.path()), TinyJointPipeline)


def test_files_are_small_not_pickled_and_not_copies() -> None:
    ours = tiny_joint.path()
    weights = [p for p in ours.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    assert weights and all(p.suffix == ".safetensors" for p in weights)
    assert size(ours) <= 15e6
    assert size(ours) + size(tiny_wan.path()) <= 40e6
    assert not (ours / "vae").exists()


def test_a_saved_pipeline_loads_from_its_own_files(pipe: Any, tmp_path: Path) -> None:
    apply(pipe, strategy="direct")
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "vae").is_dir()
    again = TinyJointPipeline.from_pretrained(tmp_path)
    prompt = [scene(0).prompt]
    torch.testing.assert_close(again.encode_prompt(prompt)[0], pipe.encode_prompt(prompt)[0])


def test_facts_defaults_and_profile_by_name(pipe: Any) -> None:
    read, of = Facts.read("tiny-joint"), Facts.of(pipe)
    assert (read.temporal, read.spatial, read.multiple) == (of.temporal, of.spatial, of.multiple) == (4, 8, (16, 16))
    assert defaults(model="tiny-joint") == defaults(pipe) == defaults(model="tiny-wan")
    assert check_request(read, 321, 64, 64) == (81, 8, 8)
    for model in (read.transformer, pipe.transformer):
        profile = choose_profile(model)
        assert (profile.name, profile.trained_frames, profile.layer_count) == ("tiny-joint", 21, LAYERS)
    # Layers of both kinds count: 7 is a block with one stream.
    choose_profile(read.transformer, Profile(trained_frames=21, layers={LAYERS - 1: "vrpr"}))
    with pytest.raises(freeloc_fx.errors.ProfileError, match=rf"layers\.{LAYERS}: expected a layer of 0 to 7"):
        choose_profile(read.transformer, Profile(trained_frames=21, layers={LAYERS: "vrpr"}))


def test_a_checkout_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(tiny_wan.ModelError, match=r"tiny-joint: .*model_index\.json is missing"):
        tiny_joint.path()


def test_the_pipeline_refuses_what_it_cannot_make(pipe: Any) -> None:
    apply(pipe, strategy="direct")
    prompt = scene(0).prompt
    with pytest.raises(ValueError, match="num_frames: expected 1 more than a multiple of 4, found 80"):
        pipe(prompt, num_frames=80)
    with pytest.raises(ValueError, match="height: expected a multiple of 16, found 40"):
        pipe(prompt, height=40)
    with pytest.raises(ValueError, match="negative_prompt: expected 1, one a prompt, found 2"):
        pipe(prompt, ["", ""])
    with pytest.raises(ValueError, match="latents: expected shape"):
        pipe(prompt, num_frames=5, latents=torch.zeros(1, CHANNELS, 3, 8, 8))
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        pipe(prompt, callback_on_step_end_tensor_inputs=["noise"])


def test_freenoise_has_the_layout_of_its_latents(pipe: Any) -> None:
    noise = for_pipeline(pipe, 161, 64, 64, 21, seed=3)
    assert noise.shape == (1, CHANNELS, 41, 8, 8)
    given = pipe.prepare_latents(1, CHANNELS, 64, 64, 161, torch.float32, torch.device("cpu"), latents=noise)
    assert torch.equal(given, noise)


def test_callbacks_see_and_change_what_they_name(pipe: Any) -> None:
    apply(pipe, strategy="direct")
    seen = []

    def callback(p: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, sorted(tensors), p.guidance_scale, p.num_timesteps))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    names = ["latents", "prompt_embeds"]
    result = pipe(
        [scene(0).prompt], num_frames=5, num_inference_steps=2, output_type="latent", num_videos_per_prompt=2,
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names, return_dict=False,
    )  # fmt: skip
    assert seen == [(0, names, 3.0, 2), (1, names, 3.0, 2)]
    assert result[0].shape == (2, CHANNELS, 2, 8, 8) and not result[0].any()


def test_guidance_1_is_the_prompt_alone(pipe: Any) -> None:
    apply(pipe, strategy="direct")
    noise = torch.randn(1, CHANNELS, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(**options: Any) -> torch.Tensor:
        return pipe(
            scene(0).prompt, num_frames=5, num_inference_steps=1, latents=noise, output_type="latent", **options
        ).frames

    alone = run(guidance_scale=1.0)
    torch.testing.assert_close(run(guidance_scale=3.0, negative_prompt=scene(0).prompt), alone, atol=1e-5, rtol=1e-4)
    assert (run(guidance_scale=3.0) - alone).abs().max() > 1e-3


@pytest.mark.parametrize(("frames", "strategy"), [(3, "direct"), slow(41, "vrpr+tsa")])
def test_padded_text_is_not_seen(pipe: Any, frames: int, strategy: str) -> None:
    """Whatever stands in the padding and however much there is of it; a token that counts does change the video."""
    apply(pipe, "tiny-joint", strategy)
    text, mask = pipe.encode_prompt([scene(0).prompt])
    used = int(mask.sum())
    assert used < MAX_TEXT and text.shape[1] == MAX_TEXT
    x = torch.randn(1, CHANNELS, frames, 8, 8, generator=torch.Generator().manual_seed(0))
    pooled = text[:, :used].mean(1)

    def run(text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return pipe.transformer(x, torch.tensor([700.0]), text, mask, pooled, return_dict=False)[0]

    expected = run(text, mask)
    noisy = torch.where(mask[..., None].bool(), text, torch.full_like(text, 30.0))
    torch.testing.assert_close(run(noisy, mask), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run(text[:, :used], mask[:, :used]), expected, atol=1e-4, rtol=1e-4)
    fewer = mask.clone()
    fewer[:, used // 2 :] = 0
    assert (run(text, fewer) - expected).abs().max() > 1e-3


def test_81_frames_are_bitwise_those_of_the_untransformed_model(pipe: Any) -> None:
    apply(pipe, strategy="direct")
    expected = generate(pipe, scene(0).prompt, frames=81, seed=0, steps=4)
    apply(pipe, "tiny-joint")
    video = generate(pipe, scene(0).prompt, frames=81, seed=0, steps=4)
    assert video.plan is not None
    assert video.plan.rewritten == 0
    np.testing.assert_array_equal(video.frames, expected.frames)


# How far below the VAE's own reconstruction of real clips the generated ones may be, as a share of it.
@pytest.mark.slow  # the weights are what they were: their quality is looked at when they are made
@pytest.mark.parametrize(
    ("name", "share"), [("presence", 0.85), ("sharpness", 0.9), ("motion", 0.75), ("shape_accuracy", 0.7)]
)
def test_short_clips_are_near_the_reconstruction(
    generated: list[GroundTruthScore], reconstructed: list[GroundTruthScore], name: str, share: float
) -> None:
    assert mean(generated, name) >= share * mean(reconstructed, name)


@pytest.mark.slow
def test_shapes_have_about_their_size(generated: list[GroundTruthScore], reconstructed: list[GroundTruthScore]) -> None:
    assert mean(generated, "area") == pytest.approx(mean(reconstructed, "area"), rel=0.25)


@pytest.mark.slow
def test_the_gate_can_fail(clips: list[np.ndarray], reconstructed: list[GroundTruthScore]) -> None:
    """Frozen clips and clips of another prompt are not near."""
    frozen = [score(np.repeat(clip[:1], 81, 0), scene(s).prompt) for clip, s in zip(clips, SEEDS, strict=True)]
    moving = np.nanmean([s.motion for s in frozen])  # NaN where a first frame shows none of the prompt's shapes
    assert moving < 0.3 * mean(reconstructed, "motion")
    other = [score(clip, scene(s + 10).prompt) for clip, s in zip(clips, SEEDS, strict=True)]
    assert mean(other, "presence") < 0.7 * mean(reconstructed, "presence")


@pytest.mark.parametrize("strategy", [slow("vrpr"), slow("tsa+temp"), slow("vrpr+tsa")])
def test_161_frames_on_tiles_equal_the_reference(pipe: Any, strategy: str) -> None:
    outputs = []
    for attention in ("tiles", "reference"):
        apply(pipe, "tiny-joint", strategy, attention=attention)
        generator = torch.Generator().manual_seed(1)
        result = pipe(scene(1).prompt, num_frames=161, num_inference_steps=2, generator=generator, output_type="latent")
        (plan,) = freeloc_fx.plans(pipe.transformer)
        assert plan.rewritten == LAYERS
        assert (plan.grid.frames, plan.grid.text_first, plan.grid.text_last) == (41, 0, MAX_TEXT)
        outputs.append(result.frames)
    torch.testing.assert_close(outputs[0], outputs[1], atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_guidance_and_batches(pipe: Any) -> None:
    """Two prompts of different lengths at once, with guidance, are the same two videos as one by one."""
    apply(pipe, "tiny-joint", "vrpr+tsa")
    prompts = [scene(s).prompt for s in (2, 3)]
    lengths = {len(ids) for ids in pipe.tokenizer(prompts).input_ids}
    if len(lengths) == 1:  # a shape more in one of them
        prompts[0] = "a red circle and a white square bounce over a navy grid"
    assert len({len(ids) for ids in pipe.tokenizer(prompts).input_ids}) == 2
    noise = torch.randn(2, CHANNELS, 41, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(prompt: list[str], latents: torch.Tensor) -> torch.Tensor:
        return pipe(
            prompt, num_frames=161, num_inference_steps=2, guidance_scale=3.0, latents=latents, output_type="latent"
        ).frames

    together = run(prompts, noise)
    apart = torch.cat([run([p], noise[i : i + 1]) for i, p in enumerate(prompts)])
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)
