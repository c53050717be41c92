"""Texts over time in each kind of model, beside the untouched model whose attentions get the table as a mask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers_models import CASES, Case, arguments, build
from slow import slow
from torch.testing import assert_close

from freeloc_fx import Profile, plans, transform
from freeloc_fx.attention.running import running, within
from freeloc_fx.compiler.capture.conventions import check_text_tokens, keeps_text_in_step
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule, span_weights

FRAMES = 6
QUICK = ("Wan I2V", "HunyuanVideo", "CogVideoX", "Mochi")
REST = ("Wan", "WanVACE", "SkyReelsV2", "CogVideoX 1.5", "EasyAnimate", "Allegro", "LTX", "Cosmos", "Kandinsky5")
MODELS = [*QUICK, *(slow(name) for name in REST if name in CASES)]


def timed(
    name: str, model: Any, blend: int, sizes: tuple[int, int] | None = None, seeds: tuple[int, int] = (1, 2)
) -> tuple[dict[str, Any], TextSchedule]:
    """Arguments of a call with two texts, and its schedule; `sizes` of texts whose padding is behind both."""
    given = arguments(name, model, FRAMES)
    like = given["encoder_hidden_states"]
    one = like.shape[1]
    texts = [torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    given["encoder_hidden_states"] = torch.cat(texts, 1)
    starts, shown = (0, one, 2 * one), None
    if keeps_text_in_step(model):
        sizes = sizes or (one, one)
        packed = torch.cat([text[:, :size] for text, size in zip(texts, sizes, strict=True)], 1)
        given["encoder_hidden_states"] = F.pad(packed, (0, 0, 0, 2 * one - packed.shape[1]))
        starts, shown = (0, sizes[0], 2 * one), sum(sizes)
    if "encoder_attention_mask" in given:
        mask = given["encoder_attention_mask"].repeat(1, 2)
        if shown is not None:
            mask[:, shown:] = 0
        given["encoder_attention_mask"] = mask
    if "text_rope_pos" in given:
        given["text_rope_pos"] = torch.arange(2 * one)
    frames = FRAMES // CASES[name].patch[0] * CASES[name].patch[0]
    return given, TextSchedule(span_weights([0, 3], frames, 1, blend), starts, one, shown)


def call(model: Any, given: dict[str, Any], texts: TextSchedule | None) -> torch.Tensor:
    with within(replace(running(), texts=texts)), torch.no_grad():
        out = model(**{**given, "return_dict": False})
    while not isinstance(out, torch.Tensor):
        out = out[0]
    return out


def table(texts: TextSchedule, frames: int, first: bool, tokens: int) -> torch.Tensor:
    """The bias of every pair of a sequence of video and text, written down pair by pair."""
    weights = texts.over(frames)
    text = [("text", s) for s in range(texts.texts) for _ in range(texts.starts[s + 1] - texts.starts[s])]
    video = [("frame", f) for f in range(frames) for _ in range(tokens)]
    sequence = text + video if first else video + text
    bias = torch.zeros(len(sequence), len(sequence))
    for i, (what, a) in enumerate(sequence):
        for j, (other, b) in enumerate(sequence):
            if what != other:
                share = weights[a, b] if what == "frame" else weights[b, a]
                bias[i, j] = float(np.log(share)) if share else -torch.inf
            elif what == "text" and a != b:
                bias[i, j] = -torch.inf
    return bias


@contextlib.contextmanager
def masked(texts: TextSchedule, case: Case, frames: int) -> Iterator[None]:
    """Every attention of the untouched model gets the table as a mask, by the number of its tokens."""
    plain = F.scaled_dot_product_attention
    height, width = (n // p for n, p in zip(case.size, case.patch[1:], strict=True))
    first, video = bool(case.text[0]), frames * height * width
    whole = table(texts, frames, first, height * width)
    rows = {
        "video": slice(texts.tokens, None) if first else slice(video),
        "text": slice(texts.tokens) if first else slice(video, None),
    }

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> torch.Tensor:
        q, k, v = query, key, value
        sizes = (q.shape[2], k.shape[2])
        if sizes == (video, texts.tokens):
            bias = whole[rows["video"], rows["text"]]
        elif sizes == (texts.tokens, texts.tokens) and video != texts.tokens:
            bias = whole[rows["text"], rows["text"]]
        elif sizes[0] == sizes[1] > video:
            bias = whole[: sizes[0], : sizes[0]]  # padding that is left out is at the end
        else:
            return plain(q, k, v, attn_mask=attn_mask, **options)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = bias.expand(*attn_mask.shape[:-2], *bias.shape).masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            bias = bias + attn_mask
        scores = (q @ k.transpose(-1, -2)) * (options.get("scale") or q.shape[-1] ** -0.5) + bias
        return torch.nan_to_num(scores.softmax(-1)) @ v

    # Wan's code cuts an image's tokens off by the 512 of one text.
    cut = WanAttnProcessor.__call__.__code__
    counts = tuple(texts.tokens if constant == 512 else constant for constant in cut.co_consts)
    F.scaled_dot_product_attention = attention
    WanAttnProcessor.__call__.__code__ = cut.replace(co_consts=counts)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
        WanAttnProcessor.__call__.__code__ = cut


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_untouched_model_with_the_table_as_a_mask(name: str) -> None:
    model = build(name)
    frames = FRAMES // CASES[name].patch[0]
    given, texts = timed(name, model, 2, sizes=(5, 9) if keeps_text_in_step(model) else None)
    with masked(texts, CASES[name], frames):
        expected = call(model, given, None)
    transformed = transform(build(name), Profile(trained_frames=frames, layers="vrpr"), backend="eager")
    close = {"rtol": 2e-2, "atol": 2e-2} if "Kandinsky" in name else {"rtol": 2e-4, "atol": 2e-4}
    found = call(transformed, given, texts)
    assert_close(found, expected, **close)  # Kandinsky rounds its rotated q and k to bfloat16
    assert not torch.allclose(found, call(model, given, None), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [*(slow(name) for name in MODELS if isinstance(name, str)), *MODELS[len(QUICK) :]])
def test_long_attention_agrees_with_the_reference(name: str) -> None:
    model = build(name)
    given, texts = timed(name, model, 2)
    profile = Profile(trained_frames=max(2, 3 // CASES[name].patch[0]), layers="vrpr+tsa+temp")
    found = call(transform(build(name), profile, backend="eager", verify=True), given, texts)
    exact = call(transform(build(name), profile, backend="eager", attention="reference"), given, texts)
    assert_close(found, exact, rtol=2e-3, atol=2e-3)
    if name in QUICK:
        flex = call(transform(build(name), profile, backend="eager", attention="flex"), given, texts)
        assert_close(flex, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HunyuanVideo", "CogVideoX"])
def test_a_joint_model_compiles_once_for_all_timelines(name: str) -> None:
    profile = Profile(trained_frames=3, layers="vrpr+tsa")
    compiled, eager = (transform(build(name), profile, backend=backend) for backend in ("inductor", "eager"))
    given, texts = timed(name, compiled, 2, sizes=(5, 9))
    assert_close(call(compiled, given, texts), call(eager, given, texts), rtol=1e-3, atol=1e-3)
    state = state_of(compiled)
    assert state is not None
    pieces = state.backend.artefacts.compiled
    given, texts = timed(name, compiled, 0, sizes=(9, 4), seeds=(3, 4))
    assert_close(call(compiled, given, texts), call(eager, given, texts), rtol=1e-3, atol=1e-3)
    assert state.backend.artefacts.compiled == pieces > 0 and len(plans(compiled)) == 1


def test_a_frame_of_a_joint_model_does_not_know_of_another_text() -> None:
    case = CASES["CogVideoX"]
    model = build("CogVideoX", case=replace(case, config={**case.config, "num_layers": 1}))
    profile = Profile(trained_frames=3, layers="vrpr")
    transformed = transform(model, profile, backend="eager")
    outputs = []
    for seeds in ((1, 2), (1, 3)):
        given, texts = timed("CogVideoX", model, 0, seeds=seeds)
        outputs.append(call(transformed, given, texts))
    assert torch.equal(outputs[0][:, :3], outputs[1][:, :3])
    assert not torch.allclose(outputs[0][:, 3:], outputs[1][:, 3:], rtol=1e-2, atol=1e-2)
    assert len(plans(transformed)) == 1


def test_rows_with_places_each_of_its_own() -> None:
    """Mochi, with a negative prompt of other tokens in the same batch: each row is what it is alone."""
    model = build("Mochi")
    transformed = transform(build("Mochi"), Profile(trained_frames=3, layers="vrpr"), backend="eager")
    first, texts = timed("Mochi", model, 2, sizes=(5, 9))
    second, other = timed("Mochi", model, 2, sizes=(4, 4), seeds=(3, 4))
    both = {key: torch.cat([second[key], value]) if isinstance(value, torch.Tensor) and value.shape[0] == 1 else value
            for key, value in first.items()}  # fmt: skip
    found = call(transformed, both, replace(texts, negative=(0, 4, 8)))
    assert_close(found[1:], call(transformed, first, texts), rtol=1e-4, atol=1e-4)
    assert_close(found[:1], call(transformed, second, other), rtol=1e-4, atol=1e-4)


def test_models_that_cannot_have_it_say_why() -> None:
    for name, words in (("HunyuanVideo15", "is captured block by block"), ("LTX2", "cannot be kept apart in it")):
        if name not in CASES:
            continue
        model = build(name)
        given, texts = timed(name, model, 2)
        with pytest.raises(TimelineError, match=words):
            call(transform(model, Profile(trained_frames=3, layers="vrpr"), backend="eager"), given, texts)


def test_texts_past_a_models_own_positions() -> None:
    model = build("Kandinsky5")
    check_text_tokens(model, 1024)
    with pytest.raises(TimelineError, match="the texts have 1025 tokens, and text_rope_embeddings has 1024 positions"):
        check_text_tokens(model, 1025)
    case = CASES["CogVideoX"]
    learned = build("CogVideoX", case=replace(case, config={**case.config, "use_learned_positional_embeddings": True}))
    with pytest.raises(TimelineError, match="patch_embed adds positions to one sequence"):
        check_text_tokens(learned, 16)
