"""Texts over time in a Wan that is given reference images, which stand as latent frames in front of its clip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import small_vaes
import torch
from PIL import Image
from pipelines import Z_DIM, save
from slow import slow

import freeloc_fx
from freeloc_fx import Profile, plans
from freeloc_fx.errors import TimelineError
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation import telling

FIRST, SECOND, OTHER = "a red circle", "a white square over navy grid", "the camera and a grid"
FRAMES = 25  # seven latent frames
IMAGES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "navy", "white")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A WanVACEPipeline with random weights, whose one layer and control meet the text after all frames have met."""
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    wan = library.load_pipeline(save(tmp_path_factory.mktemp("wan")))
    torch.manual_seed(1)
    transformer = WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=Z_DIM, out_channels=Z_DIM,
        text_dim=16, freq_dim=16, ffn_dim=24, num_layers=1, cross_attn_norm=True, rope_max_seq_len=64,
        vace_layers=[0], vace_in_channels=2 * Z_DIM + 64,
    ).eval()  # fmt: skip
    vae = small_vaes.wan()
    vae.disable_tiling()
    made = WanVACEPipeline(**{**wan.components, "transformer": transformer, "vae": vae})
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def pipe(plain: Any) -> Iterator[Any]:
    yield plain
    freeloc_fx.disable(plain)


def enable(pipe: Any, trained: int = 3, attention: str = "auto") -> None:
    freeloc_fx.enable(pipe, Profile(trained_frames=trained, layers="vrpr+tsa"), backend="eager", attention=attention)


def texts(pipe: Any, given: dict[int, str], blend: int = 0) -> dict[str, Any]:
    return freeloc_fx.timeline(pipe, given, num_frames=FRAMES, blend=blend, max_sequence_length=16)


def video(pipe: Any, inputs: dict[str, Any], images: Any, **changes: Any) -> torch.Tensor:
    options = {
        "num_frames": FRAMES, "height": 32, "width": 32, "num_inference_steps": 1, "output_type": "latent",
        "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    found: torch.Tensor = pipe(**inputs, reference_images=images, **{**options, **changes}).frames
    return found


@pytest.mark.parametrize(
    ("images", "count", "trained", "attention"),
    [
        (IMAGES[:2], 2, 3, "auto"),
        slow(IMAGES[0], 1, 12, "auto"),
        slow([IMAGES], 3, 3, "flex"),
        slow(IMAGES[:1], 1, 3, "reference"),
    ],
)
def test_each_frame_of_the_clip_sees_its_own_text(
    pipe: Any, images: Any, count: int, trained: int, attention: str
) -> None:
    """One step: a frame has met the others before it meets the text, so that it is that of a call with its text."""
    enable(pipe, trained, attention)
    found = video(pipe, texts(pipe, {0: FIRST, 12: SECOND}), images)
    plan = plans(pipe.transformer)[-1]
    assert found.shape[2] == count + 7 == plan.grid.frames and bool(plan.rewritten) == (trained < 7)
    for text, frames in ((FIRST, slice(count, count + 4)), (SECOND, slice(count + 4, None))):
        alone = video(pipe, texts(pipe, {0: text}), images)
        torch.testing.assert_close(found[:, :, frames], alone[:, :, frames], rtol=1e-5, atol=1e-5)
    other = video(pipe, texts(pipe, {0: FIRST, 12: OTHER}), images)
    same = [torch.equal(found[:, :, f], other[:, :, f]) for f in range(count + 7)]
    assert same == [False] * count + [True] * 4 + [False] * 3, "a reference sees every text"
    by_place = pipe(
        None, None, None, None, images, 1.0, 32, 32, FRAMES, 1, 1.0, output_type="latent",
        generator=torch.Generator().manual_seed(0), **texts(pipe, {0: FIRST, 12: SECOND}),
    ).frames  # fmt: skip
    assert torch.equal(by_place, found)


@pytest.mark.slow
def test_the_same_text_twice_is_that_text_once(pipe: Any) -> None:
    enable(pipe)
    once = video(pipe, texts(pipe, {0: FIRST}), IMAGES[:2], num_inference_steps=2, guidance_scale=3.0)
    given = texts(pipe, {0: FIRST, 12: SECOND}, 8)
    half = given["prompt_embeds"].shape[1] // 2
    given["prompt_embeds"][:, half:] = given["prompt_embeds"][:, :half]
    twice = video(pipe, given, IMAGES[:2], num_inference_steps=2, guidance_scale=3.0)
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-5)


def test_frames_that_nobody_accounts_for_are_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that takes reference images of other kinds, or latents of more frames than it says."""
    enable(pipe)
    given = texts(pipe, {0: FIRST, 12: SECOND})
    monkeypatch.setattr(telling, "references", lambda pipe, images: 0)
    with pytest.raises(TimelineError, match="made for 7 latent frames, and the model runs on 9"):
        video(pipe, given, IMAGES[:2])


@pytest.mark.parametrize(
    ("trained", "images", "layers", "said"),
    [
        (7, 1, "vrpr+tsa", True), (7, 0, "vrpr+tsa", False), (8, 1, "vrpr+tsa", False), (3, 1, "vrpr+tsa", False),
        (7, 1, "direct", False),
    ],
)  # fmt: skip
def test_a_clip_that_is_long_by_its_references_alone_is_told(
    pipe: Any, trained: int, images: int, layers: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    freeloc_fx.enable(pipe, Profile(trained_frames=trained, layers=layers), backend="eager")
    for _ in range(2):
        video(pipe, {"prompt": FIRST}, IMAGES[:images] or None)
    found = [r.message for r in caplog.records if "reference images are latent frames too, 1 in front" in r.message]
    assert len(found) == said
    if said:
        assert "counts as 8, more than the 7" in found[0] and "trained_frames=8 leaves it" in found[0]
