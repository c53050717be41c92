"""Heads in groups, so that memory beyond q, k, v (the output included) stays below twice their size."""

from __future__ import annotations

import math

__all__ = ["heads_at_a_time"]


def heads_at_a_time(heads: int, parts: float) -> int:
    """How many heads run at a time, so that working memory stays below twice q, k and v.

    Twice q, k and v is six tensors of all heads, of which the output is one. Groups are as equal as they can be, since
    each size compiles once; one head is the least.

    Args:
        heads: heads of q, k and v, at least 1.
        parts: working memory beside the output, in tensors of the size of one group's q.

    Returns:
        Heads of a group, 1 to `heads`.
    """
    most = max(1, min(heads, int(5 * heads / parts)))
    return math.ceil(heads / math.ceil(heads / most))
