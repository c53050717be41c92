"""Trace what repeats once: Dynamo takes a transformer block as a region that it has seen, and stamps it out again.

Capturing thirty layers one after the other is most of what a first call costs beyond compiling one block. A block that
is marked (`torch.compiler.nested_compile_region`) is traced the first time and stamped out for every further block that
passes all the guards of the first. These guards do not look at what lies inside a block (torch 2.13 stamps out a block
whose linear layer is of another class, or carries a hook), so only blocks that are alike by `signature.alike` share a
region. `passes.inline_regions` puts the stamped regions back into one flat graph, so nothing after the capture knows of
it.

Marks are on the blocks only while a transformed model runs, since it shares them with the original. Outside a capture
they do nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import stamps_regions

from .signature import alike
from .swapped import swapped

__all__ = ["Marks"]


def _region(plain: Callable[..., Any], most: int) -> Callable[..., Any]:
    """A block's forward as a region of its own. most: how many different traces of it there may be."""

    # A function of our own: the mark is written on the function, and `plain` belongs to the class of the block.
    def region(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return plain(block, *args, **kwargs)

    marked: Callable[..., Any] = torch.compiler.nested_compile_region(region, max_reuse_entries=most)
    return marked


class Marks:
    """The marks of a model's blocks, as they are when this is made.

    Args:
        blocks: that may be traced once.

    Attributes:
        active: they are put on; False for good where a capture with them has failed, and where torch cannot stamp out.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.blocks = list(blocks)
        self.active = len(self.blocks) > 1 and stamps_regions()
        self._regions: dict[Hashable, Callable[..., Any]] = {}
        self._forwards: list[tuple[nn.Module, Any]] = []
        if self.active:
            kinds = [alike(block) for block in self.blocks]
            several = {kind for kind, count in Counter(kinds).items() if count > 1}
            for block, kind in zip(self.blocks, kinds, strict=True):
                if kind not in several:
                    continue
                if kind not in self._regions:
                    self._regions[kind] = _region(type(block).forward, len(self.blocks) + 1)
                # Kept for the life of the marks: Dynamo's guards look at them. No methods: torch 2.14 takes a method's
                # own object for another one than the block that holds it, and stamps out the first block's weights.
                self._forwards.append((block, partial(self._regions[kind], block)))

    @contextmanager
    def on(self) -> Iterator[None]:
        """The marks in place, but for blocks whose forward somebody else has replaced."""
        with ExitStack() as put:
            if self.active:
                for block, forward in self._forwards:
                    if "forward" not in vars(block):
                        put.enter_context(swapped(block, "forward", forward))
            yield
