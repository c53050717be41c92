"""Softmax in parts: attention over some of the keys with its log-sum-exp, and the sum of such parts."""

from __future__ import annotations

import torch

__all__ = ["Total", "aligned", "attend", "merge", "nothing_seen"]

_KERNEL = (torch.float32, torch.float16, torch.bfloat16)
"""What CUDA's kernel takes, of heads whose rows begin at multiples of 16 bytes."""


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the keys given, with its log-sum-exp, by the quickest operator that the device has for it.

    Args:
        q: (batch, heads, rows, head_dim), floating point.
        k: (batch, heads, keys, head_dim).
        v: as k.
        mask: additive, broadcastable to (batch, heads, rows, keys), in q's dtype; None for none.
        scale: factor on q k.

    Returns:
        Output (batch, heads, rows, head_dim) in q's dtype, and log-sum-exp (batch, heads, rows), float32 at least.
        Of a row that sees nothing neither says anything: see `nothing_seen`.
    """
    aten = torch.ops.aten
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=mask, scale=scale)  # type: ignore[no-any-return]
    if q.device.type == "cuda" and q.dtype in _KERNEL and q.shape[-1] % 8 == 0:
        if mask is not None:
            mask = aligned(mask, k.shape[2]).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, 0.0, False, scale=scale)
        return out, lse[..., : q.shape[2]]
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v.to(wide)).to(q.dtype), scores.logsumexp(-1)


def aligned(mask: torch.Tensor, keys: int) -> torch.Tensor:
    """A mask as CUDA's kernel reads it: keys side by side, rows from multiples of 16 bytes on.

    Args:
        mask: additive, with one key or all.
        keys: how many it is for.

    Returns:
        (..., keys), the mask itself where that can be read. Rows of a copy are padded to multiples of 16 bytes.
    """
    each = 16 // mask.element_size()
    mask = mask.expand(*mask.shape[:-1], keys)
    if mask.stride(-1) == 1 and not any(step % each for step in (mask.storage_offset(), *mask.stride()[:-1])):
        return mask
    # not `contiguous`, which leaves the strides of dimensions of one element as they are
    padded = mask.new_zeros(*mask.shape[:-1], keys + -keys % each)
    padded[..., :keys] = mask
    return padded[..., :keys]


def nothing_seen(mask: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """The log-sum-exp with -inf where a row sees nothing; the kernels give such rows 0, as if they saw something.

    Args:
        mask: as in `attend`.
        lse: that of `attend`.

    Returns:
        As `lse`.
    """
    return lse.masked_fill((mask == float("-inf")).all(-1), float("-inf"))


def merge(total: torch.Tensor, norm: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Add a part to a running softmax, in place.

    Args:
        total: float32 (..., head_dim), the output so far.
        norm: float32 (...), its log-sum-exp; -inf where nothing came before.
        out: (..., head_dim), the part's output.
        lse: float32 (...), the part's log-sum-exp.
    """
    # share = weight of the new part in the softmax over both: sigmoid(lse - norm), 1 where nothing came before
    share = torch.sigmoid(lse - norm).nan_to_num_(0.0).unsqueeze(-1)
    total.lerp_(out.float(), share)
    torch.logaddexp(norm, lse, out=norm)


class Total:
    """Running softmax of the video rows of one group of heads: output and log-sum-exp, float32.

    Args:
        heads: heads of the group.
        frames: latent frames.
        tokens: tokens of a latent frame.
        dim: head_dim.
        device: where the tensors lie.
    """

    def __init__(self, heads: int, frames: int, tokens: int, dim: int, device: torch.device) -> None:
        self.out = torch.empty(heads, frames, tokens, dim, device=device, dtype=torch.float32)
        self.lse = torch.empty(heads, frames, tokens, device=device, dtype=torch.float32)
        self.empty = True

    def add(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Add a part for every row.

        Args:
            out: (heads, frames, tokens, head_dim).
            lse: (heads, frames, tokens).
        """
        if self.empty:
            self.out.copy_(out)
            self.lse.copy_(lse)
            self.empty = False
        else:
            merge(self.out, self.lse, out, lse)

    def strided(
        self, out: torch.Tensor, lse: torch.Tensor, first: int, frame: int, rows: int, advance: int, tokens: slice
    ) -> None:
        """Add a part for some rows, those of `count` equal rectangles (see `calls.rectangles`).

        Rectangle t holds the query frames first + t * advance + (0, 1, ... rows - 1) * frame.

        Args:
            out: (count, heads, rows * tokens of each frame, head_dim).
            lse: (count, heads, rows * tokens of each frame).
            first: first query frame of the first rectangle.
            frame: from one query frame of a rectangle to the next.
            rows: query frames of a rectangle.
            advance: query frames from one rectangle to the next.
            tokens: which tokens of each query frame.
        """
        if self.empty:
            self.out.zero_()
            self.lse.fill_(float("-inf"))
            self.empty = False
        count, heads, _, dim = out.shape
        start, stop, _ = tokens.indices(self.out.shape[2])
        n = stop - start
        shape = (count, heads, rows, n)

        def window(x: torch.Tensor) -> torch.Tensor:
            sh, sf, sn, *rest = x.stride()
            offset = x.storage_offset() + first * sf + start * sn
            stride = (advance * sf, sh, frame * sf, sn, *rest)
            return x.as_strided((*shape, *x.shape[3:]), stride, offset)

        merge(window(self.out), window(self.lse), out.reshape(*shape, dim), lse.float().reshape(shape))
