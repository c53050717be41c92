"""Calls and models that were refused, or refused with the wrong reason: they work, or the reason is the right one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers_models import CASES, Case, arguments, build
from models import DiT, latents, wan, wan_inputs
from slow import slow
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from freeloc_fx import Profile, plan, plans, transform
from freeloc_fx.compiler.capture.examples import example_inputs
from freeloc_fx.errors import CaptureError, PlanError, ProfileError

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")


def run(model: Any, given: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)[0]
    return result


def check(model: Any, short: Any, long: Any, context: Any = nullcontext, tolerance: float = 1e-5) -> Any:
    """Bitwise within the trained length, the literal reference beyond it; returns the transformed model."""
    changed = transform(model, PROFILE, backend="eager")
    with context():
        assert torch.equal(run(changed, short), run(model, short))
        found, direct = run(changed, long), run(model, long)
        torch._dynamo.reset()
        expected = run(transform(model, PROFILE, backend="eager", attention="reference"), long)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= tolerance * scale
    assert float((found - direct).abs().max()) > 10 * tolerance * scale, "nothing was rewritten"
    return changed


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("cpu")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def frozen() -> Iterator[None]:
    with torch._inductor.config.patch(freezing=True):
        yield


CONTEXTS = [
    ("Wan", default_dtype), ("CogVideoX", default_device), slow("Wan", lambda: torch.device("cpu")), ("LTX", frozen),
]  # fmt: skip


@pytest.mark.parametrize(("name", "context"), CONTEXTS)
def test_defaults_of_the_process(name: str, context: Any) -> None:
    model = build(name)
    check(model, arguments(name, model, 4), arguments(name, model, 12), context)
    assert torch.empty(1).dtype == torch.float32 and not torch.overrides._get_current_function_mode_stack()


def test_a_default_device_is_in_force_again_after_a_call() -> None:
    changed = transform(wan(), PROFILE, backend="eager")
    with torch.device("cpu"), torch.device("meta"), torch.device("cpu"):
        before = torch.overrides._get_current_function_mode_stack()
        with suppress(Exception):  # whether a model runs with its tables on "meta" is not the question
            run(changed, wan_inputs(7))
        assert torch.overrides._get_current_function_mode_stack() == before


@pytest.mark.parametrize("name", ["Mochi", slow("Cosmos")])
def test_autocast_where_tables_are_kept_out_of_it(name: str) -> None:
    model = build(name)
    given = [arguments(name, model, frames) for frames in (4, 11)]
    check(model, *given, lambda: torch.autocast("cpu", torch.bfloat16), tolerance=2e-2)


@pytest.mark.parametrize("size", [slow((1, 2, 3)), slow((4, 1, 2)), slow((4, 3, 1)), (3, 1, 1)])
def test_pairs_that_turn_by_half_a_turn(size: tuple[int, int, int]) -> None:
    """LTX spreads positions over [-1, 1], so the one place of a one-token axis is half a turn of the first pair."""
    model, random = build("LTX"), torch.Generator().manual_seed(1)

    def given(*size: int) -> dict[str, Any]:
        made = example_inputs(model, *size)  # type: ignore[arg-type]
        free = {k: v for k, v in made.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
        return made | {k: torch.randn(v.shape, generator=random) for k, v in free.items()}

    check(model, given(*size), given(13, *size[1:]))


@pytest.mark.parametrize(("blocks", "mask"), [slow([1], None), slow([0, 1], 0.0), ([1], 1.0)])
def test_guidance_that_perturbs_blocks(blocks: list[int], mask: float | None) -> None:
    """LTX2's spatio-temporal guidance branches on a tensor in a block, and leaves attentions out in some calls."""
    case = CASES["LTX2"]
    model = build("LTX2", case=replace(case, config={**case.config, "perturbed_attn": True}))
    changed = transform(model, PROFILE, backend="eager")
    more = {} if mask is None else {"perturbation_mask": torch.tensor([mask])}
    for frames in (4, 9) if mask is None else (9,):
        given = arguments("LTX2", model, frames)
        perturbed = given | {"spatio_temporal_guidance_blocks": blocks} | more
        outputs = [run(changed, one) for one in (given, perturbed, given)]
        assert torch.equal(outputs[0], outputs[2])
        if frames == 4:
            assert torch.equal(outputs[0], run(model, given)) and torch.equal(outputs[1], run(model, perturbed))
        elif mask == 1.0:
            torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    assert plans(changed)[-1].grid.frames == 9


def allegro(frames: int, hidden: bool, batch: int = 1) -> dict[str, Any]:
    """With the mask of its pipeline over frames, rows and columns, which the model repeats over heads."""
    model = build("Allegro")
    given = dict(arguments("Allegro", model, frames))
    mask = torch.ones(batch, frames, *CASES["Allegro"].size)
    if hidden:
        mask[..., -2:] = 0
    for name in ("hidden_states", "encoder_hidden_states", "timestep"):
        given[name] = given[name].repeat_interleave(batch, 0)
    return given | {
        "attention_mask": mask,
        "encoder_attention_mask": torch.ones(batch, given["encoder_hidden_states"].shape[1]),
    }


@pytest.mark.parametrize("batch", [slow(1), 3])
def test_a_mask_of_keys_that_is_repeated_over_heads(batch: int) -> None:
    check(build("Allegro"), allegro(4, False, batch), allegro(9, False, batch))


def test_a_mask_that_hides_part_of_the_clip_is_refused_as_that() -> None:
    changed = transform(build("Allegro"), PROFILE, backend="eager")
    with pytest.raises(CaptureError, match="expected every video token to be visible, found masked ones"):
        run(changed, allegro(9, True))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (1, 1, 1),
            r"WanTransformer3DModel: its forward failed on example inputs of 1 x 1 x 1 latents with RuntimeError",
        ),
        ((12, 1, 2), "its forward failed on example inputs of 12 x 1 x 2 latents"),
    ],
)
def test_a_size_that_the_model_does_not_take(size: tuple[int, int, int], message: str) -> None:
    frames, height, width = size
    with pytest.raises(CaptureError, match=message):
        plan(wan(), PROFILE, frames=frames, height=height, width=width)


# What is rewritten in part, and what lands nowhere


class TwoBranches(nn.Module):
    """A block of `DiT` with a second attention over the clip's tokens that RoPE does not turn, as for a camera."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.main, self.camera = block, DiT(split=None).blocks[0].attention

    def forward(self, x: torch.Tensor, tables: Any, other: Any) -> torch.Tensor:
        result: torch.Tensor = self.main(x, tables, other) + self.camera(x, None, other)
        return result


def test_what_stays_beside_rewritten_layers_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = DiT(layers=3)
    model.blocks[1] = TwoBranches(model.blocks[1])
    changed = transform(model, PROFILE, backend="eager")
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="freeloc_fx"):
        changed(latents(4, 2, 3))
        assert not caplog.records, "within the trained length nothing is rewritten"
        changed(latents(9, 2, 3))
    (note,) = plans(changed)[-1].notes
    assert note.startswith("blocks.1.camera attends over 54 tokens, no fewer than the clip's, and stays as it is")
    assert [record.message for record in caplog.records] == [note]


def test_layers_without_a_softmax_attention_are_said() -> None:
    class Linear(nn.Module):
        """Mixes tokens without a softmax, and reads the text."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = DiT(how="cross").blocks[0].attention

        def forward(self, x: torch.Tensor, tables: Any, other: Any) -> torch.Tensor:
            result: torch.Tensor = x + x.mean(1, keepdim=True) + self.attention(x, None, other)
            return result

    model = DiT(layers=3)
    model.blocks[0] = Linear()
    changed = transform(model, PROFILE, backend="eager")
    with torch.no_grad():
        changed(latents(9, 2, 3), torch.randn(1, 5, 32))
    (note,) = plans(changed)[-1].notes
    assert note.startswith("the layers [0] work on the clip's tokens without a softmax attention among them")


MOTIF = Case(
    "MotifVideoTransformer3DModel",
    {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
        "num_single_layers": 2, "num_decoder_layers": 1, "patch_size": 1, "patch_size_t": 1, "text_embed_dim": 16,
        "rope_axes_dim": (4, 4, 2),
    },
    (),
)  # fmt: skip


@pytest.mark.skipif(not hasattr(__import__("diffusers"), MOTIF.cls), reason="this diffusers has no MotifVideo")
def test_the_clip_once_more_is_no_text() -> None:
    model = build("MotifVideo", case=MOTIF)
    made = plan(model, PROFILE, frames=11, height=2, width=3)
    assert [site.path for site in made.sites] == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    assert "66 tokens that are not turned stand beside the clip's 66, where other layers have 16" in made.notes[0]


def test_a_schedule_that_lands_on_no_site_is_an_error() -> None:
    model = build("Kandinsky5")
    given = arguments("Kandinsky5", model, 12)
    staged = Profile(trained_frames=5, layers="vrpr", schedule=[{"steps": 2, "layers": {0: "tsa", 1: "tsa"}}])
    with pytest.raises(PlanError, match=r"layers\.0: .* gives the layers \[0\] a strategy"):
        run(transform(model, staged, backend="eager"), given)


def test_layers_are_counted_where_the_last_ones_hold_no_site() -> None:
    """A layer that is not called is one of the model's all the same."""
    model = DiT(layers=3)
    model.blocks[2].forward = lambda x, tables, other: x
    with torch.no_grad():
        changed = transform(model, Profile(5, {0: "vrpr", 2: "direct"}, layer_count=3), backend="eager")
        assert changed(latents(9, 2, 3)).shape == (1, 4, 9, 2, 3)
        with pytest.raises(PlanError, match=r"gives the layers \[2\] a strategy"):
            transform(model, Profile(5, {2: "vrpr"}), backend="eager")(latents(9, 2, 3))
        with pytest.raises(ProfileError, match="expected a layer of 0 to 2, found 3"):
            transform(model, Profile(5, {3: "vrpr"}), backend="eager")(latents(9, 2, 3))


@pytest.mark.parametrize("names", [("compile",), ("compile_repeated_blocks",)])
def test_compiling_a_transformed_model_chooses_its_backend(names: tuple[str]) -> None:
    seen: list[int] = []

    def backend(gm: Any, inputs: Any) -> Any:
        seen.append(1)
        return gm.forward

    changed = transform(wan(), PROFILE, backend="eager")
    expected = run(changed, wan_inputs(9))
    getattr(changed, names[0])(backend=backend, fullgraph=True)
    assert torch.equal(run(changed, wan_inputs(9)), expected) and seen == [1]


def test_a_forward_that_is_compiled_is_refused() -> None:
    from freeloc_fx.errors import TransformError

    model = wan()
    changed = transform(model, PROFILE, backend="eager")
    changed.forward = torch.compile(changed.forward, backend="eager")
    with pytest.raises(TransformError, match="the forward of this WanTransformer3DModel is compiled on its own"):
        run(changed, wan_inputs(9))
    model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(TransformError, match="is compiled on its own"):
        transform(model, PROFILE)


def test_shapes_alone() -> None:
    """As whoever counts memory calls it, before or after a call with values."""
    changed, given = transform(wan(), Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager"), wan_inputs(9)
    with torch.no_grad():
        for _ in range(2):
            with FakeTensorMode(allow_non_fake_inputs=True):
                assert changed(**given)[0].shape == given["hidden_states"].shape
            assert torch.isfinite(changed(**given)[0]).all()
