"""Small models for the tests: a tiny Wan, and video transformers written by hand that do things in other ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from freeloc_fx.compiler import pipeline
from freeloc_fx.compiler.backend import Backend
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.compiler.capture.facts import facts_of
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.records import AttentionSite, sites
from freeloc_fx.planning.profile import Profile

__all__ = ["DiT", "analysed", "captured", "latents", "wan", "wan_inputs"]


def wan(*, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A WanTransformer3DModel with random weights, whose temporal attention has a visible effect on the output."""
    import diffusers

    cls: Any = diffusers.WanTransformer3DModel
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 256,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 64,
    }
    model = cls(**(config | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn1" in name and parameter.ndim == 2:
                nn.init.normal_(parameter, std=2 / math.sqrt(parameter.shape[1]))
            if "scale_shift_table" in name:
                parameter.normal_()
    result: Any = model.to(dtype).requires_grad_(False)
    return result


def latents(frames: int, height: int = 4, width: int = 4, batch: int = 1, channels: int = 4, seed: int = 1) -> Any:
    """Random latents (batch, channels, frames, height, width)."""
    return torch.randn(batch, channels, frames, height, width, generator=torch.Generator().manual_seed(seed))


def wan_inputs(frames: int, height: int = 4, width: int = 4, batch: int = 1, text: int = 5, **changes: Any) -> Any:
    """Keyword arguments of Wan's forward, other than the model's own."""
    dtype = changes.pop("dtype", torch.float32)
    random = torch.Generator().manual_seed(2)
    return {
        "hidden_states": latents(frames, height, width, batch).to(dtype),
        "timestep": torch.linspace(100, 900, batch).long(),
        "encoder_hidden_states": torch.randn(batch, text, 16, generator=random).to(dtype),
        "return_dict": False,
        **changes,
    }


class Attention(nn.Module):
    """Self-attention with its q and k turned by `rope`; `how` makes it unlike what can be rewritten."""

    def __init__(self, heads: int, dim: int, how: str) -> None:
        super().__init__()
        self.heads, self.dim, self.how = heads, dim, how
        grouped = 1 if how == "grouped" else heads
        self.grouped = grouped
        self.to_q = nn.Linear(heads * dim, heads * dim)
        self.to_k = nn.Linear(heads * dim, grouped * dim)
        self.to_v = nn.Linear(heads * dim, grouped * dim)
        self.to_out = nn.Linear(heads * dim, heads * dim)

    def forward(self, x: torch.Tensor, tables: Any, other: Any) -> torch.Tensor:
        source = x if self.how != "cross" else other
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.to_k(source).unflatten(-1, (self.grouped, -1)).transpose(1, 2)
        v = self.to_v(source).unflatten(-1, (self.grouped, -1)).transpose(1, 2)
        if tables is not None and self.how != "cross":
            if callable(tables):  # angles made where they are used, after the projections
                tables = tables(x)
            cos, sin = tables
            k_cos, k_sin = (cos.flip(0), sin.flip(0)) if self.how == "unlike" else (cos, sin)
            q, k = rotate_half(q, cos, sin), rotate_half(k, k_cos, k_sin)
        options: dict[str, Any] = {}
        if self.how == "causal":
            options["is_causal"] = True
        if self.how == "masked":
            options["attn_mask"] = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(2)
        if self.how == "grouped":
            options["enable_gqa"] = True
        out = F.scaled_dot_product_attention(q, k, v, **options)
        return self.to_out(out.transpose(1, 2).flatten(2))


def rotate_half(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (batch, heads, tokens, dim) with pairs (c, c + dim/2); cos and sin (tokens, dim/2)."""
    a, b = x.chunk(2, dim=-1)
    return x * torch.cat([cos, cos], -1) + torch.cat([-b, a], -1) * torch.cat([sin, sin], -1)


class Block(nn.Module):
    def __init__(self, heads: int, dim: int, how: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(heads * dim)
        self.attention = Attention(heads, dim, how)

    def forward(self, x: torch.Tensor, tables: Any, other: Any) -> torch.Tensor:
        result: torch.Tensor = x + self.attention(self.norm(x), tables, other)
        return result


class DiT(nn.Module):
    """A video transformer that shares no code with diffusers: rotate-half RoPE, an uneven split of pairs over the axes.

    Args:
        split: channel pairs turned by frame, row and column; the sum is half the head's channels. None: no RoPE at all.
        how: "plain", or what is odd about its attention: "cross", "causal", "masked", "grouped", "unlike" (q and k are
            rotated differently), "late" (angles are computed after the projections), "no attention".
    """

    def __init__(
        self,
        split: tuple[int, int, int] | None = (5, 2, 1),
        how: str = "plain",
        heads: int = 2,
        layers: int = 2,
        theta: float = 500.0,
    ) -> None:
        super().__init__()
        self.split, self.theta, self.how = split, theta, how
        self.config = {"in_channels": 4}
        dim = 2 * sum(split) if split else 16
        self.proj_in = nn.Linear(4, heads * dim)
        count = 0 if how == "no attention" else layers
        self.blocks = nn.ModuleList(Block(heads, dim, how) for _ in range(count))
        self.proj_out = nn.Linear(heads * dim, 4)
        self.eval().requires_grad_(False)

    def omega(self, axis: int) -> torch.Tensor:
        assert self.split is not None
        pairs = self.split[axis]
        return self.theta ** (-torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))

    def tables(self, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        angles = []
        for axis, size in enumerate(shape):
            place = [1, 1, 1, -1]
            place[axis] = size
            angle = torch.arange(size, dtype=torch.float64)[:, None] * self.omega(axis)
            angles.append(angle.reshape(place).expand(*shape, -1))
        angle = torch.cat(angles, -1).flatten(0, 2)
        return angle.cos().float(), angle.sin().float()

    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        x = self.proj_in(hidden_states.flatten(2).transpose(1, 2))
        tables: Any = None
        if self.split is not None:
            tables = (lambda _: self.tables(shape)) if self.how == "late" else self.tables(shape)  # type: ignore[arg-type]
        for block in self.blocks:
            x = block(x, tables, context)
        result: torch.Tensor = self.proj_out(x).transpose(1, 2).unflatten(2, shape)
        return result


def captured(model: nn.Module, arguments: Mapping[str, Any], profile: Profile | None = None) -> Any:
    """(graph, capture) of a model's forward, as a pass receives them."""
    profile = profile or Profile(trained_frames=2, layers="vrpr+tsa")
    backend = Backend(profile, layer_table(model), None)
    result: list[Any] = []

    def keep(gm: Any, inputs: Any) -> Any:
        graph = torch.fx.Graph()
        graph.output(graph.graph_copy(gm.graph, {}))
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        values = dict(zip(placeholders, inputs, strict=True))
        result.append((graph, Capture(inputs=values, layers=backend.layers, call=facts_of(model, arguments))))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=keep, fullgraph=True, dynamic=False)(**arguments)
    assert len(result) == 1
    return result[0]


def analysed(model: nn.Module, arguments: Mapping[str, Any]) -> list[AttentionSite]:
    """The sites of a model after all analysis passes."""
    graph, capture = captured(model, arguments)
    for run in pipeline.analysis_passes(nn.Module(), model, Profile(trained_frames=2)):
        run(graph, capture)
    return [site for _, site in sites(graph)]
