"""What a user may choose about FlexAttention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .block_mask import Block

__all__ = ["FlexOptions"]


@dataclass(frozen=True)
class FlexOptions:
    """Choices about FlexAttention, all with defaults.

    Args:
        kernel_options: `flex_attention`'s own, as sorted items; see `read`.
        block: tokens of a query and of a key block of the block masks, or one number for both; None to choose by the
            frame size.
        heads: heads that run at a time; None to keep working memory below twice q, k and v.
    """

    kernel_options: tuple[tuple[str, Any], ...] = ()
    block: Block | None = None
    heads: int | None = None

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
        sides = (block,) if isinstance(block, int) else block
        if block is not None and not (
            isinstance(sides, (tuple, list)) and len(sides) in (1, 2) and all(_whole(side) for side in sides)
        ):
            raise ValueError(f"attention.flex.block: expected a positive integer or a pair of them, found {block!r}")
        heads = given.get("heads")
        if heads is not None and not _whole(heads):
            raise ValueError(f"attention.flex.heads: expected a positive integer, found {heads!r}")
        return cls(tuple(sorted(options.items())), tuple(block) if isinstance(block, list) else block, heads)


_KEYS = ("kernel_options", "block", "heads")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
