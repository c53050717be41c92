"""What ranks that share a model's tokens exchange and hold, counted from a plan and a configuration alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from freeloc_fx.method.shards import Layout, Shards, exchanged_elements
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import NONE
from freeloc_fx.planning.plan import Plan

__all__ = ["RankMemory", "exchanged_bytes", "halo_bytes", "rank_memory"]


def exchanged_bytes(tokens: int, heads: int, head_dim: int, ranks: int, itemsize: int = 2) -> int:
    """Bytes that the busiest rank sends to the others for one attention under Ulysses, there and back.

    Args:
        tokens: of the sequence, all shared out.
        heads: of the attention.
        head_dim: channels of a head.
        ranks: that share.
        itemsize: bytes of a number.
    """
    layouts = (Layout(Shards(ranks, rank), ((tokens, True),)) for rank in range(ranks))
    return itemsize * max(sum(exchanged_elements(layout, heads, head_dim)) for layout in layouts)


def halo_bytes(spec: AttentionSpec, heads: int, ranks: int, itemsize: int = 2) -> int:
    """Bytes of keys and values that the busiest rank would fetch for one attention, were frames shared out instead.

    A rank holds neighbouring frames and needs every frame that one of them sees; tokens within a frame are not told
    apart.

    Args:
        spec: of the attention.
        heads: of the attention.
        ranks: that share.
        itemsize: bytes of a number.
    """
    grid, most = spec.grid, 0
    seen = spec.strategy.visibility.levels(grid.frames) != NONE
    for rank in range(ranks):
        own = Shards(ranks, rank).part(grid.frames)
        needed = seen[own].any(0)
        needed[own] = False
        most = max(most, int(needed.sum()))
    return 2 * most * grid.tokens * heads * spec.rope.head_dim * itemsize


@dataclass(frozen=True)
class RankMemory:
    """Bytes that one rank holds in a denoising step.

    Args:
        weights: all parameters, or its share of them and one block whole, or two blocks.
        attention: the block's input, its normed copy, q, k, v and the result, and one tensor that is being exchanged.
        feed_forward: the block's input, its normed copy, the inner activation twice (before and after its function).
    """

    weights: int
    attention: int
    feed_forward: int

    @property
    def peak(self) -> int:
        """The weights and the larger half of a block."""
        return self.weights + max(self.attention, self.feed_forward)


def _inner(model: nn.Module, blocks: Collection[str], width: int) -> int:
    """Channels between the two layers of the blocks' feed-forwards: what one makes of the tokens and another takes."""
    linears = [
        module for path in blocks for module in model.get_submodule(path).modules() if isinstance(module, nn.Linear)
    ]
    taken = {one.in_features for one in linears if one.out_features == width}
    return max((one.out_features for one in linears if one.out_features in taken), default=4 * width)


def rank_memory(
    plan: Plan,
    model: nn.Module,
    blocks: Collection[str],
    ranks: int,
    *,
    share_tokens: bool = True,
    share_weights: bool = False,
    offload: bool = False,
    feed_forward_chunks: int = 1,
    itemsize: int = 2,
) -> RankMemory:
    """Count what a rank holds, per sample, from sizes alone.

    Args:
        plan: of the model at the length in question.
        model: whose parameters count; they need not hold numbers.
        blocks: module paths of its transformer blocks.
        ranks: that share.
        share_tokens: whether each holds its share of the tokens.
        share_weights: whether each holds its share of the weights.
        offload: whether the weights lie on the host but for the block that runs and the next one, which is on its way
            (diffusers' group offload, block by block, with a stream).
        feed_forward_chunks: in how many parts the tokens go through a block's feed-forward.
        itemsize: bytes of a number.
    """
    site = plan.sites[0]
    width = site.heads * site.head_dim
    tokens = max(Shards(ranks, 0).sizes(plan.grid.sequence)) if share_tokens else plan.grid.sequence
    inner = _inner(model, blocks, width)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    of_block = parameters // max(len(blocks), 1)
    weights = 2 * of_block if offload else parameters // ranks + of_block if share_weights else parameters
    at_once = -(-tokens // feed_forward_chunks)
    exchange = 2 if share_tokens and ranks > 1 else 0
    return RankMemory(
        weights * itemsize,
        (6 + exchange) * tokens * width * itemsize,
        (2 * tokens * width + 2 * at_once * inner) * itemsize,
    )
