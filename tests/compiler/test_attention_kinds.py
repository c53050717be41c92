"""Attention of other forms than q, k and v of one shape: grouped heads, keys beside the queries' own, learned keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from literal import attention, literal
from slow import slow
from spelled import spelled
from torch import nn

from freeloc_fx import Profile, plans, transform
from freeloc_fx.errors import CaptureError

TRAINED = 4
PROFILE = Profile(trained_frames=TRAINED, layers="vrpr+tsa")
HEADS, DIM, SIZE, TEXT = 4, 12, (2, 3), 5
WIDTH = HEADS * DIM
native = F.scaled_dot_product_attention


def turns(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cos and sin (tokens, DIM / 2): two pairs an axis."""
    rates = 1e4 ** (-torch.arange(2) / 2)
    sizes = (frames, *SIZE)
    axes = [
        (torch.arange(n).view(*(-1 if i == j else 1 for j in range(3)), 1) * rates).expand(*sizes, 2)
        for i, n in enumerate(sizes)
    ]
    angles = torch.cat(axes, -1).reshape(-1, DIM // 2)
    return angles.cos(), angles.sin()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (batch, tokens, heads, DIM)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Attention(nn.Module):
    """q, k and v (batch, tokens, heads, DIM), with fewer heads of keys, and what `kind` does with them."""

    def __init__(self, kind: str, groups: int) -> None:
        super().__init__()
        self.kind, self.groups, self.how = kind, groups, ""
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, groups * DIM), nn.Linear(WIDTH, groups * DIM)
        self.text_k, self.text_v = nn.Linear(WIDTH, groups * DIM), nn.Linear(WIDTH, groups * DIM)
        self.sink_k, self.sink_v = (nn.Parameter(torch.randn(1, 2, groups, DIM)) for _ in range(2))

    def forward(self, x: torch.Tensor, text: torch.Tensor, tables: Any, mask: Any) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (HEADS, DIM))
        k, v, more_k, more_v = (
            layer(y).unflatten(-1, (self.groups, DIM))
            for layer, y in ((self.k, x), (self.v, x), (self.text_k, text), (self.text_v, text))
        )
        q, k = turn(q, *tables), turn(k, *tables)
        out: torch.Tensor = self.o(KINDS[self.kind](self, q, k, v, more_k, more_v, mask).flatten(2))
        return out


def before(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in tensors)


def grouped(own: Attention, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(*before(q, k, v), enable_gqa=True).transpose(1, 2)


def repeated(own: Attention, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    k, v = (x.repeat_interleave(HEADS // own.groups, dim=2) for x in (k, v))
    return F.scaled_dot_product_attention(*before(q, k, v)).transpose(1, 2)


def text_keys(own: Attention, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    k, v = torch.cat([more_k, k], 1), torch.cat([more_v, v], 1)
    return F.scaled_dot_product_attention(*before(q, k, v), enable_gqa=True).transpose(1, 2)


def keys_after(own: Attention, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    q, k, v, more_k, more_v = before(q, k, v, more_k, more_v)
    k, v = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.4).transpose(1, 2)


def sinks(own: Attention, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    k = torch.cat([own.sink_k.expand(len(k), -1, -1, -1), k], 1)
    v = torch.cat([own.sink_v.expand(len(v), -1, -1, -1), v], 1)
    return F.scaled_dot_product_attention(*before(q, k, v), enable_gqa=True).transpose(1, 2)


def sinks_and_text(own: Attention, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    k = torch.cat([own.sink_k.expand(len(k), -1, -1, -1), more_k, k], 1)
    v = torch.cat([own.sink_v.expand(len(v), -1, -1, -1), more_v, v], 1)
    return F.scaled_dot_product_attention(*before(q, k, v), enable_gqa=True).transpose(1, 2)


def line(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Text that is turned: each token has the same place on all axes, far from the clip's."""
    rates = 1e4 ** (-torch.arange(2) / 2)
    angles = (torch.arange(tokens)[:, None] - 40) * torch.cat([rates, rates, rates])
    return angles.cos(), angles.sin()


def text_turned(own: Attention, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    return text_keys(own, q, k, v, turn(more_k, *line(TEXT)), more_v, mask)


def history(own: Attention, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    cos, sin = (x[-TEXT:] for x in turns(2))
    return text_keys(own, q, k, v, turn(more_k, cos, -sin), more_v, mask)


def cached(own: Attention, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    return text_keys(own, q, k, v, mask, more_v, None)


SPELLINGS = (grouped, repeated, text_keys, text_turned, keys_after, sinks, sinks_and_text, history, cached)
KINDS: dict[str, Callable[..., torch.Tensor]] = {one.__name__: one for one in SPELLINGS}


class Block(nn.Module):
    def __init__(self, kind: str, groups: int) -> None:
        super().__init__()
        self.attn, self.norm = Attention(kind, groups), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, text: torch.Tensor, tables: Any, mask: Any) -> torch.Tensor:
        out: torch.Tensor = x + self.attn(self.norm(x), text, tables, mask)
        return out


class Clips(nn.Module):
    def __init__(self, kind: str, groups: int = 2) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Block(kind, groups) for _ in range(2))

    def forward(self, latents: torch.Tensor, text: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x, tables = self.into(latents.flatten(2).transpose(1, 2)), turns(latents.shape[2])
        for block in self.blocks:
            x = block(x, text, tables, mask)
        result: torch.Tensor = self.out(x).transpose(1, 2).unflatten(2, latents.shape[2:])
        return result


def given(frames: int, batch: int = 1, masked: bool = False) -> dict[str, Any]:
    random = torch.Generator().manual_seed(frames)
    text = torch.randn(batch, TEXT, WIDTH, generator=random)
    result = {"latents": torch.randn(batch, 4, frames, *SIZE, generator=random), "text": text}
    if masked:
        mask = torch.ones(batch, 1, 1, frames * math.prod(SIZE) + TEXT, dtype=torch.bool)
        mask[..., -2:] = False
        result["mask"] = mask
    return result


def build(kind: str, groups: int = 2) -> Clips:
    torch.manual_seed(0)
    return Clips(kind, groups).eval().requires_grad_(False)


CASES = {
    "grouped": (2, 0, 0),
    "repeated": (1, 0, 0),
    "text_keys": (2, TEXT, 0),
    "text_turned": (2, TEXT, 0),
    "keys_after": (HEADS, 0, TEXT),
    "sinks": (1, 2, 0),
    "sinks_and_text": (HEADS, 2 + TEXT, 0),
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "lowering"),
    [(kind, "calls") for kind in CASES]
    + [(kind, "flex") if kind == "text_turned" else slow(kind, "flex") for kind in CASES],
)
def test_other_forms_of_attention(kind: str, lowering: str) -> None:
    groups, first, last = CASES[kind]
    batch = 2 if lowering == "calls" else 1
    model = build(kind, groups)
    changed = transform(model, PROFILE, backend="eager", attention=lowering)
    short, long = (given(n * TRAINED, batch, masked=kind == "keys_after") for n in (1, 2))
    assert torch.equal(changed(**short), model(**short))
    found = changed(**long)
    made = plans(changed)[-1]
    grid = made.grid
    assert made.rewritten == 2 and grid.frames == 2 * TRAINED
    assert (grid.text_first, grid.text_last) == (first, last)
    with attention(spelled(made, native)):
        expected = model(**long)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert (model(**long) - expected).norm() > 1e-3 * expected.norm(), "the strategy does not show in the output"


# What is left alone, by name


REFUSED = {
    "history": "keys beside the queries' own are turned as no line of text is",
    "cached": r"channel 0 is no combination|not rotated rigidly|is scaled, not rotated",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_keys_of_other_frames_are_refused(kind: str) -> None:
    call = given(2 * TRAINED)
    if kind == "cached":
        call["mask"] = torch.randn(1, TEXT, 2, DIM)
    with torch.no_grad(), pytest.raises(CaptureError, match=REFUSED[kind]):
        transform(build(kind), PROFILE, backend="eager")(**call)


# Masks that say the same of every head


def per_head(mask: torch.Tensor, heads: int, rows: int) -> dict[str, torch.Tensor]:
    batch, tokens = mask.shape
    added = (1.0 - mask.float()) * -1e4
    return {
        "expanded": mask[:, None, None].expand(batch, heads, rows, tokens),
        "repeated": mask[:, None, None].repeat(1, heads, 1, 1),
        "folded": mask.repeat_interleave(heads, 0).view(batch, heads, 1, tokens),
        "folded and added": added[:, None].repeat_interleave(heads, 0).view(batch, heads, -1, tokens),
        "paired": mask[:, None, :, None].logical_and(mask[:, None, None]).repeat(1, heads, 1, 1),
    }


def masked(own: Attention, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    q, k, v = (torch.cat([more, x], 1) for more, x in ((more_k, q), (more_k, k), (more_v, v)))
    wide = per_head(mask, HEADS, q.shape[1])[own.how]
    return F.scaled_dot_product_attention(*before(q, k, v), attn_mask=wide).transpose(1, 2)[:, TEXT:]


KINDS["masked"] = masked


@torch.no_grad()
@pytest.mark.parametrize("how", ["expanded", "repeated", "folded", "folded and added", "paired"])
def test_masks_of_keys_that_are_repeated_over_heads(how: str) -> None:
    model = build("masked", HEADS)
    for block in model.blocks:
        block.attn.how = how
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    call = given(2 * TRAINED, 2)
    call["mask"] = torch.ones(2, 2 * TRAINED * 6 + TEXT, dtype=torch.bool)
    call["mask"][0, 2:TEXT] = False
    found = changed(**call)
    made = plans(changed)[-1]
    assert made.rewritten == 2 and made.grid.text_first == TEXT
    for block in model.blocks:
        block.attn.how = "expanded"
    with attention(literal(made, native)):
        expected = model(**call)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
