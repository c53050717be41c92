"""The plan: what will be done, decided and shown before anything runs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from models import wan, wan_inputs

from freeloc_fx import Plan, Profile, plan, transform
from freeloc_fx.errors import CaptureError, LengthError, PlanError, ProfileError, StrategyError
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.method.visibility import TSA

SIZE: dict[str, Any] = {"frames": 9, "height": 4, "width": 6}


@pytest.fixture(scope="module")
def model() -> Any:
    return wan(num_layers=3)


@pytest.fixture(scope="module")
def made(model: Any) -> Plan:
    profile = Profile(
        trained_frames=5,
        layers={0: "vrpr+tsa", 2: "tsa+temp"},
        name="three layers",
        sensitivities={0: Sensitivity(1.5, 0.25)},
    )
    return plan(model, profile, **SIZE)


def test_one_strategy_a_site(made: Plan) -> None:
    assert [(s.path, s.layer, s.strategy.name) for s in made.sites] == [
        ("blocks.0.attn1", 0, "vrpr+tsa"),
        ("blocks.1.attn1", 1, "direct"),
        ("blocks.2.attn1", 2, "tsa+temp"),
    ]
    assert made.rewritten == 2
    assert made.extension == pytest.approx(9 / 5)
    assert (made.grid.frames, made.grid.height, made.grid.width) == (9, 2, 3)
    assert [path for path, _ in made.skipped] == [f"blocks.{i}.attn2" for i in range(3)]
    assert all(reason.startswith("cross: ") for _, reason in made.skipped)
    first = made.site("blocks.0.attn1")
    assert first is not None
    assert (first.heads, first.head_dim) == (2, 12)
    assert (first.position_sensitivity, first.context_sensitivity) == (1.5, 0.25)
    assert made.site("blocks.9.attn1") is None


def test_kept_pairs_follow_the_strategy(made: Plan) -> None:
    kept = {s.layer: s.kept for s in made.sites}
    assert kept[1] == 1.0
    assert 0 < kept[0] < 1 and kept[0] == kept[2]
    rule = made.sites[0].strategy.visibility
    assert isinstance(rule, TSA)
    levels, stripe = rule.levels(9), rule.stripe(2, 3)
    assert kept[0] == pytest.approx(((levels == 2).sum() * 36 + (levels == 1).sum() * stripe.sum()) / 54**2)


def test_parts_with_settings_reach_their_layers(model: Any) -> None:
    profile = Profile(5, {0: (VRPR(2, 3, 2, 4), TSA(2, 3, 2)), 1: (TSA(1, 4, 1), "temp"), 2: "tsa"}, tsa=TSA(3, 4, 2))
    first, second, third = plan(model, profile, **SIZE).sites
    assert (first.strategy.positions, first.strategy.visibility) == (VRPR(2, 3, 2, 4), TSA(2, 3, 2))
    assert second.strategy.visibility == TSA(1, 4, 1) and second.strategy.temperature != 1
    assert third.strategy.visibility == TSA(3, 4, 2)
    assert len({site.kept for site in (first, second, third)}) == 3


def test_a_plan_cannot_be_changed(made: Plan) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.trained_frames = 9  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.sites[0].kept = 1.0  # type: ignore[misc]
    assert isinstance(made.sites, tuple) and isinstance(made.skipped, tuple)
    hash(made)


def test_json_holds_everything(made: Plan) -> None:
    data = json.loads(made.to_json())
    assert data == json.loads(json.dumps(made.to_dict()))
    assert data["profile"] == "three layers"
    whole = {"frames": 9, "height": 2, "width": 3, "text_first": 0, "text_last": 0}
    assert data["grid"] == whole | {"before": [], "after": [], "turned": 0, "uneven": []}
    assert [s["strategy"]["name"] for s in data["sites"]] == ["vrpr+tsa", "direct", "tsa+temp"]
    first = data["sites"][0]
    assert first["rope"]["temporal_pairs"] == [[0, 1], [2, 3]]
    assert first["rope"]["omega"][0] == pytest.approx([1.0, 0.01], abs=1e-6)
    assert {"w1", "w2", "g1", "g2", "d1", "d2", "ds"} <= first["strategy"].keys()
    assert data["sites"][2]["strategy"]["temperature"] > 0
    assert len(data["skipped"]) == 3


def test_a_plan_reads_well(made: Plan) -> None:
    text = str(made)
    assert "9 latent frames of 2x3 tokens, trained on 5 (1.8x); 2 of 3 sites rewritten" in text
    for site in made.sites:
        assert site.path in text and site.strategy.name in text


def test_the_same_question_has_the_same_answer(model: Any, made: Plan) -> None:
    profile = Profile(
        trained_frames=5,
        layers={0: "vrpr+tsa", 2: "tsa+temp"},
        name="three layers",
        sensitivities={0: Sensitivity(1.5, 0.25)},
    )
    assert plan(model, profile, **SIZE) == made


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_within_the_trained_length_nothing_is_rewritten(model: Any, frames: int) -> None:
    made = plan(model, Profile(trained_frames=5, layers="vrpr+tsa+temp"), frames=frames, height=4, width=6)
    assert made.rewritten == 0
    assert all(s.strategy.changes_nothing and s.kept == 1.0 for s in made.sites)


def test_layers_given_as_direct_are_left_alone_at_any_length(model: Any) -> None:
    assert plan(model, Profile(trained_frames=5, layers="direct"), **SIZE).rewritten == 0


def test_no_weight_is_used() -> None:
    """A plan is a capture: a model full of NaN gives the same one, and no forward pass has its way with a hook."""
    model = wan()
    expected = plan(model, Profile(trained_frames=5), **SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    torch._dynamo.reset()
    assert plan(model, Profile(trained_frames=5), **SIZE) == expected


def test_planning_leaves_the_model_alone() -> None:
    model = wan()
    before = set(model.__dict__)
    plan(model, Profile(trained_frames=5), **SIZE)
    assert set(model.__dict__) == before
    assert model._compiled_call_impl is None


def test_a_transformed_model_is_planned_with_its_own_profile(model: Any) -> None:
    profile = Profile(trained_frames=5, layers="tsa", name="own")
    changed = transform(model, profile, backend="eager")
    assert plan(changed, **SIZE) == plan(model, profile, **SIZE)
    assert plan(changed, Profile(trained_frames=5, layers="vrpr"), **SIZE).sites[0].strategy.name == "vrpr"


def test_explicit_settings_are_used_and_noted_where_they_leave_the_trained_range(model: Any) -> None:
    inside = plan(model, Profile(trained_frames=5, layers="vrpr", vrpr=VRPR(1, 3, 2, 3)), **SIZE)
    assert inside.sites[0].strategy.positions == VRPR(1, 3, 2, 3)
    assert inside.notes == ()
    outside = plan(model, Profile(trained_frames=5, layers="vrpr", vrpr=VRPR(8, 8, 1, 1)), **SIZE)
    (note,) = outside.notes
    assert note == "vrpr: explicit settings reach position 8, trained positions end at 4"
    assert note in str(outside)


@pytest.mark.parametrize("name", ["frames", "height", "width"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "9", None])
def test_sizes_must_be_positive_integers(model: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a positive integer, found {value!r}"):
        plan(model, Profile(trained_frames=5), **(SIZE | {name: value}))


def test_a_profile_for_another_number_of_layers(model: Any) -> None:
    with pytest.raises(ProfileError, match=r"layer_count: profile 'x' is for 5 layers, the model has 3"):
        plan(model, Profile(trained_frames=5, layer_count=5, name="x"), **SIZE)


def test_a_layer_out_of_range(model: Any) -> None:
    with pytest.raises(ProfileError, match=r"layers\.3: expected a layer of 0 to 2, found 3"):
        plan(model, Profile(trained_frames=5, layers={3: "tsa"}), **SIZE)


def test_a_profile_for_another_model(model: Any) -> None:
    with pytest.raises(PlanError):
        plan(model, "wan2.1-t2v-1.3b", **SIZE)


def test_an_unknown_profile(model: Any) -> None:
    with pytest.raises(ProfileError, match="no-such-profile"):
        plan(model, "no-such-profile", **SIZE)


def test_an_unknown_strategy() -> None:
    with pytest.raises((ProfileError, StrategyError), match="'magic' is not one of"):
        Profile(trained_frames=5, layers="magic")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"frames": 65}, "65 latent frames need 65 positions, the model's rope_max_seq_len is 64"),
        ({"height": 130}, "130 latent height need 65 positions"),
    ],
)
def test_positions_beyond_the_models_tables(model: Any, size: dict[str, int], message: str) -> None:
    with pytest.raises(LengthError, match=message):
        plan(model, Profile(trained_frames=5), **(SIZE | size))


def test_a_model_that_needs_unknown_inputs() -> None:
    class Odd(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, secret: torch.Tensor) -> torch.Tensor:
            return hidden_states

    with pytest.raises(CaptureError, match=r"Odd\.forward needs 'secret'.*inputs=\{'secret': tensor\}"):
        plan(Odd(), Profile(trained_frames=5), **SIZE)


def test_inputs_given_by_the_caller_are_used(model: Any) -> None:
    text = wan_inputs(9, text=11)["encoder_hidden_states"]
    made = plan(model, Profile(trained_frames=5), inputs={"encoder_hidden_states": text}, **SIZE)
    assert made.skipped[0][1].endswith("attend to 11 other tokens")


def test_temperatures_of_a_mixture_are_shown_one_by_one() -> None:
    made = plan(wan(), Profile(5, {0: "longdiff+temp", 1: "freelong+temp"}), **SIZE)
    members = [site.strategy.members for site in made.sites]
    assert made.sites[0].strategy.temperatures == f"{members[0][0].temperature:.3f}", "all three are one"
    assert made.sites[1].strategy.temperatures == " / ".join(f"{m.temperature:.3f}" for m in members[1])
    lines = str(made).splitlines()
    assert all(
        line.endswith(f"temperature {s.strategy.temperatures}") for line, s in zip(lines[1:], made.sites, strict=True)
    )


def test_a_plan_says_from_which_step_on_it_holds(model: Any) -> None:
    def shown(layers: str) -> bool:
        made = plan(model, Profile(5, "window", schedule=[{"steps": 7, "layers": layers}]), **SIZE)
        said = "note: this is from denoising step 7 on; the schedule has other strategies before"
        assert not made.notes and said not in str(made.stage(0))
        return said in str(made)

    assert shown("direct") and not shown("window")
