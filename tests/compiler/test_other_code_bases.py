"""DiTs written in the manner of code bases that people run beside diffusers: same weights, other code."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from literal import attention, literal
from torch import nn

from freeloc_fx import Profile, plans, transform

TRAINED = 4
PROFILE = Profile(trained_frames=TRAINED, layers="vrpr+tsa")
HEADS, DIM, SIZE = 2, 12, (2, 3)
WIDTH = HEADS * DIM


def frequencies(pairs: int, positions: int = 64) -> torch.Tensor:
    """Complex turns (positions, pairs) in float64."""
    rates = 1e4 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), rates)
    return torch.polar(torch.ones_like(angles), angles)


def table(frames: int, height: int, width: int) -> torch.Tensor:
    """Complex turns (tokens, DIM / 2): two pairs an axis."""
    turns = [frequencies(2)[:n] for n in (frames, height, width)]
    t, h, w = (x.view(*(-1 if i == j else 1 for j in range(3)), 2) for i, x in enumerate(turns))
    shape = (frames, height, width, 2)
    return torch.cat([x.expand(shape) for x in (t, h, w)], -1).reshape(-1, DIM // 2)


# Clips in a list, complex turns in a loop over them whose sizes are read from a tensor, warnings on the way


def turn_each(x: torch.Tensor, sizes: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    parts = turns.split(2, dim=1)
    done = []
    for i, (f, h, w) in enumerate(sizes.tolist()):
        tokens = f * h * w
        own = torch.view_as_complex(x[i, :tokens].to(torch.float64).reshape(tokens, HEADS, -1, 2))
        angles = torch.cat(
            [
                parts[0][:f].view(f, 1, 1, -1).expand(f, h, w, -1),
                parts[1][:h].view(1, h, 1, -1).expand(f, h, w, -1),
                parts[2][:w].view(1, 1, w, -1).expand(f, h, w, -1),
            ],
            dim=-1,
        ).reshape(tokens, 1, -1)
        done.append(torch.cat([torch.view_as_real(own * angles).flatten(2), x[i, tokens:]]))
    return torch.stack(done).float()


def padded_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    if lengths is not None:
        warnings.warn("lengths are not used", stacklevel=2)
    q, k, v = (x.transpose(1, 2).to(torch.float32) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.0).transpose(1, 2).contiguous()


class ListAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x: torch.Tensor, seq_lens: Any, grid_sizes: Any, freqs: torch.Tensor) -> torch.Tensor:
        b, s = x.shape[:2]
        q = self.norm_q(self.q(x)).view(b, s, HEADS, DIM)
        k = self.norm_k(self.k(x)).view(b, s, HEADS, DIM)
        v = self.v(x).view(b, s, HEADS, DIM)
        q, k = turn_each(q, grid_sizes, freqs), turn_each(k, grid_sizes, freqs)
        out: torch.Tensor = self.o(padded_attention(q, k, v, seq_lens).flatten(2))
        return out


class ListBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = ListAttention()

    def forward(self, x: torch.Tensor, **how: Any) -> torch.Tensor:
        out: torch.Tensor = x + self.self_attn(x, **how)
        return out


class OfLists(nn.Module):
    """Takes a list of clips (channels, frames, height, width) and gives one back."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, WIDTH, (1, 1, 1), (1, 1, 1))
        self.blocks = nn.ModuleList(ListBlock() for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)
        self.freqs = torch.cat([frequencies(2) for _ in range(3)], 1)  # no buffer: it must not be cast

    def forward(self, x: list[torch.Tensor], t: torch.Tensor, seq_len: int) -> list[torch.Tensor]:
        tokens = [self.patch_embedding(u.unsqueeze(0)) for u in x]
        grid_sizes = torch.stack([torch.tensor(u.shape[2:], dtype=torch.long) for u in tokens])
        tokens = [u.flatten(2).transpose(1, 2) for u in tokens]
        seq_lens = torch.tensor([u.size(1) for u in tokens], dtype=torch.long)
        assert seq_lens.max() <= seq_len
        y = torch.cat([torch.cat([u, u.new_zeros(1, seq_len - u.size(1), u.size(2))], dim=1) for u in tokens])
        for block in self.blocks:
            y = block(y, seq_lens=seq_lens, grid_sizes=grid_sizes, freqs=self.freqs)
        y = self.head(y)
        return [
            u[: math.prod(size)].view(*size, 4).permute(3, 0, 1, 2).float()
            for u, size in zip(y, grid_sizes.tolist(), strict=True)
        ]


def clips(frames: int, count: int = 1) -> dict[str, Any]:
    random = torch.Generator().manual_seed(frames)
    x = [torch.randn(4, frames, *SIZE, generator=random) for _ in range(count)]
    return {"x": x, "t": torch.full((count,), 500.0), "seq_len": frames * math.prod(SIZE)}


# One tensor in, one out


@torch.library.custom_op("manner::turn", mutates_args=())
def fused_turn(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn x (batch, tokens, heads, dim) by (tokens, dim): cos and sin side by side."""
    cos, sin = turns.float().chunk(2, -1)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


@fused_turn.register_fake
def _(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


# q and k in one call, as a pair of results or in place; a norm of both in place


@torch.library.custom_op("manner::turn_both", mutates_args=())
def fused_turns(q: torch.Tensor, k: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return spelled_turn(q, turns).to(q.dtype), spelled_turn(k, turns).to(k.dtype)


@fused_turns.register_fake
def _(q: torch.Tensor, k: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


@torch.library.custom_op("manner::turn_both_", mutates_args=("q", "k"))
def turn_in_place(turns: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> None:
    q.copy_(spelled_turn(q, turns))
    k.copy_(spelled_turn(k, turns))


@torch.library.custom_op("manner::norm_both_", mutates_args=("q", "k"))
def norm_in_place(q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor) -> None:
    q.copy_(F.rms_norm(q, q.shape[-1:], q_weight))
    k.copy_(F.rms_norm(k, k.shape[-1:], k_weight))


@torch.library.custom_op("manner::norm", mutates_args=())
def fused_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight)


@fused_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def halves(frames: int) -> torch.Tensor:
    turns = table(frames, *SIZE)
    return torch.cat([turns.real, turns.imag], -1).float()


def spelled_turn(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    cos, sin = (part[:, None] for part in turns.chunk(2, -1))
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Attention(nn.Module):
    """`manner`: "operator", a fused RoPE operator, behind a norm that is one; "both", one for q and k; "in place", one
    that writes them, behind a norm that does, on pieces of one projection; "lends", q and k take v's dtype by `to`;
    "joined", q, k and v share one tensor along the batch axis."""

    def __init__(self, manner: str) -> None:
        super().__init__()
        self.manner = manner
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm_q, self.norm_k = (nn.Parameter(torch.rand(DIM) + 0.5) for _ in range(2))

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, DIM)) for y in self.qkv(x).chunk(3, -1))
        if self.manner == "operator":
            q, k = (fused_turn(fused_norm(y, w), turns) for y, w in ((q, self.norm_q), (k, self.norm_k)))
        elif self.manner == "both":
            q, k = fused_turns(q, k, turns)
        elif self.manner == "in place":
            norm_in_place(q, k, self.norm_q, self.norm_k)
            turn_in_place(turns, q, k)
        elif self.manner == "lends":
            q, k = spelled_turn(q, turns).to(v), spelled_turn(k, turns).to(v)
        else:
            qkv = torch.cat([q, k, v], dim=0)
            turned = spelled_turn(qkv[: 2 * len(x)], turns)
            q, k, v = torch.cat([turned, qkv[2 * len(x) :]], dim=0).chunk(3, dim=0)
        out = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
        result: torch.Tensor = self.o(out.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    def __init__(self, manner: str) -> None:
        super().__init__()
        self.attn = Attention(manner)
        self.norm = nn.LayerNorm(WIDTH)
        self.time = nn.Linear(8, WIDTH)

    def forward(self, x: torch.Tensor, turns: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.attn(self.norm(x) * (1 + self.time(times)), turns)
        return out


class OfTokens(nn.Module):
    """Takes one tensor and a timestep for every token; no configuration."""

    def __init__(self, manner: str) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Block(manner) for _ in range(2))

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = self.into(latents.flatten(2).transpose(1, 2))
        times = torch.sin(timestep[..., None] * torch.arange(1, 9) / 8)
        turns = halves(latents.shape[2])
        for block in self.blocks:
            x = block(x, turns, times)
        result: torch.Tensor = self.out(x).transpose(1, 2).unflatten(2, latents.shape[2:])
        return result


def tokens(frames: int, count: int = 1) -> dict[str, Any]:
    random = torch.Generator().manual_seed(frames)
    x = torch.randn(count, 4, frames, *SIZE, generator=random)
    return {"latents": x, "timestep": torch.rand(count, frames * math.prod(SIZE), generator=random)}


MANNERS: dict[str, tuple[Any, Any]] = {
    "list of clips": (OfLists, clips),
    **{
        name: (lambda name=name: OfTokens(name), tokens) for name in ("operator", "both", "in place", "lends", "joined")
    },
}


def result(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found = model(**given)
    return torch.stack(found) if isinstance(found, list) else found


@pytest.mark.filterwarnings("ignore:lengths are not used")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("manner", MANNERS)
def test_it_works_as_written(manner: str, count: int) -> None:
    make, inputs = MANNERS[manner]
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    short, long = inputs(TRAINED, count), inputs(2 * TRAINED, count)
    assert torch.equal(result(changed, short), result(model, short))
    found = result(changed, long)
    plan = plans(changed)[-1]
    assert plan.rewritten == 2 and plan.grid.frames == 2 * TRAINED
    with attention(literal(plan, F.scaled_dot_product_attention)):
        expected = result(model, long)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert (result(model, long) - expected).norm() > 1e-3 * expected.norm(), "the strategy does not show in the output"
