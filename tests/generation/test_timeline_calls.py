"""Texts over time through a pipeline's own call."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

import freeloc_fx
from freeloc_fx import Profile, plans
from freeloc_fx.errors import LengthError, TimelineError, TransformError
from freeloc_fx.generation.noise import for_pipeline
from freeloc_fx.generation.timeline import marks_of
from freeloc_fx.generation.windows import context_windows

FIRST, SECOND = "a red circle", "a white square over navy grid"
FRAMES = 25  # seven latent frames
LONG = Profile(trained_frames=3, layers="vrpr+tsa")
SMALL: dict[str, Any] = {
    "height": 32, "width": 32, "num_frames": FRAMES, "num_inference_steps": 2, "output_type": "latent",
}  # fmt: skip


def video(pipe: Any, inputs: dict[str, Any], **changes: Any) -> torch.Tensor:
    found: torch.Tensor = pipe(**inputs, **{**SMALL, "generator": torch.Generator().manual_seed(0), **changes}).frames
    return found


def texts(pipe: Any, given: dict[Any, Any], **changes: Any) -> dict[str, Any]:
    return freeloc_fx.timeline(pipe, given, **{"num_frames": FRAMES, "blend": 8, "max_sequence_length": 16, **changes})


@pytest.fixture
def enabled(pipe: Any) -> Any:
    freeloc_fx.enable(pipe, LONG, backend="eager")
    return pipe


@pytest.mark.parametrize("trained", [3, 7])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_one_text_is_the_plain_call_bitwise(pipe: Any, trained: int, guidance: float) -> None:
    freeloc_fx.enable(pipe, Profile(trained_frames=trained, layers="vrpr+tsa"), backend="eager")
    inputs = freeloc_fx.timeline(pipe, {0: FIRST}, num_frames=FRAMES)
    plain = video(pipe, {"prompt": FIRST}, guidance_scale=guidance)
    assert torch.equal(video(pipe, inputs, guidance_scale=guidance), plain)


@pytest.mark.parametrize("trained", [3, 7])
def test_the_same_text_twice_is_that_text_once(pipe: Any, trained: int) -> None:
    freeloc_fx.enable(pipe, Profile(trained_frames=trained, layers="vrpr+tsa"), backend="eager")
    once = video(pipe, texts(pipe, {0: FIRST}), guidance_scale=4.0)
    twice = video(pipe, texts(pipe, {0: FIRST, 12: FIRST}), guidance_scale=4.0)
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-5)
    other = video(pipe, texts(pipe, {0: FIRST, 12: SECOND}), guidance_scale=4.0)
    assert not torch.allclose(other, once, rtol=1e-5, atol=1e-5)


def test_a_negative_prompt_is_one_text_for_all(enabled: Any) -> None:
    given = texts(enabled, {0: FIRST, 12: SECOND}, negative_prompt="navy camera")
    one = texts(enabled, {0: FIRST}, negative_prompt="navy camera")
    assert torch.equal(given["negative_prompt_embeds"], one["negative_prompt_embeds"].repeat(1, 2, 1))
    changed = video(enabled, given, guidance_scale=4.0)
    default = video(enabled, texts(enabled, {0: FIRST, 12: SECOND}), guidance_scale=4.0)
    assert not torch.equal(changed, default)


def test_a_batch_is_made_as_its_videos_are(enabled: Any) -> None:
    noise = torch.randn(2, 4, 7, 4, 4, generator=torch.Generator().manual_seed(1))
    both = video(enabled, texts(enabled, {0: [FIRST, SECOND], 12: [SECOND, FIRST]}), latents=noise)
    for index, (a, b) in enumerate(((FIRST, SECOND), (SECOND, FIRST))):
        alone = video(enabled, texts(enabled, {0: a, 12: b}), latents=noise[index : index + 1])
        torch.testing.assert_close(both[index : index + 1], alone, rtol=1e-4, atol=1e-4)


def test_another_timeline_of_as_many_texts_captures_nothing(enabled: Any) -> None:
    video(enabled, texts(enabled, {0: FIRST, 8: SECOND, 16: FIRST}))
    before = len(plans(enabled.transformer))
    video(enabled, texts(enabled, {0: SECOND, 4: FIRST, 12: SECOND}, blend=0))
    assert len(plans(enabled.transformer)) == before == 1


def test_seconds_are_frames(enabled: Any) -> None:
    assert marks_of({"0": FIRST, "1.5s": SECOND}, FRAMES, 8) == {0: FIRST, 12: SECOND}
    seconds = video(enabled, texts(enabled, {0: FIRST, "1.5s": SECOND}, blend="1s", fps=8))
    assert torch.equal(seconds, video(enabled, texts(enabled, {0: FIRST, 12: SECOND})))


def test_threads_have_a_timeline_each(enabled: Any) -> None:
    alone = {mark: video(enabled, texts(enabled, {0: FIRST, mark: SECOND})) for mark in (8, 16)}
    plain = video(enabled, texts(enabled, {0: FIRST}))
    found: dict[int, torch.Tensor] = {}

    def run(mark: int) -> None:
        inputs = texts(enabled, {0: FIRST, mark: SECOND}) if mark else texts(enabled, {0: FIRST})
        latents = torch.randn(1, 4, 7, 4, 4, generator=torch.Generator().manual_seed(0))
        scheduler = type(enabled.scheduler).from_config(enabled.scheduler.config)
        own = type(enabled)(**{**enabled.components, "scheduler": scheduler})
        found[mark] = video(own, inputs, latents=latents)

    threads = [threading.Thread(target=run, args=(mark,)) for mark in (0, 8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mark, expected in {0: plain, **alone}.items():
        torch.testing.assert_close(found[mark], expected, rtol=1e-5, atol=1e-5)


def test_windows_see_the_texts_of_their_frames(enabled: Any) -> None:
    enabled.transformer = context_windows(enabled.transformer, 3, 2)
    once = video(enabled, texts(enabled, {0: FIRST}))
    twice = video(enabled, texts(enabled, {0: FIRST, 12: FIRST}))
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-5)
    first, second = (video(enabled, texts(enabled, {0: FIRST, 20: text}, blend=0)) for text in ("navy", SECOND))
    # The windows 0-2, 2-4 and 4-6, two steps: what begins at latent frame 5 reaches frame 4, and in the second step 2.
    assert torch.equal(first[:, :, :2], second[:, :, :2]) and not torch.equal(first[:, :, 2:], second[:, :, 2:])


@pytest.mark.parametrize(
    ("given", "changes", "words"),
    [
        ({}, {}, "found no text"),
        ({4: FIRST}, {}, "begins at 0"),
        ({0: FIRST, 12: SECOND, 8: FIRST}, {}, "rise, found 8 after 12"),
        ({0: FIRST, 25: SECOND}, {}, "at most frame 24, found frame 25"),
        ({0: FIRST, 24: SECOND}, {"blend": 0}, "no latent frame shows the text that begins at frame 24"),
        ({0: FIRST, "1s": SECOND}, {}, "expected fps"),
        ({0: FIRST, 12: SECOND}, {"blend": -1}, "found -1"),
        ([FIRST, SECOND], {}, "a mapping of times to texts, found list"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(
    enabled: Any, monkeypatch: pytest.MonkeyPatch, given: Any, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(type(enabled), "encode_prompt", None)
    with pytest.raises(TimelineError, match=words):
        texts(enabled, given, **changes)


def test_frames_that_cannot_be_made(enabled: Any) -> None:
    with pytest.raises(LengthError, match="num_frames=24: this model makes 4n\\+1 frames, the nearest are 21 and 25"):
        texts(enabled, {0: FIRST}, num_frames=24)
    with pytest.raises(LengthError, match="found '25'"):
        texts(enabled, {0: FIRST}, num_frames="25")


def test_a_call_for_another_length_is_refused(enabled: Any) -> None:
    inputs = texts(enabled, {0: FIRST, 12: SECOND})
    with pytest.raises(TimelineError, match="made for num_frames=25, and the call is for num_frames=33"):
        video(enabled, inputs, num_frames=33)
    with pytest.raises(TimelineError, match="the call is for num_frames=81"):
        enabled(**inputs, height=32, width=32, num_inference_steps=1)


def test_a_pipeline_that_is_not_enabled_is_refused(pipe: Any) -> None:
    with pytest.raises(TimelineError, match="transformer is not transformed, so every frame"):
        texts(pipe, {0: FIRST, 12: SECOND})
    pipe.transformer = freeloc_fx.transform(pipe.transformer, LONG, backend="eager")
    by_hand = video(pipe, texts(pipe, {0: FIRST, 12: SECOND}))
    pipe.transformer = freeloc_fx.restore(pipe.transformer)
    freeloc_fx.enable(pipe, LONG, backend="eager")
    assert torch.equal(by_hand, video(pipe, texts(pipe, {0: FIRST, 12: SECOND})))


def test_what_is_no_pipeline(enabled: Any) -> None:
    with pytest.raises(TypeError, match="found the model WanTransformer3DModel"):
        freeloc_fx.timeline(enabled.transformer, {0: FIRST}, num_frames=FRAMES)
    with pytest.raises(TransformError, match="expected a pipeline with a component"):
        freeloc_fx.timeline(object(), {0: FIRST}, num_frames=FRAMES)
    with pytest.raises(TypeError, match="takes no words"):
        texts(enabled, {0: FIRST}, words=3)


def test_both_transformers_are_told(pipe: Any) -> None:
    """As Wan2.2's: one for the noisy steps, one for the others."""
    parts = {**pipe.components, "transformer_2": copy.deepcopy(pipe.transformer)}
    two = type(pipe)(**parts, boundary_ratio=0.9)
    two.set_progress_bar_config(disable=True)
    freeloc_fx.enable(two, LONG, backend="eager")
    given = texts(two, {0: FIRST, 12: SECOND})
    first = video(two, given, guidance_scale=4.0, num_inference_steps=3)
    for model in (two.transformer, two.transformer_2):
        assert len(plans(model)) == 1, "captured once, with texts over time, with guidance too"
    assert not torch.equal(first, video(two, texts(two, {0: FIRST}), guidance_scale=4.0, num_inference_steps=3))
    two.transformer_2 = freeloc_fx.restore(two.transformer_2)
    with pytest.raises(TimelineError, match="transformer_2 is not transformed"):
        texts(two, {0: FIRST, 12: SECOND})


def test_a_pass_that_is_switched_off_is_no_silent_mixture(pipe: Any) -> None:
    pipe.transformer = freeloc_fx.transform(pipe.transformer, LONG, backend="eager", disable_passes=("schedule_text",))
    with pytest.raises(TimelineError, match="schedule_text is switched off, so every frame"):
        video(pipe, texts(pipe, {0: FIRST, 12: SECOND}))


def test_free_noise_is_noise_like_any(enabled: Any) -> None:
    noise = for_pipeline(enabled, FRAMES, 32, 32, 3, seed=0)
    found = video(enabled, texts(enabled, {0: FIRST, 12: SECOND}), latents=noise)
    assert not torch.equal(found, video(enabled, texts(enabled, {0: FIRST}), latents=noise))
