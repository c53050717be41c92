"""What a user may choose about FlexAttention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from freeloc_fx.compat import release

from .block_mask import Block

__all__ = ["FlexOptions", "with_kernel_sizes"]


@dataclass(frozen=True)
class FlexOptions:
    """Choices about FlexAttention, all with defaults.

    Args:
        kernel_options: `flex_attention`'s own, as sorted items; see `read`.
        block: tokens of a query and of a key block of the block masks, or one number for both; None to choose by the
            frame size.
        heads: heads that run at a time; None to keep working memory below twice q, k and v.
        memory: bytes of shared memory that a kernel may take, what the device has (set by `on`, not by `read`); None
            for enough.
    """

    kernel_options: tuple[tuple[str, Any], ...] = ()
    block: Block | None = None
    heads: int | None = None
    memory: int | None = None

    def on(self, device: torch.device) -> FlexOptions:
        """The same for a device, whose kernels have so much shared memory.

        Args:
            device: where FlexAttention runs.
        """
        if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
            return self
        about = torch.cuda.get_device_properties(device)
        return replace(self, memory=getattr(about, "shared_memory_per_block_optin", None))

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> FlexOptions:
        """Read what `transform(attention={"flex": {...}})` was given.

        Args:
            given: "kernel_options" (a mapping that `flex_attention` takes), "block" (an integer or a pair of them) and
                "heads" (an integer), each optional.

        Returns:
            The options.

        Raises:
            ValueError: another key, or a value of another kind.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"attention.flex: expected a mapping of {', '.join(_KEYS)}, found {given!r}")
        unknown = sorted(set(given) - set(_KEYS))
        if unknown:
            raise ValueError(f"attention.flex: expected the keys {', '.join(_KEYS)}, found {unknown}")
        options = given.get("kernel_options") or {}
        if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
            raise ValueError(f"attention.flex.kernel_options: expected a mapping from names, found {options!r}")
        block = given.get("block")
        sides = (block, block) if isinstance(block, int) else block
        if block is not None and not (
            isinstance(sides, (tuple, list)) and len(sides) == 2 and all(_whole(side) for side in sides)
        ):
            raise ValueError(f"attention.flex.block: expected a positive integer or a pair of them, found {block!r}")
        heads = given.get("heads")
        if heads is not None and not _whole(heads):
            raise ValueError(f"attention.flex.heads: expected a positive integer, found {heads!r}")
        return cls(tuple(sorted(options.items())), tuple(block) if isinstance(block, list) else block, heads)


def with_kernel_sizes(
    options: tuple[tuple[str, Any], ...],
    block: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    memory: int | None = None,
) -> tuple[tuple[str, Any], ...]:
    """Kernel options that set the sizes of CUDA's kernel where Inductor's own go with neither blocks nor device.

    The kernel works on BLOCK_M queries and BLOCK_N keys at a time, by default up to 128, and they must divide a block.
    Inductor makes them smaller itself from torch 2.14 on, where a block is a power of two; else it refuses the mask.
    Before 2.14 it also takes a sequence of a multiple of 128 tokens for one that every block divides, and reads past
    its end. Other devices do not look at these options.

    Inductor chooses by the device's generation, and among 8.x as for an A100, with 163 KiB of shared memory; a 4090 or
    an A10 has 99 KiB, for which float32 heads of more than 64 channels and others of more than 128 are too much then
    (read off kernels compiled for them), a T4 64. There the kernel works on fewer tokens at a time, and loads none
    ahead.

    Args:
        options: what the user chose, which stays.
        block: tokens of a query and of a key block.
        head_dim: channels of a head.
        dtype: of q, k and v.
        memory: bytes of shared memory that the device has for a kernel; None for enough.

    Returns:
        The options, sorted.
    """
    given = dict(options)
    if given.get("BACKEND", "AUTO") not in ("AUTO", "TRITON"):  # other kernels have sizes of their own
        return options
    if any(128 % side for side in block):
        given.setdefault("IS_DIVISIBLE", False)
    row = (1 << (head_dim - 1).bit_length()) * dtype.itemsize  # bytes of a row of q, k or v in shared memory
    most = (64 if row < 1024 else 32, 64 if row < 512 else 32 if row < 1024 else 16)  # not above torch's own defaults
    itself = release("torch") >= (2, 14) and all(side & (side - 1) == 0 for side in block)
    enough = _ROWS * row if memory is None else memory
    small, stages = enough < _ROWS * row, 0
    if small and enough < _SMALL:
        most, itself = ((64, 32) if row < 512 or (row < 1024 and enough > 2**16) else (32, 16)), False
        stages = 1
    elif small and dtype == torch.float32 and head_dim not in (64, 128):
        stages = 2  # what Inductor takes for heads that it has no sizes for needs more
    if stages and not {"num_stages", "fwd_num_stages"} & given.keys():
        given["fwd_num_stages"] = stages
    for name, side, limit in zip(("BLOCK_M", "BLOCK_N"), block, most, strict=True):
        if (side % 128 or stages == 1) and not itself and not {name, f"fwd_{name}"} & given.keys():
            given[name] = min(side & -side, limit)  # the largest power of two that divides the side
            if "BACKEND" not in given:  # the kernel for few queries chooses by other sizes
                given.setdefault("FORCE_USE_FLEX_ATTENTION", True)
    return tuple(sorted(given.items()))


_KEYS = ("kernel_options", "block", "heads")

_ROWS = 384
"""Rows of q, k or v that Inductor's own sizes hold in shared memory: 128 queries, 64 keys and values, twice."""

_SMALL = 128 * 1024
"""Bytes of shared memory, between those of a 4090 (99 KiB) and an A100 (163 KiB)."""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
