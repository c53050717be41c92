"""A strategy lands on the block that its number names, whatever wraps the transformer and its parts are called."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers_models import CASES, arguments, build
from models import Attention, DiT, latents, wan, wan_inputs
from slow import slow
from torch import nn

from freeloc_fx import Profile, plan, plans, transform
from freeloc_fx.compiler.capture.conventions import call_arguments, forward_signature, layer_table
from freeloc_fx.errors import FreelocError

LAYERS = {0: "vrpr+tsa", 2: "vrpr+tsa"}


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Beside(Outer):
    """With parts that have attentions of their own: a text encoder in front of it, and an adapter."""

    def __init__(self, inner: nn.Module) -> None:
        nn.Module.__init__(self)
        self.text = nn.ModuleDict({"layers": nn.ModuleList([Block() for _ in range(6)])})
        self.adapter = nn.Sequential(Block())
        self.inner = inner


class Shared(nn.Module):
    """Two parts hold the same transformer; the second is called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.trainer, self.sampler = Outer(inner), Outer(inner)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.sampler(*args, **kwargs)


class InSequential(nn.Module):
    """A Sequential of one whole transformer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(inner)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net[0](*args, **kwargs)


class Trunk(nn.ModuleList):
    """Blocks behind something else, so that each path begins with the same number."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__([nn.Identity(), nn.ModuleDict({"stack": nn.ModuleList(blocks)})])

    def __iter__(self) -> Any:
        return iter(self[1]["stack"])  # type: ignore[index]


class Block(nn.Module):
    """Its attentions have names of their own."""

    def __init__(self, first: str = "self_attention", second: str = "cross_attention") -> None:
        super().__init__()
        self.names = first, second
        self.add_module(first, Attention(2, 16, ""))
        self.add_module(second, Attention(2, 16, "cross"))

    def forward(self, given: tuple[torch.Tensor, Any, torch.Tensor]) -> tuple[torch.Tensor, Any, torch.Tensor]:
        x, tables, text = given
        first, second = (self.get_submodule(name) for name in self.names)
        x = x + first(x, tables, None)
        return x + second(x, None, text), tables, text


class Own(nn.Module):
    """Four blocks, held by `holder` inside a net of the model."""

    def __init__(self, holder: Callable[[list[nn.Module]], nn.Module], *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dit = DiT(layers=1)
        del self.dit.blocks
        self.config = self.dit.config
        self.net = nn.Module()
        self.net.stack = holder([Block(*names) for _ in range(4)])
        self.eval().requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        given = self.dit.proj_in(hidden_states.flatten(2).transpose(1, 2)), self.dit.tables(shape), text  # type: ignore[arg-type]
        for block in self.net.stack if isinstance(self.net.stack, nn.ModuleList) else [self.net.stack]:  # type: ignore[union-attr]
            given = block(given)
        result: torch.Tensor = self.dit.proj_out(given[0]).transpose(1, 2).unflatten(2, shape)
        return result


def call(model: nn.Module, **given: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)[0]
    return result


def strategies(model: Any) -> list[str]:
    """Strategy of each layer's self-attention on the clip, in the order of layers."""
    (made,) = plans(model)
    return [site.strategy.name for site in sorted(made.sites, key=lambda s: s.layer)]


def test_a_block_that_runs_twice_has_one_number() -> None:
    def twice() -> nn.Module:
        model = wan(num_layers=3)
        model.blocks[2] = model.blocks[0]
        return model

    alike = wan(num_layers=3)
    alike.blocks[2].load_state_dict(alike.blocks[0].state_dict())
    for frames in (3, 7):
        given = wan_inputs(frames)
        found = call(transform(twice(), Profile(3, {0: "vrpr", 1: "tsa"}), backend="eager"), **given)
        expected = call(transform(alike, Profile(3, {0: "vrpr", 1: "tsa", 2: "vrpr"}), backend="eager"), **given)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(FreelocError, match="expected a layer of 0 to 1"):
        transform(twice(), Profile(3, {2: "vrpr"}), backend="eager")


QUICK = ("wrapped", "peft", "beside other attentions")
WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "wrapped": Outer,
    "wrapped twice": lambda model: Outer(Outer(model)),
    "beside other attentions": Beside,
    "held twice": Shared,
    "in a Sequential": InSequential,
    "peft": lambda model: peft.get_peft_model(model, peft.LoraConfig(target_modules=["to_q"], r=2)),
}


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in WRAPPED])
def test_a_wrapped_transformer_has_the_layers_of_the_transformer(name: str) -> None:
    given = wan_inputs(7)
    expected = call(transform(wan(num_layers=4), Profile(3, LAYERS), backend="eager"), **given)
    outer = WRAPPED[name](wan(num_layers=4))
    assert len(layer_table(outer)) == 4
    made = transform(outer, Profile(3, LAYERS, layer_count=4), backend="eager")
    torch.testing.assert_close(call(made, **given), expected, atol=1e-5, rtol=1e-5)
    assert strategies(made) == ["vrpr+tsa", "direct", "vrpr+tsa", "direct"]
    assert not torch.allclose(expected, call(wan(num_layers=4), **given), atol=1e-3)
    with pytest.raises(FreelocError, match="layer"):
        call(transform(outer, Profile(3, {4: "vrpr"}), backend="eager"), **given)


@pytest.mark.parametrize("name", ["wrapped", "peft"])
def test_a_plan_of_a_wrapped_transformer_needs_no_more_than_sizes(name: str) -> None:
    """A forward of `*args` is called with what the transformer's own takes."""
    made = plan(WRAPPED[name](wan(num_layers=4)), Profile(3, LAYERS), frames=7, height=4, width=4)
    expected = plan(wan(num_layers=4), Profile(3, LAYERS), frames=7, height=4, width=4)
    assert [site.strategy for site in made.sites] == [site.strategy for site in expected.sites]
    assert [site.grid for site in made.sites] == [site.grid for site in expected.sites]


def test_a_wrapper_with_arguments_of_its_own_keeps_them() -> None:
    class Scaled(Outer):
        def forward(self, scale: float, *args: Any, **kwargs: Any) -> Any:
            return scale * self.inner(*args, **kwargs)[0]

    class Named(Outer):
        def forward(self, **kwargs: Any) -> Any:
            return self.inner(**kwargs)

    assert list(forward_signature(Scaled(wan())).parameters) == ["scale", "args", "kwargs"]
    for wrap in (Outer, Named):
        assert "hidden_states" in forward_signature(wrap(wan())).parameters
    given = wan_inputs(7)
    found = call_arguments(Outer(wan()), (given["hidden_states"],), {"timestep": given["timestep"], "tag": 1})
    assert found == {"hidden_states": given["hidden_states"], "timestep": given["timestep"], "tag": 1}


LACKING = pytest.mark.skipif("AnyFlow" not in CASES, reason="this diffusers has no AnyFlow")


@pytest.mark.parametrize("name", ["CogVideoX 1.5", pytest.param("AnyFlow", marks=LACKING)])
def test_the_configuration_is_that_of_the_wrapped_transformer(name: str) -> None:
    """It says of how many latent frames a token is, or in which order the axes are."""
    given, profile = arguments(name, build(name), 10), Profile(3, "vrpr+tsa")
    expected = call(transform(build(name), profile, backend="eager"), **given)
    assert torch.equal(call(transform(Outer(build(name)), profile, backend="eager"), **given), expected)
    assert not torch.equal(call(build(name), **given), expected)


@pytest.mark.parametrize("wrap", [Outer, Shared])
def test_a_wrapped_transformer_whose_blocks_are_hooked(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Captured block by block, so that no block sees the others."""
    given = wan_inputs(7)
    expected = call(transform(wan(num_layers=4), Profile(3, LAYERS), backend="eager"), **given)
    inner = wan(num_layers=4)
    for block in inner.blocks:
        add_hook_to_module(block, ModelHook())
    found = call(transform(wrap(inner), Profile(3, LAYERS), backend="eager"), **given)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [slow((), id="usual"), pytest.param(("sa", "ca"), id="unusual")])
@pytest.mark.parametrize(
    "holder",
    [
        nn.ModuleList,
        lambda blocks: nn.Sequential(*blocks),
        lambda blocks: nn.Sequential(OrderedDict((f"b{i}", block) for i, block in enumerate(blocks))),
        Trunk,
    ],
    ids=["list", "sequential", "sequential with names", "trunk"],
)
def test_blocks_inside_a_net_with_names_of_their_own(
    holder: Callable[[list[nn.Module]], nn.Module], names: tuple[str, ...]
) -> None:
    """A block's cross-attention is no layer of its own."""
    given = {"hidden_states": latents(7), "text": torch.randn(1, 5, 32)}
    plain = call(Own(holder, *names), **given)
    made = transform(Own(holder, *names), Profile(3, LAYERS), backend="eager")
    found = call(made, **given)
    assert strategies(made) == ["vrpr+tsa", "direct", "vrpr+tsa", "direct"]
    assert not torch.allclose(found, plain, atol=1e-3)
    drawn = plan(Own(holder, *names), Profile(3, LAYERS), frames=7, height=4, width=4, inputs={"text": given["text"]})
    assert [site.layer for site in drawn.sites] == [0, 1, 2, 3]
