"""A transformed model called with texts over time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import latents, wan, wan_inputs
from torch.testing import assert_close

from freeloc_fx import Profile, plans, transform
from freeloc_fx.attention.running import running, within
from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule, span_weights

TEXT, FRAMES = 7, 12
PROFILES = {
    "within the trained length": Profile(trained_frames=FRAMES, layers="vrpr"),
    "vrpr+tsa": Profile(trained_frames=5, layers="vrpr+tsa"),
    "direct": Profile(trained_frames=5, layers="direct"),
    "freelong": Profile(trained_frames=5, layers="freelong"),
    "a layer each": Profile(trained_frames=5, layers={0: "vrpr+temp"}),
}


def schedule(marks: list[int], blend: int, frames: int = FRAMES, one: int = TEXT) -> TextSchedule:
    texts = len(marks)
    return TextSchedule(span_weights(marks, frames, 1, blend), tuple(one * s for s in range(texts + 1)), one)


def telling(texts: TextSchedule | None) -> AbstractContextManager[None]:
    return within(replace(running(), texts=texts))


def text(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, TEXT, 16, generator=torch.Generator().manual_seed(seed))


def call(model: Any, texts: TextSchedule | None, *given: torch.Tensor, **changes: Any) -> torch.Tensor:
    with telling(texts), torch.no_grad():
        inputs = wan_inputs(FRAMES, batch=given[0].shape[0], encoder_hidden_states=torch.cat(given, 1), **changes)
        result: torch.Tensor = model(**inputs)[0]
        return result


@pytest.mark.parametrize("name", PROFILES)
def test_the_same_text_twice_is_that_text_once(name: str) -> None:
    model = transform(wan(), PROFILES[name], backend="eager")
    once = call(model, None, text(0, 2))
    twice = call(model, schedule([0, 5], 4), text(0, 2), text(0, 2))
    assert_close(twice, once, rtol=1e-5, atol=1e-5)
    assert not torch.equal(call(model, schedule([0, 5], 4), text(0, 2), text(1, 2)), twice)


def test_frames_of_another_text_differ_by_what_self_attention_brings_only() -> None:
    """One layer: its cross-attention comes after its self-attention, so nothing of it reaches other frames."""
    model = transform(wan(num_layers=1), Profile(trained_frames=5, layers="vrpr"), backend="eager")
    first = call(model, schedule([0, 5], 0), text(0), text(1))
    second = call(model, schedule([0, 5], 0), text(0), text(2))
    assert torch.equal(first[:, :, :5], second[:, :, :5])
    assert not torch.equal(first[:, :, 5:], second[:, :, 5:])
    plain = call(model, None, text(1))
    assert_close(first[:, :, 5:], plain[:, :, 5:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["reference", "calls", "flex"])
def test_every_lowering_gives_the_same(attention: str) -> None:
    models = [transform(wan(), PROFILES["vrpr+tsa"], backend="eager", attention=a) for a in ("tiles", attention)]
    made = [call(model, schedule([0, 3, 8], 3), *map(text, range(3))) for model in models]
    assert_close(made[1], made[0], rtol=1e-4, atol=1e-4)


def test_another_timeline_of_as_many_texts_captures_nothing_again() -> None:
    model = transform(wan(), PROFILES["vrpr+tsa"], backend="eager")
    call(model, schedule([0, 5], 4), text(0), text(1))
    assert len(plans(model)) == 1
    moved = call(model, schedule([0, 8], 0), text(2), text(3))
    assert len(plans(model)) == 1
    fresh = call(transform(wan(), PROFILES["vrpr+tsa"], backend="eager"), schedule([0, 8], 0), text(2), text(3))
    assert torch.equal(moved, fresh)
    call(model, None, text(0))
    assert len(plans(model)) == 2, "one text for all frames is another graph"


def test_a_call_of_as_many_tokens_without_a_timeline_is_not_scheduled() -> None:
    model = transform(wan(), PROFILES["vrpr+tsa"], backend="eager")
    timed = call(model, schedule([0, 5], 0), text(0), text(1))
    untimed = call(model, None, text(0), text(1))
    assert not torch.allclose(timed, untimed)
    assert torch.equal(call(model, schedule([0, 5], 0), text(0), text(1)), timed)


def test_verified() -> None:
    model = transform(wan(), PROFILES["vrpr+tsa"], backend="eager", verify=True)
    call(model, schedule([0, 3, 8], 3), *map(text, range(3)))


def test_a_text_of_other_tokens_is_refused() -> None:
    model = transform(wan(), PROFILES["vrpr+tsa"], backend="eager")
    with pytest.raises(TimelineError, match=r"expected the 14 tokens of 2 texts, or the 7 of one .*, found 21"):
        call(model, schedule([0, 5], 4), *map(text, range(3)))


def test_a_timeline_of_another_clip_is_refused() -> None:
    model = transform(wan(), PROFILES["vrpr+tsa"], backend="eager")
    with pytest.raises(TimelineError, match="made for 13 latent frames, and the model runs on 12"):
        call(model, schedule([0, 5], 4, frames=13), text(0), text(1))


def test_a_timeline_needs_a_text_axis() -> None:
    model = transform(wan(), PROFILES["vrpr+tsa"], backend="eager")
    with telling(schedule([0, 5], 4)), pytest.raises(TimelineError, match="WanTransformer3DModel: expected enc"):
        model(latents(FRAMES), torch.tensor([1]), text(0)[0])


@pytest.mark.slow
def test_compiled_once_for_all_timelines() -> None:
    from freeloc_fx.compiler.capture.state import state_of

    model, eager = wan(num_layers=3), transform(wan(num_layers=3), PROFILES["a layer each"], backend="eager")
    model = transform(model, PROFILES["a layer each"])
    found = call(model, schedule([0, 5], 4), text(0), text(1))
    assert_close(found, call(eager, schedule([0, 5], 4), text(0), text(1)), rtol=1e-4, atol=1e-4)
    state = state_of(model)
    assert state is not None
    compiled = state.backend.artefacts.compiled
    found = call(model, schedule([0, 7], 1), text(2), text(3))
    assert_close(found, call(eager, schedule([0, 7], 1), text(2), text(3)), rtol=1e-4, atol=1e-4)
    assert state.backend.artefacts.compiled == compiled > 0
