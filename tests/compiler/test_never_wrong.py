"""Calls and models that once gave a wrong result without a word: right now, or an error that names what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers_models import CASES, arguments, build
from models import DiT, latents, wan, wan_inputs
from slow import slow
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from freeloc_fx import Profile, plan, transform
from freeloc_fx.compiler.capture import captures
from freeloc_fx.compiler.capture.trace_once import Marks
from freeloc_fx.errors import CaptureError, PlanError

PROFILE = Profile(trained_frames=3, layers="vrpr+tsa")


class TwoNames(nn.Module):
    """Its blocks are reachable by two names, the second of which comes first."""

    def __init__(self, order: Callable[[Any], Any] = list) -> None:
        super().__init__()
        self.dit = DiT(layers=3)
        self.blocks = self.dit.blocks
        self.config, self.order = self.dit.config, order
        with torch.no_grad():
            for index, block in enumerate(self.blocks):  # blocks that differ in more than their random weights
                block.attention.to_out.weight.mul_(1 + index)
        self.eval().requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dit = self.dit
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        x = dit.proj_in(hidden_states.flatten(2).transpose(1, 2))
        tables = dit.tables(shape)  # type: ignore[arg-type]
        for block in self.order(dit.blocks):
            x = block(x, tables, None)
        result: torch.Tensor = dit.proj_out(x).transpose(1, 2).unflatten(2, shape)
        return result


class OtherWord(TwoNames):
    """Its forward does not call itself self."""

    def forward(this, hidden_states: torch.Tensor) -> torch.Tensor:
        return TwoNames.forward(this, hidden_states)


class InDict(TwoNames):
    """Its blocks lie in a ModuleDict beside the list."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({f"b{i}": block for i, block in enumerate(self.blocks)})
        self.order = lambda blocks: list(self.by_name.values())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "two names": TwoNames,
    "another word for self": OtherWord,
    "a ModuleDict beside the list": InDict,
    "reverse order": lambda: TwoNames(lambda blocks: list(blocks)[::-1]),
    "each block twice": lambda: TwoNames(lambda blocks: [b for block in blocks for b in (block, block)]),
    "the list twice": lambda: TwoNames(lambda blocks: [*blocks, *blocks]),
}


def run(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(x)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_every_block_keeps_its_own_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    short, long = latents(3, 2, 3), latents(7, 2, 3)
    once = transform(model, PROFILE, backend="eager")
    assert torch.equal(run(once, short), run(model, short))
    found = run(once, long)
    monkeypatch.setattr(captures, "Marks", lambda blocks: Marks(()))
    each = run(transform(model, PROFILE, backend="eager", attention="reference"), long)
    assert torch.allclose(found, each, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, run(model, long), atol=1e-3)


class Aliased(nn.Module):
    """A model of diffusers whose blocks have a second name; torch stamps them out wrong (seen with 2.13.0)."""

    def __init__(self, name: str, alias_first: bool) -> None:
        super().__init__()
        model = build(name)
        lists = [path for path, child in model.named_children() if isinstance(child, nn.ModuleList)]
        self.config = model.config
        if not alias_first:
            self.dit = model
        for path in lists:
            setattr(self, path, getattr(model, path))
        if alias_first:
            self.dit = model

    def forward(self, **given: Any) -> Any:
        return self.dit(**given)


@pytest.mark.parametrize(
    ("name", "alias_first"), [("Cosmos", True), ("Kandinsky5", False), slow("Cosmos", False), slow("Kandinsky5", True)]
)
def test_blocks_with_two_names_are_not_stamped_out_with_anothers_weights(name: str, alias_first: bool) -> None:
    model = Aliased(name, alias_first).eval()
    changed = transform(model, Profile(trained_frames=6, layers="vrpr"), backend="eager")
    with torch.no_grad():
        for frames in (3, 6):
            given = arguments(name, model.dit, frames)
            assert torch.equal(changed(**given)[0], model(**given)[0])


def test_blocks_replaced_or_tied_after_the_transform() -> None:
    model, short = TwoNames(), latents(3, 2, 3)
    changed = transform(model, PROFILE, backend="eager")
    assert torch.equal(run(changed, short), run(model, short))
    with torch.no_grad():
        model.blocks[1].attention.to_q.weight.copy_(torch.randn(32, 32))  # in place
    assert torch.equal(run(changed, short), run(model, short))
    model.blocks[2].attention.to_v.weight = model.blocks[0].attention.to_v.weight  # tied
    assert torch.equal(run(changed, short), run(model, short))
    model.blocks[0] = DiT(layers=1).blocks[0]  # another block
    assert torch.equal(run(changed, short), run(model, short))


class Sharded(nn.Module):
    """Half of the tokens, as a process of two has them, with the position tables of that half."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.blocks, self.config = model, model.blocks, model.config

    def forward(self, hidden_states: torch.Tensor, timestep: Any, encoder_hidden_states: Any, return_dict: bool) -> Any:
        half = hidden_states[:, :, : hidden_states.shape[2] // 2] + 0 * hidden_states.mean()
        return self.model(half, timestep, encoder_hidden_states, return_dict=return_dict)


@pytest.mark.parametrize("frames", [8, 12, 20])
def test_a_share_of_the_tokens_is_not_a_shorter_clip(frames: int) -> None:
    changed = transform(Sharded(wan()), Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager")
    with torch.no_grad(), pytest.raises(CaptureError, match=f"RoPE implies {frames // 2} latent frames of 4 tokens"):
        changed(**wan_inputs(frames))


def test_an_image_with_channels_last_is_not_a_clip() -> None:
    made = plan(build("Kandinsky5"), Profile(trained_frames=5, layers="vrpr"), frames=1, height=28, width=6)
    assert (made.grid.frames, made.rewritten) == (1, 0)


def test_one_token_frame_of_several_latent_frames_is_an_image() -> None:
    case = CASES["CogVideoX 1.5"]
    made = plan(
        build("CogVideoX 1.5"), Profile(trained_frames=2, layers="vrpr"), frames=2, height=case.size[0], width=6
    )
    assert (made.grid.frames, made.rewritten) == (1, 0)


def coordinates(rates: tuple[float, ...], frames: int, height: int, width: int) -> torch.Tensor:
    """Seconds and pixels of every token, (samples, 3, tokens), one frame rate a sample."""
    index = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (frames, height, width)), indexing="ij")
    place = torch.stack([axis.flatten() for axis in index])
    return torch.stack([place * torch.tensor([8 / rate, 32.0, 32.0])[:, None] for rate in rates])


@pytest.mark.parametrize(("rates", "works"), [((24.0, 24.0), True), ((24.0, 30.0), False), ((24.0, 24.0, 25.0), False)])
def test_samples_of_unlike_frame_rates_are_refused(rates: tuple[float, ...], works: bool) -> None:
    model = build("LTX")
    given = dict(arguments("LTX", model, 12))
    given = {
        k: v.repeat_interleave(len(rates), 0)[: len(rates)] if isinstance(v, torch.Tensor) else v
        for k, v in given.items()
    }
    given["video_coords"] = coordinates(rates, given["num_frames"], given["height"], given["width"])
    changed = transform(model, Profile(trained_frames=5, layers="vrpr+tsa"), backend="eager")
    with torch.no_grad():
        if works:
            assert torch.isfinite(changed(**given)[0]).all()
        else:
            with pytest.raises(CaptureError, match="samples of the batch are turned differently"):
                changed(**given)


def test_a_switch_that_would_run_the_model_untransformed_is_named() -> None:
    changed = transform(wan(), Profile(trained_frames=5, layers="vrpr"), backend="eager")
    with torch.no_grad():
        expected = changed(**wan_inputs(9))[0]
        with (
            torch.compiler.set_stance("force_eager"),
            pytest.raises(CaptureError, match=r"set_stance\('force_eager'\)"),
        ):
            changed(**wan_inputs(9))
        with torch._dynamo.config.patch(disable=True), pytest.raises(CaptureError, match="TORCHDYNAMO_DISABLE"):
            changed(**wan_inputs(9))
        with torch.compiler.set_stance("eager_on_recompile"):
            assert torch.equal(changed(**wan_inputs(9))[0], expected), "it was captured before"
            with pytest.raises(CaptureError, match=r"set_stance\('eager_on_recompile'\) keeps"):
                changed(**wan_inputs(11))
        assert torch.equal(changed(**wan_inputs(9))[0], expected)


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "later call"])
def test_counting_and_tracing_around_a_transformed_model(warm: bool) -> None:
    """Dynamo captures nothing there, and would capture nothing more of any model's in this process."""
    changed = transform(wan(), Profile(trained_frames=5, layers="vrpr"), backend="eager")
    with torch.no_grad():
        if warm:
            changed(**wan_inputs(9))
        with FlopCounterMode(display=False), pytest.raises(CaptureError, match=r"FlopCounterMode, a TorchDispatchMode"):
            changed(**wan_inputs(9))
        inputs = wan_inputs(9)
        latents = inputs.pop("hidden_states")
        with pytest.raises(CaptureError, match=r"torch\.export keeps"):
            torch.export.export(changed, (), wan_inputs(9))
        with pytest.raises(CaptureError, match=r"torch\.jit\.trace keeps"):
            torch.jit.trace(lambda x: changed(x, **inputs)[0], latents)
        assert torch.isfinite(changed(**wan_inputs(9))[0]).all()


@pytest.mark.parametrize("by_block", [False, True], ids=["whole", "block by block"])
def test_a_call_that_nothing_captured_is_an_error(by_block: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a switch that nobody here knows: torch.compile hands the function back as it is."""
    model = wan()
    if by_block:
        add_hook_to_module(model.blocks[1], ModelHook())
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    changed = transform(model, Profile(trained_frames=5, layers="vrpr"), backend="eager")
    where = r"blocks\.0" if by_block else "WanTransformer3DModel"
    with torch.no_grad(), pytest.raises(CaptureError, match=f"{where}: something that is not known keeps"):
        changed(**wan_inputs(9))


def test_a_strategy_that_lands_on_no_site_is_an_error() -> None:
    """Kandinsky5 counts its text blocks first, whose attention is no video's."""
    model = build("Kandinsky5")
    given = arguments("Kandinsky5", model, 12)
    for layers in ({0: "vrpr"}, {0: "vrpr", 1: "tsa"}):
        changed = transform(model, Profile(trained_frames=5, layers=layers), backend="eager")
        with (
            torch.no_grad(),
            pytest.raises(PlanError, match=r"layers\.0: .* gives the layers \[0\] a strategy, but no"),
        ):
            changed(**given)
