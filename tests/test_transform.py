"""transform and restore on Wan: the same model to everyone who uses it, and long video inside."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from models import DiT, latents, wan, wan_inputs

import freeloc_fx
from freeloc_fx import Profile, pipeline, plans, restore, transform
from freeloc_fx.errors import (
    CaptureError,
    LengthError,
    PlanError,
    ProfileError,
    TransformError,
    VerificationError,
)

ALL = Profile(trained_frames=5, layers="vrpr+tsa+temp")
LONG = 12


@pytest.fixture
def model() -> Any:
    return wan()


def run(model: Any, *, frames: int = LONG, **changes: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**wan_inputs(frames, **changes))[0]
    return result


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def reference(model: Any, profile: Profile = ALL, **changes: Any) -> torch.Tensor:
    return run(transform(model, profile, backend="eager", attention="reference"), **changes)


# The same model to everyone who uses it


def test_class_config_and_parameters_stay(model: Any) -> None:
    from diffusers import ModelMixin, WanTransformer3DModel

    changed = transform(model, ALL, backend="eager")
    assert type(changed) is WanTransformer3DModel
    kinds: Any = ModelMixin  # typed as a stand-in without attributes
    assert isinstance(changed, kinds)
    assert changed is not model
    assert changed.config == model.config
    assert (changed.dtype, changed.device) == (model.dtype, model.device)
    assert changed.training is False
    own, original = dict(changed.named_parameters()), dict(model.named_parameters())
    assert own.keys() == original.keys()
    assert all(own[name] is original[name] for name in own)
    assert changed.state_dict().keys() == model.state_dict().keys()


def test_the_original_stays_as_it_was(model: Any) -> None:
    before = run(model)
    attributes = set(model.__dict__)
    changed = transform(model, ALL, backend="eager")
    after_transform = run(changed)
    assert torch.equal(run(model), before)
    assert not torch.allclose(after_transform, before, rtol=1e-3, atol=1e-3)
    assert model._compiled_call_impl is None
    assert set(model.__dict__) == attributes


def test_restore_gives_the_original_object(model: Any) -> None:
    assert restore(transform(model, ALL, backend="eager")) is model


def test_cache_context_works(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    expected = run(changed)
    for name in ("cond", "uncond", "cond"):
        with changed.cache_context(name):
            assert torch.equal(run(changed), expected)
    assert len(plans(changed)) == 1


def test_save_pretrained_round_trip(model: Any, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    changed = transform(model, ALL, backend="eager")
    expected = run(changed)
    changed.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path).eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert torch.equal(run(transform(loaded, ALL, backend="eager")), expected)


def test_lora_after_transform(model: Any) -> None:
    from peft import LoraConfig

    changed = transform(model, ALL, backend="eager")
    plain = run(changed)
    changed.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False), "style")
    styled = run(changed)
    assert not torch.allclose(styled, plain, rtol=1e-3, atol=1e-4)
    assert plans(changed)[-1].rewritten == 2, "the graph with the adapter is rewritten as well"
    fast = reference(restore(changed))
    assert distance(styled, fast) <= 1e-5
    changed.disable_adapters()
    assert distance(run(changed), plain) <= 1e-6
    changed.enable_adapters()
    assert distance(run(changed), styled) <= 1e-6
    changed.delete_adapters("style")
    assert distance(run(changed), plain) <= 1e-6


def test_weights_changed_in_place_count(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    before = run(changed)
    with torch.no_grad():
        model.proj_out.weight.mul_(2)
        model.proj_out.bias.mul_(2)
    assert distance(run(changed), 2 * before) <= 1e-6
    assert len(plans(changed)) == 1


def test_positional_arguments_and_the_output_class(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    inputs = wan_inputs(LONG)
    with torch.no_grad():
        output = changed(inputs["hidden_states"], inputs["timestep"], inputs["encoder_hidden_states"])
    assert type(output).__name__ == "Transformer2DModelOutput"
    assert distance(output.sample, run(changed)) <= 1e-6


# Wrong use


def test_transforming_twice(model: Any) -> None:
    with pytest.raises(TransformError, match=r"WanTransformer3DModel is already transformed; restore\(model\)"):
        transform(transform(model, ALL, backend="eager"), ALL)


def test_restoring_a_plain_model(model: Any) -> None:
    for function in (restore, plans):
        with pytest.raises(TransformError, match="this WanTransformer3DModel is not a transformed model"):
            function(model)


def test_transforming_a_compiled_model(model: Any) -> None:
    model.compile(backend="eager")
    with pytest.raises(TransformError, match="already compiled"):
        transform(model, ALL)


def test_a_transformed_model_is_not_copied_or_pickled(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    with pytest.raises(TransformError, match="cannot be deep-copied"):
        copy.deepcopy(changed)
    with pytest.raises(TransformError, match="cannot be pickled"):
        pickle.dumps(changed)


@pytest.mark.parametrize("wrong", [None, "model", lambda x: x])
def test_what_is_no_module(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        transform(wrong, ALL)


def test_an_unknown_backend_or_attention(model: Any) -> None:
    with pytest.raises(ValueError, match=r"backend: expected 'eager' or one of .*inductor.*, found 'fast'"):
        transform(model, ALL, backend="fast")
    with pytest.raises(ValueError, match=r"expected the keys 'backend', 'mode', 'options', found \['speed'\]"):
        transform(model, ALL, backend={"speed": 11})
    with pytest.raises(ValueError, match=r"attention: expected 'auto', .* found 'fast'"):
        transform(model, ALL, attention="fast")
    with pytest.raises(TypeError, match="profile: expected a Profile, a shipped name or a path, found int"):
        transform(model, 5)  # type: ignore[arg-type]


def test_a_profile_that_does_not_fit(model: Any) -> None:
    with pytest.raises(PlanError, match=r"wan2\.1-t2v-1\.3b"):
        transform(model, "wan2.1-t2v-1.3b")
    with pytest.raises(ProfileError, match=r"layers\.2: expected a layer of 0 to 1, found 2"):
        transform(model, Profile(trained_frames=5, layers={2: "tsa"}))
    with pytest.raises(ProfileError, match="is for 30 layers, the model has 2"):
        transform(model, Profile(trained_frames=5, layer_count=30))
    with pytest.raises(ProfileError, match=r"Make one by hand"):
        transform(model)


def test_frames_beyond_the_models_tables_are_refused_before_any_work(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    with pytest.raises(LengthError, match="65 latent frames need 65 positions, the model's rope_max_seq_len is 64"):
        run(changed, frames=65)
    assert plans(changed) == []
    assert run(changed).shape == (1, 4, LONG, 4, 4), "and the model is still usable"


def test_a_model_without_temporal_rope_is_never_run_silently() -> None:
    changed = transform(DiT(None), ALL, backend="eager")
    for _ in range(2):
        with torch.no_grad(), pytest.raises(CaptureError, match="no video self-attention with temporal RoPE"):
            changed(latents(8, 2, 3))


# Within the trained length


@pytest.mark.parametrize("backend", ["eager", "inductor", "aot_eager"])
def test_within_the_trained_length_the_output_is_bitwise_the_same(model: Any, backend: str) -> None:
    changed = transform(model, ALL, backend=backend)
    for frames, batch in ((5, 1), (3, 2)):
        assert torch.equal(run(changed, frames=frames, batch=batch), run(model, frames=frames, batch=batch))
    assert [p.rewritten for p in plans(changed)] == [0, 0]


def test_within_the_trained_length_in_bfloat16() -> None:
    model = wan(dtype=torch.bfloat16)
    changed = transform(model, ALL, backend="eager")
    assert torch.equal(run(changed, frames=5, dtype=torch.bfloat16), run(model, frames=5, dtype=torch.bfloat16))


# Beyond it


@pytest.mark.parametrize("name", ["direct+temp", "vrpr", "tsa", "vrpr+tsa", "vrpr+tsa+temp"])
def test_lowerings_agree_through_the_model(model: Any, name: str) -> None:
    profile = Profile(trained_frames=5, layers=name)
    expected = reference(model, profile, batch=2)
    found = run(transform(model, profile, backend="eager", attention="tiles"), batch=2)
    assert distance(found, expected) <= 1e-5
    assert distance(expected, run(model, batch=2)) > 1e-2, "the strategy shows in the output"


@pytest.mark.filterwarnings("ignore:attention='flex' with strategy")
def test_flex_agrees_through_the_model(model: Any) -> None:
    found = run(transform(model, ALL, backend="eager", attention="flex"))
    assert distance(found, reference(model)) <= 1e-5


def test_each_layer_gets_its_own_strategy(model: Any) -> None:
    outputs = [
        run(transform(model, Profile(trained_frames=5, layers=layers), backend="eager"))
        for layers in ("vrpr", {0: "vrpr"}, {1: "vrpr"}, "direct")
    ]
    for i, one in enumerate(outputs):
        for other in outputs[i + 1 :]:
            assert distance(one, other) > 1e-3
    assert torch.equal(outputs[-1], run(model))


def test_the_plan_of_each_call_is_kept(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    assert plans(changed) == []
    run(changed)
    (made,) = plans(changed)
    assert made.rewritten == 2 and made.grid.frames == LONG
    assert made.to_dict() == freeloc_fx.plan(model, ALL, frames=LONG, height=4, width=4).to_dict() | {
        "skipped": made.to_dict()["skipped"]  # the length of the text differs
    }


def test_a_shape_that_was_seen_is_not_compiled_again(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    calls: list[dict[str, Any]] = [
        {"frames": 12},
        {"frames": 5},
        {"frames": 12, "batch": 2},
        {"frames": 9, "height": 6},
        {"frames": 12, "text": 9},
    ]
    first = [run(changed, **call) for call in calls]
    assert len(plans(changed)) == len(calls)
    captures = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(2):
        for call, expected in zip(calls, first, strict=True):
            assert torch.equal(run(changed, **call), expected)
    assert len(plans(changed)) == len(calls)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == captures
    for call, found in zip(calls, first, strict=True):
        if call["frames"] > 5:
            assert distance(found, reference(model, **call)) <= 1e-5


def test_more_shapes_than_dynamo_would_compile(model: Any) -> None:
    """Past eight shapes Dynamo alone would run the untransformed model without a word."""
    changed = transform(model, ALL, backend="eager")
    for frames in range(6, 16):
        run(changed, frames=frames)
    assert [p.grid.frames for p in plans(changed)] == list(range(6, 16))
    assert all(p.rewritten == 2 for p in plans(changed))
    assert distance(run(changed, frames=15), reference(model, frames=15)) <= 1e-5
    assert distance(run(changed, frames=15), run(model, frames=15)) > 1e-2


def test_a_guidance_pair_is_two_single_calls(model: Any) -> None:
    changed = transform(model, ALL, backend="eager")
    inputs = wan_inputs(LONG, batch=2)
    inputs["timestep"] = torch.tensor([500, 500])
    with torch.no_grad():
        pair = changed(**inputs)[0]
        for index in range(2):
            one = {k: v[index : index + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            assert distance(changed(**one)[0], pair[index : index + 1]) <= 1e-5


def test_bfloat16() -> None:
    model = wan(dtype=torch.bfloat16)
    found = run(transform(model, ALL, backend="eager"), dtype=torch.bfloat16)
    expected = reference(model, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    gap = (found.double() - expected.double()).norm() / expected.double().norm()
    assert float(gap) <= 2e-2


def test_bfloat16_with_tables_in_float32() -> None:
    """As from_pretrained(torch_dtype=...) loads it: the position tables stay float32."""
    model = wan(dtype=torch.bfloat16)
    model.rope = wan().rope
    changed = transform(model, ALL, backend="eager")
    expected = reference(model, dtype=torch.bfloat16)
    found = run(changed, dtype=torch.bfloat16)
    omega = plans(changed)[0].sites[0].rope.omega[0]
    assert omega == pytest.approx([1.0, 0.01], abs=1e-6)
    assert float((found.double() - expected.double()).norm() / expected.double().norm()) <= 2e-2


def test_an_unseen_geometry_with_a_profile_by_hand() -> None:
    model = wan(num_layers=3, num_attention_heads=3, attention_head_dim=24, patch_size=(1, 1, 2), qk_norm=None)
    profile = Profile(trained_frames=16, layers="vrpr+tsa")
    found = run(transform(model, profile, backend="eager"), frames=19, height=3, width=10)
    assert distance(found, reference(model, profile, frames=19, height=3, width=10)) <= 1e-5
    assert distance(found, run(model, frames=19, height=3, width=10)) > 1e-3


def test_a_model_written_by_hand() -> None:
    model = DiT()
    profile = Profile(trained_frames=3, layers="vrpr+tsa")
    x = latents(8, 2, 3)
    with torch.no_grad():
        found = transform(model, profile, backend="eager")(x)
        expected = transform(model, profile, backend="eager", attention="reference")(x)
        assert distance(found, expected) <= 1e-5
        assert not torch.equal(found, model(x))


# Compilers


def test_inductor_at_a_long_length(model: Any) -> None:
    found = run(transform(model, ALL))
    assert distance(found, run(transform(model, ALL, backend="eager"))) <= 1e-4


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_aot_eager_at_a_long_length(model: Any, grad: bool) -> None:
    """Also outside torch.no_grad with weights that want gradients, as someone calls a model at a prompt."""
    expected = run(transform(model, ALL, backend="eager"))
    changed = transform(model.requires_grad_(grad), ALL, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        found = changed(**wan_inputs(LONG))[0]
    assert distance(found.detach(), expected) <= 1e-5


def test_a_backend_may_be_a_mapping_or_a_callable(model: Any) -> None:
    expected = run(transform(model, ALL, backend="eager"))
    seen = []

    def keep(gm: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        seen.append(gm)
        return gm.forward

    assert torch.equal(run(transform(model, ALL, backend=keep)), expected)
    targets = [str(n.target) for n in seen[0].graph.nodes]
    assert targets.count("freeloc_fx.long_attention.default") == 2
    assert torch.equal(run(transform(model, ALL, backend={"backend": "aot_eager"})), expected)
    transform(model, ALL, backend={"mode": "reduce-overhead"})
    transform(model, ALL, backend={"options": {"max_autotune": False}})
    with pytest.raises(RuntimeError, match="no_such_option"):
        transform(model, ALL, backend={"options": {"no_such_option": 1}})


# Verification and dumps


def test_verify_changes_nothing_about_the_output(model: Any) -> None:
    expected = run(transform(model, ALL, backend="eager"))
    assert torch.equal(run(transform(model, ALL, backend="eager", verify=True)), expected)


def with_pass(monkeypatch: pytest.MonkeyPatch, bad: Any) -> None:
    original = pipeline.rewrite_passes
    monkeypatch.setattr(pipeline, "rewrite_passes", lambda: [*original(), bad])


def test_a_pass_that_breaks_the_graph_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_order(graph: torch.fx.Graph, context: Any) -> int:
        nodes = [n for n in graph.nodes if n.op == "call_function"]
        nodes[0].prepend(nodes[-1])
        return 0

    with_pass(monkeypatch, breaks_order)
    with pytest.raises(VerificationError, match="after breaks_order: the graph is not well formed"):
        run(transform(model, ALL, backend="eager"))


def test_a_pass_that_changes_a_shape_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def drops_a_transpose(graph: torch.fx.Graph, context: Any) -> int:
        node = next(n for n in graph.nodes if "long_attention" in str(n.target))
        user = next(iter(node.users))
        user.replace_all_uses_with(node)
        return 0

    with_pass(monkeypatch, drops_a_transpose)
    with pytest.raises(VerificationError, match=r"after drops_a_transpose: node \w+: expected \(.+\) .*, found \(.+\)"):
        run(transform(model, ALL, backend="eager", verify=True))


def test_a_pass_that_changes_a_dtype_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubles(graph: torch.fx.Graph, context: Any) -> int:
        node = next(n for n in graph.nodes if "long_attention" in str(n.target))
        with graph.inserting_before(node):
            wide = [graph.call_method("double", (n,)) for n in node.args[:3]]
        node.args = (*wide, *node.args[3:])
        return 0

    with_pass(monkeypatch, doubles)
    with pytest.raises(VerificationError, match=r"after doubles: .*expected .*float32, found .*float64"):
        run(transform(model, ALL, backend="eager", verify=True))


def test_a_rewrite_that_misses_a_site_is_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(graph: torch.fx.Graph, context: Any) -> int:
        return 0

    monkeypatch.setattr(pipeline, "rewrite_passes", lambda: [nothing])
    with pytest.raises(VerificationError, match="expected 2 sites replaced, found 0"):
        run(transform(model, ALL, backend="eager"))


def test_a_record_that_contradicts_its_node_is_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from freeloc_fx.meta import sites, write

    def lies(graph: torch.fx.Graph, context: Any) -> int:
        write(sites(graph)[0][0], query_shape=(1, 2, 999, 12))
        return 0

    with_pass(monkeypatch, lies)
    with pytest.raises(VerificationError, match=r"after lies: site blocks\.0\.attn1: expected \(1, 2, 999, 12\)"):
        run(transform(model, ALL, backend="eager"))


def test_verify_notices_a_wrong_lowering(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transform promises to check each long attention against the reference the first time it runs."""
    from freeloc_fx.attention import op

    monkeypatch.setattr(op, "_verified", set())
    right = op.LOWERINGS["tiles"]
    monkeypatch.setitem(op.LOWERINGS, "tiles", lambda *given: right(*given) * 1.01)
    with pytest.raises(VerificationError, match="reference"):
        run(transform(model, ALL, backend="eager", attention="tiles", verify=True))


def test_dumps_are_numbered_files(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    monkeypatch.setenv("FREELOC_DUMP", str(folder))
    run(transform(model, ALL, backend="eager"))
    files = sorted(folder.iterdir())
    names = ["capture", "find_attention", "find_key_mask", "infer_rope", "infer_token_grid", "annotate_sensitivity",
             "rewrite_attention", "merge_repeated_keys"]  # fmt: skip
    assert [f.name.split("_", 1)[1] for f in files] == [f"{name}.txt" for name in names]
    numbers = [int(f.name.split("_")[0]) for f in files]
    assert numbers == list(range(numbers[0], numbers[0] + len(files)))
    texts = [f.read_text() for f in files]
    assert "scaled_dot_product_attention" in texts[0] and "long_attention" not in texts[0]
    assert "AttentionSite" in texts[1]
    assert texts[-1].count("torch.ops.freeloc_fx.long_attention.default") == 2


def test_without_the_switch_nothing_is_dumped(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FREELOC_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    run(transform(model, ALL, backend="eager"))
    assert list(tmp_path.iterdir()) == []
