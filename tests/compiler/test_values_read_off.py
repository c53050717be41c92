"""What a plan was read off is looked at in each call: learned rates, tables in buffers, blocks' own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import test_attention_kinds as kinds
import test_foreign_kernels as kernels
import torch
import torch.nn.functional as F
from models import DiT, latents, rotate_half, wan
from ranks import context_parallel, of_first, on_ranks
from test_attention_kinds import DIM
from torch import nn
from transformed import run as wan_run

from freeloc_fx import Profile, plans, restore, transform
from freeloc_fx.errors import CaptureError

PROFILE = Profile(trained_frames=3, layers="vrpr+tsa")
SIZE = (7, 2, 3)


class Learned(DiT):
    """Each block has rates of its own: learned, or in a buffer, or in an attribute that is no part of a state dict."""

    def __init__(self, held: str = "parameter") -> None:
        super().__init__((3, 2, 1))
        rates = torch.stack([DiT.omega(self, 0), 0.7 * DiT.omega(self, 0)]).float()
        if held == "parameter":
            self.rates = nn.Parameter(rates, requires_grad=False)
        elif held == "buffer":
            self.register_buffer("rates", rates)
        else:
            self.blocks[0].rates = rates
        self.held, self.layer, self.breaks = held, 0, False

    def omega(self, axis: int) -> torch.Tensor:
        own = self.blocks[0].rates if self.held == "attribute" else self.rates
        return super().omega(axis) if axis else own[self.layer]  # type: ignore[index]

    def forward(self, hidden_states: torch.Tensor, context: Any = None) -> torch.Tensor:
        if self.breaks:
            torch._dynamo.graph_break()
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        x = self.proj_in(hidden_states.flatten(2).transpose(1, 2))
        for layer, block in enumerate(self.blocks):
            self.layer = layer
            tables = tuple(one.to(x.dtype) for one in self.tables(shape))  # type: ignore[arg-type]
            x = block(x, tables, context)
        result: torch.Tensor = self.proj_out(x).transpose(1, 2).unflatten(2, shape)
        return result


def learned(held: str = "parameter") -> Learned:
    torch.manual_seed(4)
    return Learned(held)


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(latents(*SIZE))
    return result


def right(model: nn.Module) -> torch.Tensor:
    """What a model gives that is transformed as it stands now."""
    return run(transform(copy.deepcopy(model), PROFILE, backend="eager", attention="reference"))


def holder(model: Any) -> Any:
    return model.blocks[0] if model.held == "attribute" else model


@torch.no_grad()
def replace(model: Any, new: torch.Tensor) -> None:
    holder(model).rates = nn.Parameter(new, requires_grad=False) if model.held == "parameter" else new


def swap_data(model: Any, new: torch.Tensor) -> None:
    holder(model).rates.data = new


def write_data(model: Any, new: torch.Tensor) -> None:
    holder(model).rates.data.copy_(new)


@torch.no_grad()
def write(model: Any, new: torch.Tensor) -> None:
    holder(model).rates.copy_(new)


def load(model: Any, new: torch.Tensor) -> None:
    model.load_state_dict(model.state_dict() | {"rates": new})


WAYS: tuple[Callable[[Any, torch.Tensor], None], ...] = (write_data, write, swap_data, replace, load)


@pytest.fixture(scope="module")
def rates_and_outputs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two sets of rates, and what a model gives that is transformed with them in place."""
    first, model = learned().rates.clone(), learned()
    found = []
    for rates in (first, 0.8 * first):
        write(model, rates)
        found.append((rates, right(model)))
    assert (found[0][1] - found[1][1]).norm() > 1e-3 * found[0][1].norm(), "the rates show in the output"
    return found


@pytest.mark.parametrize("held", ["parameter", "buffer", "attribute"])
def test_rates_that_change_after_the_first_call(held: str, rates_and_outputs: Any) -> None:
    """However they are written; and each set finds again what was made for it."""
    model = learned(held)
    changed = transform(model, PROFILE, backend="eager", attention="reference")
    assert torch.equal(run(changed), rates_and_outputs[0][1])
    for number, way in enumerate(WAYS if held != "attribute" else WAYS[:-1], 1):
        rates, expected = rates_and_outputs[number % 2]
        way(model, rates.clone())
        for _ in range(2):
            assert torch.equal(run(changed), expected), way.__name__
    assert len(plans(changed)) == 2


def test_weights_that_were_rounded_on_the_way() -> None:
    """A cast puts other numbers into the same parameter, which counts no write."""
    model = learned()
    changed = transform(model, PROFILE, backend="eager", attention="reference")
    run(changed)
    model.bfloat16().float()
    assert torch.equal(run(changed), right(model)) and len(plans(changed)) == 2


def test_a_layer_that_gets_its_rates_later() -> None:
    """What could not be read off was left alone for those values only."""
    model = learned()
    rates = model.rates.clone()
    model.rates[1] = 0
    changed = transform(model, PROFILE, backend="eager", attention="reference")
    run(changed)
    write_data(model, rates)
    assert torch.equal(run(changed), right(model))
    assert [[site.layer for site in plan.sites] for plan in plans(changed)] == [[0], [0, 1]]


class Ordered(DiT):
    """Tokens stand in the order that a buffer says while they attend."""

    def __init__(self) -> None:
        super().__init__((3, 2, 1), layers=1)
        self.register_buffer("order", torch.arange(math.prod(SIZE)))

    def forward(self, hidden_states: torch.Tensor, context: Any = None) -> torch.Tensor:
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        x, tables = self.proj_in(hidden_states.flatten(2).transpose(1, 2)), self.tables(shape)  # type: ignore[arg-type]
        for block in self.blocks:
            own, y = block.attention, block.norm(x)
            q, k, v = (of(y).unflatten(-1, (own.heads, -1)).transpose(1, 2) for of in (own.to_q, own.to_k, own.to_v))
            q, k = rotate_half(q, *tables), rotate_half(k, *tables)
            out = F.scaled_dot_product_attention(*(one.index_select(2, self.order) for one in (q, k, v)))
            x = x + own.to_out(out[:, :, self.order.argsort()].transpose(1, 2).flatten(2))
        result: torch.Tensor = self.proj_out(x).transpose(1, 2).unflatten(2, shape)
        return result


def test_frames_that_stand_in_another_order_later() -> None:
    torch.manual_seed(4)
    model = Ordered()
    changed = transform(model, PROFILE, backend="eager", attention="reference")
    before = run(changed)
    model.order.copy_(model.order.view(SIZE[0], -1).flip(0).flatten())
    found = run(changed)
    assert (found - before).norm() > 1e-3 * before.norm(), "the order shows in the output"
    assert torch.equal(found, right(model))


@pytest.mark.parametrize("way", [swap_data, write_data])
def test_block_by_block(way: Callable[[Any, torch.Tensor], None]) -> None:
    model = learned()
    model.breaks = True
    changed = transform(model, PROFILE, backend="eager", attention="reference")
    first = run(changed)
    way(model, 0.6 * model.rates)
    assert (run(changed) - first).norm() > 1e-3 * first.norm()
    assert torch.equal(run(changed), right(restore(changed)))


def starts_held(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    batch, tokens = q.shape[:2]
    packed = (x.flatten(0, 1) for x in (q, k, v))
    out = torch.ops.manner_flash._flash_attn_varlen_forward(
        *packed, own.starts, own.starts, tokens, tokens, 0.0, DIM**-0.5, False
    )
    result: torch.Tensor = out[0].unflatten(0, (batch, tokens))
    return result


@torch.no_grad()
def test_packed_samples_that_begin_elsewhere_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they begin is read off a buffer."""
    monkeypatch.setitem(kinds.KINDS, "starts held", starts_held)
    model, given = kinds.build("starts held"), kinds.given(2 * kinds.TRAINED, batch=2)
    tokens = given["latents"][0, 0].numel()
    for block in model.blocks:
        block.attn.register_buffer("starts", torch.tensor([0, tokens, 2 * tokens], dtype=torch.int32))
    changed = transform(model, kinds.PROFILE, backend="eager", attention="calls")
    before = changed(**given)
    for block in model.blocks:
        block.attn.starts.data[1] += 3
    with pytest.raises(CaptureError, match="where its samples begin, are not known or not those of one"):
        changed(**given)
    for block in model.blocks:
        block.attn.starts[1] -= 3
    assert torch.equal(changed(**given), before)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_block_mask_that_leaves_blocks_out_later() -> None:
    model, given = kinds.build("flex_full"), kinds.given(2 * kinds.TRAINED)
    changed = transform(model, kinds.PROFILE, backend="eager", attention="calls")
    changed(**given)
    counts = kernels.MASKS["flex_full"][given["latents"][0, 0].numel()].kv_num_blocks
    counts -= 1
    try:
        with pytest.raises(CaptureError, match="its block mask leaves blocks out"):
            changed(**given)
    finally:
        counts += 1


def wan_of_ranks(rank: int) -> list[bool]:
    """Each rank writes its own copy of the tables, by way of .data; what comes out is that of one process."""
    torch.set_grad_enabled(False)
    rates = (100.0, 1000.0)

    def tables(model: Any, theta: float) -> Any:
        other = wan(num_layers=1, rope_max_seq_len=32).rope.__class__(12, (1, 2, 2), 32, theta=theta)
        model.rope.freqs_cos.data.copy_(other.freqs_cos)
        model.rope.freqs_sin.data.copy_(other.freqs_sin)
        return model

    options: dict[str, Any] = {"backend": "eager", "attention": "reference"}
    model = wan(num_layers=1, rope_max_seq_len=32)
    expected = of_first(
        rank,
        lambda: [
            wan_run(transform(tables(wan(num_layers=1, rope_max_seq_len=32), theta), PROFILE, **options), frames=6)
            for theta in rates
        ],
    )
    changed = transform(context_parallel(model, ulysses_degree=2), PROFILE, **options)
    found = [wan_run(tables(changed, theta), frames=6) for theta in (*rates, rates[0])]
    near = [torch.allclose(one, expected[n % 2], atol=1e-5) for n, one in enumerate(found)]
    return [*near, not torch.allclose(*expected, atol=1e-3), len(plans(changed)) == 2]


def test_tables_of_ranks_that_share_out_tokens() -> None:
    assert on_ranks(wan_of_ranks, 2) == [[True] * 5] * 2
