"""Check the token grid that the RoPE implies against the model's input, and settle clips of one frame."""

from __future__ import annotations

import torch
import torch.fx as fx

from freeloc_fx.meta import TokenGrid, sites, write
from freeloc_fx.pipeline import PassContext

__all__ = ["infer_token_grid"]


def infer_token_grid(graph: fx.Graph, context: PassContext) -> int:
    """Every video site ends with a grid of its sequence's length; a five-dimensional input must agree with it.

    The frames of a grid come from RoPE alone. They must divide the input's frame axis (by the temporal patch size);
    for an image, whose rows would look like frames, the input says so.
    """
    shapes = [
        tuple(int(n) for n in value.shape)
        for value in context.inputs.values()
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter) and value.ndim == 5
    ]
    checked = 0
    for node, site in sites(graph):
        if site.kind != "video" or site.grid is None:
            continue
        grid = site.grid
        if grid.sequence != site.query_shape[2]:
            write(node, kind="other", reason=f"RoPE covers {grid.sequence} of {site.query_shape[2]} tokens")
            continue
        # One frame, rather than one channel: a frame of the input then holds at least one latent a token.
        if shapes and all(1 in s[1:3] and s[3] * s[4] % grid.sequence == 0 for s in shapes):
            write(node, grid=TokenGrid(1, 1, grid.sequence))
        elif shapes and not any(n % grid.frames == 0 for shape in shapes for n in shape[1:3]):
            write(
                node,
                kind="other",
                reason=f"RoPE implies {grid.frames} latent frames, the inputs {shapes} hold no such axis",
            )
            continue
        checked += 1
    return checked
