"""Start tiny-joint's video blocks from tiny-wan's: weights that fit are copied, modulations fitted over all times.

Exact are patch and time embedding, self-attention's projections, feed-forward of the dual blocks and their modulation.
Approximate: normalisation of queries and keys (a head at a time here, all heads at once in Wan) and the single blocks,
which run attention and feed-forward side by side with one modulation where Wan runs them in turn with two. Text comes
in by joint attention here and by cross-attention there, so everything about text starts afresh.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["copy_blocks"]


def _linear(target: nn.Module, source: nn.Module, rows: torch.Tensor | None = None) -> None:
    """Copy a linear layer, its outputs multiplied by `rows`."""
    factor = torch.ones(source.weight.shape[0]) if rows is None else rows
    target.weight.copy_(source.weight * factor[:, None])
    target.bias.copy_(source.bias * factor)


def _attention(target: nn.Module, source: nn.Module) -> None:
    """Queries, keys and values; channel weights of Wan's norm go into the projection, their mean stays in the norm."""
    for name in ("q", "k"):
        weight = getattr(source, f"norm_{name}").weight
        _linear(getattr(target, f"to_{name}"), getattr(source, f"to_{name}"), weight / weight.abs().mean())
        getattr(target, f"norm_{name}").weight.fill_(weight.abs().mean())
    _linear(target.to_v, source.to_v)


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """r, one a channel, that makes r * b closest to a over all times."""
    return (a * b).mean(0) / (b * b).mean(0).clamp(min=1e-8)


@torch.no_grad()
def copy_blocks(joint: Any, wan: Any, layers: list[int]) -> None:
    """Fill a HunyuanVideoTransformer3DModel of Wan's width from a WanTransformer3DModel.

    Args:
        joint, wan: float32; `joint` is changed. layers: Wan's layer for each dual block and then each single block.
    """
    times = torch.linspace(1, 1000, 1000)
    embedder = wan.condition_embedder
    for name in ("linear_1", "linear_2"):
        _linear(getattr(joint.time_text_embed.timestep_embedder, name), getattr(embedder.time_embedder, name))
    nn.init.zeros_(joint.time_text_embed.text_embedder.linear_2.weight)
    nn.init.zeros_(joint.time_text_embed.text_embedder.linear_2.bias)
    embedded = embedder.time_embedder(embedder.timesteps_proj(times))
    modulation = embedder.time_proj(F.silu(embedded)).unflatten(1, (6, -1))
    joint.x_embedder.proj.weight.copy_(wan.patch_embedding.weight)
    joint.x_embedder.proj.bias.copy_(wan.patch_embedding.bias)
    duals = len(joint.transformer_blocks)
    for block, layer in zip(joint.transformer_blocks, layers[:duals], strict=True):
        source = wan.blocks[layer]
        block.norm1.linear.weight.copy_(embedder.time_proj.weight)
        block.norm1.linear.bias.copy_(embedder.time_proj.bias + source.scale_shift_table.flatten())
        _attention(block.attn, source.attn1)
        _linear(block.attn.to_out[0], source.attn1.to_out[0])
        _linear(block.ff.net[0].proj, source.ffn.net[0].proj)
        _linear(block.ff.net[2], source.ffn.net[2])
    width = embedded.shape[1]
    for block, layer in zip(joint.single_transformer_blocks, layers[duals:], strict=True):
        source = wan.blocks[layer]
        shift, scale, gate, shift_2, scale_2, gate_2 = (modulation + source.scale_shift_table).unbind(1)
        block.norm.linear.weight.copy_(embedder.time_proj.weight[: 3 * width])
        block.norm.linear.bias.copy_((embedder.time_proj.bias + source.scale_shift_table.flatten())[: 3 * width])
        _attention(block.attn, source.attn1)
        first, second = source.ffn.net[0].proj, source.ffn.net[2]
        inward, outward = _ratio(1 + scale_2, 1 + scale), _ratio(gate_2, gate)
        block.proj_mlp.weight.copy_(first.weight * inward)
        block.proj_mlp.bias.copy_(first.bias + first.weight @ (shift_2 - inward * shift).mean(0))
        block.proj_out.weight[:, :width] = source.attn1.to_out[0].weight
        block.proj_out.weight[:, width:] = second.weight * outward[:, None]
        block.proj_out.bias.copy_(source.attn1.to_out[0].bias + outward * second.bias)
    shift, scale = (embedded[:, None] + wan.scale_shift_table).unbind(1)
    known = torch.cat([F.silu(embedded), torch.ones(len(times), 1)], 1)
    fit = torch.linalg.lstsq(known, torch.cat([scale, shift], 1)).solution
    joint.norm_out.linear.weight.copy_(fit[:-1].T)
    joint.norm_out.linear.bias.copy_(fit[-1])
    channels = joint.config.out_channels  # last in Wan's rows, first here

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1)

    joint.proj_out.weight.copy_(rows(wan.proj_out.weight))
    joint.proj_out.bias.copy_(rows(wan.proj_out.bias))
