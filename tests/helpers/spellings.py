"""Small video transformers of random spelling: one computation, written in the many ways in which people write it."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

__all__ = ["Spelled", "Spelling", "inputs", "spelled", "spellings"]

CHOICES: dict[str, tuple[Any, ...]] = {
    "me": ("self", "this", "model"),
    "states": ("hidden_states", "x", "latents"),
    "container": ("list", "inner", "alias before", "alias after", "dict", "two lists", "attributes", "python list"),
    "order": ("forward", "reversed", "list twice", "each twice", "last left out", "one shared"),
    "keywords": (False, True),
    "qkv": ("separate", "fused", "unbound", "in heads"),
    "norm": (False, True),
    "rope": ("half", "interleaved", "complex", "in place"),
    "tables": ("model", "late", "buffer", "argument"),
    "number": ("float32", "bfloat16", "float32 norms", "autocast"),
    "batch": (1, 2, 3, "expanded"),
    "text": ("none", "first", "last"),
    "wrapped": ("no", "closure", "partial", "block"),
    "tied": (False, True),
    "adapter": (False, True),
    "patches": (False, True),
}


@dataclass(frozen=True)
class Spelling:
    """How a model is written; each field one of `CHOICES`."""

    me: str
    states: str
    container: str
    order: str
    keywords: bool
    qkv: str
    norm: bool
    rope: str
    tables: str
    number: str
    batch: Any
    text: str
    wrapped: str
    tied: bool
    adapter: bool
    patches: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which the model is called."""
        return torch.autocast("cpu", torch.bfloat16) if self.number == "autocast" else nullcontext()


def spellings() -> st.SearchStrategy[Spelling]:
    """Any spelling."""
    return st.builds(Spelling, **{name: st.sampled_from(values) for name, values in CHOICES.items()})


def _function(name: str, source: str) -> Callable[..., Any]:
    """A function whose source can be found, as that of a function in a file."""
    file = f"<spelled {hash(source)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space: dict[str, Any] = {}
    exec(compile(source, file, "exec"), space)
    made: Callable[..., Any] = space[name]
    return made


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, how: str) -> torch.Tensor:
    """x (batch, heads, tokens, dim) turned by tables (tokens, dim / 2)."""
    if how == "half":
        a, b = x.chunk(2, -1)
        return (x * torch.cat([cos, cos], -1) + torch.cat([-b, a], -1) * torch.cat([sin, sin], -1)).to(x.dtype)
    if how == "interleaved":
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
    if how == "complex":
        turn = torch.complex(cos, sin)
        return (
            torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turn).flatten(-2).to(x.dtype)
        )
    out = torch.empty_like(x)
    a, b = x[..., 0::2], x[..., 1::2]
    out[..., 0::2] = a * cos - b * sin
    out[..., 1::2] = a * sin + b * cos
    return out


class _Scaled(nn.Module):
    """What an adapter puts around a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x) + self.up(self.down(x))
        return out


class SelfAttention(nn.Module):
    def __init__(self, how: Spelling, heads: int, dim: int) -> None:
        super().__init__()
        self.how, self.heads, width = how, heads, heads * dim
        if how.qkv in ("separate", "in heads"):
            self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=1e-6) if how.norm else nn.Identity() for _ in range(2))
        self.out = nn.Linear(width, width)

    def projections(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """q, k and v, each (batch, heads, tokens, dim)."""
        if self.how.qkv == "unbound":
            return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        fused = self.how.qkv == "fused"
        parts = self.qkv(x).chunk(3, -1) if fused else (self.to_q(x), self.to_k(x), self.to_v(x))
        batch, tokens, _ = x.shape
        if self.how.qkv == "in heads":
            return [part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in parts]
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def forward(self, x: torch.Tensor, tables: Any) -> torch.Tensor:
        q, k, v = self.projections(x)
        q, k = self.norm_q(q), self.norm_k(k)
        cos, sin = tables() if callable(tables) else tables
        text = x.shape[1] - cos.shape[0]
        if text == 0:
            q, k = (_turned(each, cos, sin, self.how.rope) for each in (q, k))
        elif self.how.text == "first":
            q, k = (
                torch.cat([each[:, :, :text], _turned(each[:, :, text:], cos, sin, self.how.rope)], 2)
                for each in (q, k)
            )
        else:
            q, k = (
                torch.cat([_turned(each[:, :, :-text], cos, sin, self.how.rope), each[:, :, -text:]], 2)
                for each in (q, k)
            )
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        result: torch.Tensor = self.out(out.transpose(1, 2).flatten(2))
        return result


class Core(nn.Module):
    """Holds the blocks of a model, for models that keep them elsewhere."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class Spelled(nn.Module):
    """A video transformer: latents (batch, 4, frames, height, width) to the same, three blocks.

    Args:
        how: it is written.
        split: channel pairs turned by frame, row and column.
        heads: of the attention.
        seed: of the weights.
    """

    def __init__(self, how: Spelling, split: tuple[int, int, int] = (3, 1, 2), heads: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.how, self.split = how, split
        self.config = {"in_channels": 4} | ({"patch_size": (1, 1, 1)} if how.patches else {})
        dim = 2 * sum(split)
        width = heads * dim
        self.proj_in, self.proj_text, self.proj_out = nn.Linear(4, width), nn.Linear(4, width), nn.Linear(width, 4)
        blocks = [_block(how)(how, heads, dim) for _ in range(3)]
        if how.order == "one shared":
            blocks[2] = blocks[1]
        if how.tied:
            blocks[2].attn.out.weight = blocks[0].attn.out.weight
        if how.adapter:
            blocks[1].attn.out = _Scaled(blocks[1].attn.out)
        if how.tables == "buffer":
            self.register_buffer("rows", torch.arange(64, dtype=torch.float64), persistent=False)
        self._keep(blocks)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1.5 / max(1, parameter.shape[-1]) ** 0.5)
        if how.number in ("bfloat16", "float32 norms"):
            self.to(torch.bfloat16)
            if how.tables == "buffer":
                self.rows = torch.arange(64, dtype=torch.float64)
        if how.number == "float32 norms":
            for block in blocks:
                block.norm.float()
        self.eval().requires_grad_(False)

    def _keep(self, blocks: Sequence[nn.Module]) -> None:
        kind = self.how.container
        if kind == "list":
            self.blocks = nn.ModuleList(blocks)
        elif kind == "inner":
            self.core = Core(blocks)
        elif kind == "alias before":
            self.blocks = nn.ModuleList(blocks)
            self.core = Core(blocks)
        elif kind == "alias after":
            self.core = Core(blocks)
            self.blocks = self.core.blocks
        elif kind == "dict":
            self.parts = nn.ModuleDict({f"part_{i}": block for i, block in enumerate(blocks)})
        elif kind == "two lists":
            self.double_blocks, self.single_blocks = nn.ModuleList(blocks[:1]), nn.ModuleList(blocks[1:])
        else:
            for number, block in enumerate(blocks):
                setattr(self, f"block_{number}", block)
            if kind == "python list":
                self.kept = list(blocks)

    def ordered(self) -> Iterator[nn.Module]:
        """The blocks in the order in which they run."""
        kind = self.how.container
        if kind in ("inner", "alias after"):
            found = list(self.core.blocks)
        elif kind == "dict":
            found = list(self.parts.values())
        elif kind == "two lists":
            found = [*self.double_blocks, *self.single_blocks]
        elif kind == "attributes":
            found = [self.block_0, self.block_1, self.block_2]
        else:
            found = list(self.kept if kind == "python list" else self.blocks)
        order = self.how.order
        if order == "reversed":
            found = found[::-1]
        elif order == "list twice":
            found = found * 2
        elif order == "each twice":
            found = [block for block in found for _ in range(2)]
        elif order == "last left out":
            found = found[:-1]
        yield from found

    def tables(self, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of every token's angles, (tokens, pairs)."""
        angles = []
        for axis, (size, pairs) in enumerate(zip(shape, self.split, strict=True)):
            place = [1, 1, 1, -1]
            place[axis] = size
            rows = self.rows[:size] if self.how.tables == "buffer" else torch.arange(size, dtype=torch.float64)
            rates = 50.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
            angles.append((rows[:, None] * rates).reshape(place).expand(*shape, -1))
        angle = torch.cat(angles, -1).flatten(0, 2)
        return angle.cos().float(), angle.sin().float()

    def run(self, latents: torch.Tensor, context: torch.Tensor | None, given: Any) -> torch.Tensor:
        shape = [int(n) for n in latents.shape[2:]]
        x = self.proj_in(latents.flatten(2).transpose(1, 2))
        text = 0
        if self.how.text != "none" and context is not None:
            words = self.proj_text(context)
            text = words.shape[1]
            x = torch.cat([words, x] if self.how.text == "first" else [x, words], 1)
        tables: Any = self.tables(shape) if given is None else given
        if self.how.tables == "late":
            tables = functools.partial(self.tables, shape)
        for block in self.ordered():
            x = block(tables=tables, x=x) if self.how.keywords else block(x, tables)
        if text:
            x = x[:, text:] if self.how.text == "first" else x[:, :-text]
        result: torch.Tensor = self.proj_out(x).transpose(1, 2).unflatten(2, shape)
        return result


@functools.cache
def _block(how: Spelling) -> type[nn.Module]:
    """The class of a model's blocks, whose forward calls itself as the spelling says."""

    class Block(nn.Module):
        def __init__(self, how: Spelling, heads: int, dim: int) -> None:
            super().__init__()
            self.norm, self.attn = nn.LayerNorm(heads * dim), SelfAttention(how, heads, dim)
            if how.wrapped == "block":
                old = self.forward
                self.forward = lambda *args, **kwargs: old(*args, **kwargs)

        def work(self, x: torch.Tensor, tables: Any) -> torch.Tensor:
            normed = self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)
            result: torch.Tensor = x + self.attn(normed, tables)
            return result

        forward = _function("forward", f"def forward({how.me}, x, tables):\n    return {how.me}.work(x, tables)\n")

    return Block


def spelled(how: Spelling, seed: int = 0) -> Spelled:
    """A model written like this."""
    source = (
        f"def forward({how.me}, {how.states}, context=None, image_rotary_emb=None):\n"
        f"    return {how.me}.run({how.states}, context, image_rotary_emb)\n"
    )
    kind = type("Model", (Spelled,), {"forward": _function("forward", source)})
    model: Any = kind(how, seed=seed)
    old = model.forward
    if how.wrapped == "closure":
        model.forward = lambda *args, **kwargs: old(*args, **kwargs)
    elif how.wrapped == "partial":
        model.forward = functools.partial(old)
    result: Spelled = model
    return result


def inputs(model: Spelled, frames: int, height: int, width: int) -> dict[str, Any]:
    """Arguments of its forward."""
    how, random = model.how, torch.Generator().manual_seed(frames)
    number = torch.bfloat16 if how.number in ("bfloat16", "float32 norms") else torch.float32
    batch = 2 if how.batch == "expanded" else how.batch
    latents = torch.randn(1 if how.batch == "expanded" else batch, 4, frames, height, width, generator=random).to(
        number
    )
    context = torch.randn(batch, 5, 4, generator=random).to(number)
    given: dict[str, Any] = {how.states: latents.expand(batch, -1, -1, -1, -1), "context": context}
    if how.tables == "argument":
        given["image_rotary_emb"] = model.tables((frames, height, width))
    return given
