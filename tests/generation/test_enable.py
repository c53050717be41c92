"""`enable`, `disable`, `plan_for` and `is_transformed`: whole pipelines, in place, all or nothing, once."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from two_transformers import pipeline

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.errors import LengthError, PlanError, ProfileError, StrategyError, TransformError
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.hints import unit_hint

PROMPT = "a red circle and a white square bounce slowly over a navy grid"
BY_HAND = Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"})
IN_VIDEO_FRAMES = Profile(trained_frames=81, name="mine")  # where 21 latent frames were meant
SMALL: dict[str, Any] = {"frames": 13, "height": 32, "width": 32, "steps": 2, "guidance": 1.0}


@pytest.fixture
def two(pipe: Any) -> Any:
    """As Wan 2.2."""
    from diffusers import WanPipeline, WanTransformer3DModel

    torch.manual_seed(1)
    second: Any = WanTransformer3DModel.from_config(pipe.transformer.config).eval()
    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    made: Any = WanPipeline(**parts, transformer_2=second, boundary_ratio=0.9)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, "freeloc_fx")

    def messages() -> list[str]:
        # What a pipeline says; what the model itself says of a clip is tested elsewhere.
        warnings = [r for r in caplog.records if r.name == "freeloc_fx" and r.levelno >= logging.WARNING]
        return [r.getMessage() for r in warnings if "this clip of" not in r.getMessage()]

    return messages


def test_both_transformers_there_and_back(two: Any) -> None:
    first, second = two.transformer, two.transformer_2
    assert freeloc_fx.enable(two, BY_HAND, backend="eager") == BY_HAND
    for made, original in ((two.transformer, first), (two.transformer_2, second)):
        assert freeloc_fx.is_transformed(made) and freeloc_fx.restore(made) is original
        assert not freeloc_fx.is_transformed(original)
    freeloc_fx.disable(two)
    assert two.transformer is first and two.transformer_2 is second
    freeloc_fx.disable(two)
    assert two.transformer is first and two.transformer_2 is second


@pytest.mark.parametrize("absent", ["transformer", "transformer_2"])
def test_a_transformer_that_is_none_stays_so(two: Any, absent: str) -> None:
    setattr(two, absent, None)
    (there,) = {"transformer", "transformer_2"} - {absent}
    original = getattr(two, there)
    freeloc_fx.enable(two, BY_HAND, backend="eager")
    assert getattr(two, absent) is None and freeloc_fx.is_transformed(getattr(two, there))
    assert freeloc_fx.plan_for(two, 13, 32, 32).rewritten == 2
    freeloc_fx.disable(two)
    assert getattr(two, absent) is None and getattr(two, there) is original


def test_the_same_call_again_compiles_nothing_and_another_one_replaces(pipe: Any) -> None:
    compiled = []

    def backend(gm: Any, inputs: Any) -> Any:
        compiled.append(gm)
        return gm.forward

    untouched = pipe.transformer
    direct = library.generate(pipe, PROMPT, **SMALL).frames
    freeloc_fx.enable(pipe, BY_HAND, backend=backend)
    made = pipe.transformer
    mine = library.generate(pipe, PROMPT, **SMALL).frames
    count = len(compiled)
    assert count > 0 and np.abs(mine - direct).max() > 0

    freeloc_fx.enable(pipe, Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"}), backend=backend)
    assert pipe.transformer is made
    assert np.array_equal(library.generate(pipe, PROMPT, **SMALL).frames, mine) and len(compiled) == count

    for change in (
        {"strategy": "tsa", "backend": backend},
        {"backend": "eager"},
        {"backend": "eager", "attention": "calls"},
        {"backend": "eager", "verify": True},
    ):
        before = pipe.transformer
        used = freeloc_fx.enable(pipe, BY_HAND, **change)
        assert pipe.transformer is not before and freeloc_fx.restore(pipe.transformer) is untouched
        assert used is not None and used.layers == change.get("strategy", BY_HAND.layers)
    assert freeloc_fx.enable(pipe, strategy="direct") is None and pipe.transformer is untouched
    assert np.array_equal(library.generate(pipe, PROMPT, **SMALL).frames, direct)


@pytest.mark.parametrize("backend", ["eager", "inductor", "aot_eager", {"mode": "max-autotune-no-cudagraphs"}])
def test_backends_are_told_apart_by_what_they_are(pipe: Any, backend: Any) -> None:
    freeloc_fx.enable(pipe, BY_HAND, backend=backend)
    made = pipe.transformer
    freeloc_fx.enable(pipe, BY_HAND, backend=dict(backend) if isinstance(backend, dict) else backend)
    assert pipe.transformer is made
    freeloc_fx.enable(
        pipe, BY_HAND, backend={"mode": "max-autotune-no-cudagraphs", "options": None, "backend": "eager"}
    )
    assert (pipe.transformer is made) == (backend == "eager")


def test_choices_about_flex_attention_may_be_given(pipe: Any) -> None:
    freeloc_fx.enable(pipe, BY_HAND, attention={"flex": {"block": 32}})
    made = pipe.transformer
    freeloc_fx.enable(pipe, BY_HAND, attention={"flex": {"block": 32}})
    assert pipe.transformer is made
    freeloc_fx.enable(pipe, BY_HAND, attention={"flex": {"block": 64}})
    assert pipe.transformer is not made


def test_only_what_differs_is_made_anew(two: Any) -> None:
    two.transformer = freeloc_fx.transform(two.transformer, BY_HAND, backend="eager")
    made = two.transformer
    freeloc_fx.enable(two, BY_HAND, backend="eager")
    assert two.transformer is made and freeloc_fx.is_transformed(two.transformer_2)


def test_a_failure_leaves_the_pipeline_as_it_was(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import WanPipeline

    freeloc_fx.enable(two, BY_HAND, backend="eager")
    before = two.transformer, two.transformer_2

    def now() -> tuple[Any, Any]:
        return two.transformer, two.transformer_2

    freeloc_fx.restore(two.transformer_2)._compiled_call_impl = lambda *_: None  # the second cannot be transformed
    with pytest.raises(TransformError, match="already compiled"):
        freeloc_fx.enable(two, BY_HAND, strategy="tsa", backend="eager")
    assert now() == before
    freeloc_fx.restore(two.transformer_2)._compiled_call_impl = None
    for profile, options, error in (
        (BY_HAND, {"strategy": "nope"}, StrategyError),
        (BY_HAND, {"backend": "nope"}, ValueError),
        (BY_HAND, {"attention": "nope"}, ValueError),
        ("no such profile", {}, ProfileError),
        ("wan2.1-t2v-1.3b", {}, PlanError),
        (3, {}, TypeError),
    ):
        with pytest.raises(error):
            freeloc_fx.enable(two, profile, **options)  # type: ignore[arg-type]
        assert now() == before

    put = WanPipeline.__setattr__
    refused: list[str] = []

    def refuse(self: Any, name: str, value: Any) -> None:
        if name == "transformer_2" and not refused:
            refused.append(name)
            raise RuntimeError("no room")
        put(self, name, value)

    monkeypatch.setattr(WanPipeline, "__setattr__", refuse)
    with pytest.raises(RuntimeError, match="no room"):
        freeloc_fx.enable(two, BY_HAND, strategy="tsa", backend="eager")
    assert refused and now() == before


def test_pipelines_without_a_transformer_and_models() -> None:
    class UNetPipeline(SimpleNamespace):
        pass

    without = UNetPipeline(unet=nn.Identity(), vae=nn.Identity(), transformer=None)
    for call in (
        lambda: freeloc_fx.enable(without),
        lambda: freeloc_fx.plan_for(without, 81, 64, 64),
        lambda: library.apply(without, strategy="direct"),
    ):
        with pytest.raises(TransformError, match="found a UNetPipeline with the components unet, vae"):
            call()
    freeloc_fx.disable(without)
    model = nn.Linear(1, 1)
    for call in (
        lambda: freeloc_fx.enable(model),
        lambda: freeloc_fx.disable(model),
        lambda: freeloc_fx.plan_for(model, 81, 64, 64),
    ):
        with pytest.raises(TypeError, match="pipe: expected a diffusers pipeline, found the model Linear"):
            call()


def test_a_pipeline_of_diffusers_without_a_transformer_says_what_it_has() -> None:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )  # fmt: skip
    with pytest.raises(TransformError, match=r"found a DDIMPipeline with the components .*unet"):
        freeloc_fx.enable(DDIMPipeline(unet, DDIMScheduler()))


def test_what_counts_as_transformed(pipe: Any) -> None:
    assert freeloc_fx.is_transformed(nn.Linear(1, 1)) is False
    assert freeloc_fx.is_transformed(pipe.transformer) is False
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, found WanPipeline; ask about its"):
        freeloc_fx.is_transformed(pipe)
    with pytest.raises(TypeError, match=r"found str$"):
        freeloc_fx.is_transformed("transformer")  # type: ignore[arg-type]


def test_a_plan_before_and_after(two: Any) -> None:
    before = freeloc_fx.plan_for(two, 13, 32, 48, BY_HAND)
    assert (before.grid.frames, before.grid.height, before.grid.width) == (4, 2, 3)
    assert [site.strategy.name for site in before.sites] == ["vrpr", "vrpr+tsa"]
    with pytest.raises(ProfileError, match="no shipped profile"):
        freeloc_fx.plan_for(two, 13, 32, 48)
    freeloc_fx.enable(two, BY_HAND, backend="eager")
    made = two.transformer
    assert freeloc_fx.plan_for(two, 13, 32, 48) == before
    assert two.transformer is made and freeloc_fx.plans(made) == []
    assert {s.strategy.name for s in freeloc_fx.plan_for(two, 13, 32, 48, BY_HAND.with_layers("tsa")).sites} == {"tsa"}
    freeloc_fx.disable(two)
    assert freeloc_fx.plan_for(two, 13, 32, 48, BY_HAND) == before


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((12, 32, 32), r"^num_frames=12: this model makes 4n\+1 frames, the nearest are 9 and 13"),
        ((0, 32, 32), "^num_frames: expected an integer of at least 1, found 0"),
        ((13.0, 32, 32), "^num_frames: expected an integer of at least 1, found 13.0"),
        ((True, 32, 32), "^num_frames: expected an integer of at least 1, found True"),
        ((13, "32", 32), "^height: expected an integer of at least 1, found '32'"),
        ((13, 40, 32), "^height=40: expected a multiple of 16 pixels, the nearest are 32 and 48"),
        ((13, 32, -1), "^width: expected an integer of at least 1, found -1"),
        ((257, 32, 32), "rope_max_seq_len is 64"),
    ],
)
def test_a_size_that_cannot_be_is_refused_by_name(pipe: Any, size: Any, message: str) -> None:
    call: Any = freeloc_fx.plan_for
    with pytest.raises(LengthError, match=message):
        call(pipe, *size, profile="not even read")


def test_apply_is_enable_that_runs_the_graph_as_it_is(pipe: Any) -> None:
    library.apply(pipe, BY_HAND, "tsa")
    made = pipe.transformer
    freeloc_fx.enable(pipe, BY_HAND, strategy="tsa", backend="eager")
    assert pipe.transformer is made


def test_a_trained_length_in_video_frames_is_told_once(pipe: Any, said: Any) -> None:
    freeloc_fx.enable(pipe, IN_VIDEO_FRAMES, backend="eager")
    (message,) = said()
    assert "'mine': trained_frames=81 counts latent frames" in message and "321 frames has" in message
    assert "write trained_frames=21" in message
    freeloc_fx.enable(pipe, IN_VIDEO_FRAMES, backend="eager")
    assert len(said()) == 1
    plan = freeloc_fx.plan_for(pipe, 161, 32, 32)
    assert plan.rewritten == 0
    assert "the 161 frames asked for are 41 latent frames" in said()[1] and "write trained_frames=21" in said()[1]
    freeloc_fx.plan_for(pipe, 161, 32, 32)
    library.generate(pipe, PROMPT, **{**SMALL, "frames": 161, "steps": 1})
    assert len(said()) == 2
    library.generate(pipe, PROMPT, **{**SMALL, "frames": 101, "steps": 1})
    assert len(said()) == 3 and "the 101 frames asked for are 26 latent frames" in said()[2]


def test_right_trained_lengths_are_not_taken_for_wrong_ones(pipe: Any, said: Any) -> None:
    right = Profile(trained_frames=21)
    freeloc_fx.enable(pipe, right, backend="eager")
    for frames in (21, 25, 81, 101):
        freeloc_fx.plan_for(pipe, frames, 32, 32)
    freeloc_fx.enable(pipe, BY_HAND, backend="eager")
    library.generate(pipe, PROMPT, **{**SMALL, "frames": 5})
    assert said() == []


@pytest.mark.parametrize(
    ("trained", "temporal", "usual", "frames", "found"),
    [
        (81, 4, 81, 161, True),
        (81, 4, 81, 81, False),  # nothing was meant to be rewritten
        (81, 4, 81, 325, False),  # long either way
        (81, 4, 81, None, True),
        (21, 4, 81, 81, False),
        (21, 4, 81, None, False),
        (163, 6, 19, 325, True),  # Mochi
        (28, 6, 19, 163, False),
        (49, 4, 49, 97, True),  # CogVideoX
        (13, 4, 49, 49, False),
        (81, 4, None, 161, False),
        (81, 1, 81, 161, False),
    ],
)
def test_what_tells_a_wrong_unit(trained: int, temporal: int, usual: int | None, frames: int | None, found: bool):
    assert (unit_hint(Profile(trained_frames=trained), temporal, usual, frames) is not None) == found


def test_shipped_profiles_count_latent_frames() -> None:
    for name in Profile.names():
        assert unit_hint(Profile.load(name), 4, 5, 161) is None


def test_blocks_of_a_second_list_count(tmp_path: Path) -> None:
    """VACE's own blocks are layers too, and stand behind the others."""
    vace = pipeline("WanVACE")
    count = len(layer_table(vace.transformer))
    assert count == 3
    for profile in (Profile(3, {2: "vrpr"}), Profile(3, "vrpr", layer_count=3)):
        assert freeloc_fx.enable(vace, profile, backend="eager") == profile
        planned = freeloc_fx.plan_for(vace, 17, 32, 48)
        assert {site.strategy.name for site in planned.sites if site.layer == 2} == {"vrpr"}
        vace.save_pretrained(tmp_path)
        facts = library.Facts.read(tmp_path)  # from the configuration alone
        assert library.choose_profile(facts.transformer, profile) == profile
    with pytest.raises(ProfileError, match=r"layers\.3: expected a layer of 0 to 2"):
        freeloc_fx.enable(vace, Profile(3, {3: "vrpr"}), backend="eager")


def test_one_of_two_transformers_left_out_is_told(two: Any, said: Any) -> None:
    original = two.transformer
    two.transformer = freeloc_fx.transform(original, BY_HAND, backend="eager")
    freeloc_fx.plan_for(two, 13, 32, 32)
    (message,) = said()
    assert "transformer is transformed and transformer_2 is not" in message and "enable(pipe, ...)" in message
    library.generate(two, PROMPT, **SMALL)
    assert len(said()) == 1
    freeloc_fx.enable(two, BY_HAND, backend="eager")
    library.generate(two, PROMPT, **SMALL)
    assert len(said()) == 1
    two.transformer = original
    library.generate(two, PROMPT, **SMALL)
    assert "transformer_2 is transformed and transformer is not" in said()[1]
