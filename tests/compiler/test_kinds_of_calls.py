"""Start images, keyframes, references, control, unlike masks, autocast, timesteps a token, two transformers: every call
that diffusers' pipelines make of a class, at twice the trained length and within it."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from answers import distance, run
from conditioned import Conditioned
from diffusers_models import CASES
from kinds import AUTOCAST, FAILS, KINDS, MAKERS, MASKED, MASKS, PAIR, autocast, calls, one_of
from literal import attention
from refused_models import REFUSED
from slow import slow
from spelled import in_order, spelled
from two_transformers import PIPELINES, latents, pipeline

import freeloc_fx
from freeloc_fx import Profile, plans, transform

TRAINED = 5
PROFILE = Profile(trained_frames=TRAINED, layers="vrpr+tsa")
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast", "ignore:Mismatch dtype")

QUICK = {(MASKS, "Allegro"), (AUTOCAST, "Wan"), ("per-token timesteps", "AnyFlow")}
NAMES = {kind: [name for name in CASES if name in made] for kind, made in {**MAKERS, MASKS: MASKED}.items()}
NAMES[AUTOCAST] = list(CASES)
CELLS = [(kind, name) for kind, names in NAMES.items() for name in names]


SHORT = {("references", "WanVACE"): 3, ("references", "JoyImageEdit"): 4}
"""Frames of a clip within the trained length where references are frames of it, or an even number has to be."""


def bound(kind: str, name: str) -> float:
    """Under autocast both sides round q, k, v and what comes after to 8 bits, two layers one after another: a few of
    1/256; SanaWM runs parts of every layer in bfloat16 always."""
    return 2e-2 if kind == AUTOCAST else 2e-3 if name == "SanaWM" else 1e-4


@pytest.mark.parametrize(("kind", "name"), [cell if cell in QUICK else slow(*cell) for cell in CELLS])
def test_a_call_of_a_kind(kind: str, name: str) -> None:
    """Every site is rewritten, frames stand where the pipeline has put them, and the result is the formula's."""
    within = SHORT.get((kind, name), TRAINED)
    for call, short in zip(calls(kind, name, 2 * TRAINED), calls(kind, name, within), strict=True):
        torch._dynamo.reset()
        with autocast(kind):
            if (kind, name) in FAILS:
                with pytest.raises(RuntimeError, match=FAILS[kind, name]):
                    run(call.model, call.given)
                return
            changed = transform(call.model, PROFILE, backend="eager", attention="tiles")
            check(kind, name, changed, call)
            assert torch.equal(run(changed, short.given), run(short.model, short.given))
        assert plans(changed)[-1].rewritten == 0


def check(kind: str, name: str, changed: Any, call: Conditioned) -> None:
    found = run(changed, call.given)
    (plan,) = plans(changed)
    for site in plan.sites:
        for found_there, expected_there in ((site.grid.before, call.before), (site.grid.after, call.after)):
            assert [(f.height, f.width) for f in found_there] == [(f.height, f.width) for f in expected_there]
            assert [f.time for f in found_there] == pytest.approx([f.time for f in expected_there], abs=1 / 32)
    assert plan.rewritten == len(plan.sites) > 0
    direct = run(call.model, call.given)
    with attention(in_order(spelled(plan, F.scaled_dot_product_attention, CASES[name].branches), call.order)):
        expected = run(call.model, call.given)
    assert distance(found, expected) <= bound(kind, name)
    assert distance(direct, expected) > 1e-3, "the strategy does not show in the output"
    if kind == MASKS:
        for index in range(2):
            alone = run(changed, one_of(call.given, index))
            assert distance(found[index : index + 1], alone) <= bound(kind, name)
        assert distance(found[:1], found[1:]) > 1e-2


@pytest.mark.parametrize("name", [name if name == "Wan" else slow(name) for name in PIPELINES])
def test_two_transformers(name: str) -> None:
    """Each is rewritten, each with its own weights; a short clip stays bitwise."""
    pipe, plain = pipeline(name), pipeline(name)
    freeloc_fx.enable(pipe, PROFILE, backend="eager", attention="tiles")
    found, direct = latents(pipe, 2 * TRAINED), latents(plain, 2 * TRAINED)
    for changed in (pipe.transformer, pipe.transformer_2):
        assert [plan.rewritten for plan in plans(changed)] == [len(CASES[name].sites)]
    with attention(spelled(plans(pipe.transformer)[0], F.scaled_dot_product_attention)):
        expected = latents(plain, 2 * TRAINED)
    assert distance(found, expected) <= 1e-4
    assert distance(direct, expected) > 1e-3
    plain.transformer_2 = plain.transformer
    assert distance(latents(plain, 2 * TRAINED), direct) > 1e-3, "the second does not show in the output"
    plain = pipeline(name)
    assert torch.equal(latents(pipe, TRAINED), latents(plain, TRAINED))


# Nothing is missing


def test_every_video_transformer_of_diffusers_has_a_row() -> None:
    """A class that this version of the test does not know, as of a newer diffusers, is one to look at."""
    import diffusers.models.transformers as there

    known = {case.cls for case in (*CASES.values(), *REFUSED.values())}
    video = {name for name in dir(there) if name.endswith("Transformer3DModel")} | {"Cosmos3OmniTransformer"}
    assert {name for name in video if hasattr(diffusers, name)} - known == set()


def test_kinds_that_a_class_is_said_not_to_take_are_none_of_its_arguments() -> None:
    """What a forward's arguments are called tells most kinds; channels beside the noise are the pipelines' matter."""
    assert set(KINDS) == {*NAMES, PAIR}
    words = {
        "start image": ("encoder_hidden_states_image", "image_embeds", "inpaint", "condition_mask"),
        "keyframes": ("keyframe", "inpaint"),
        "references": ("reference", "face", "id_cond", "shape_list"),
        "control": ("control", "pose", "camera", "action"),
        MASKS: ("encoder_attention_mask", "encoder_hidden_states_mask"),
    }
    for name, case in CASES.items():
        arguments = inspect.signature(getattr(diffusers, case.cls).forward).parameters
        for kind, some in words.items():
            if name not in NAMES[kind]:
                assert not [a for a in arguments if any(w in a for w in some)], (name, kind)
