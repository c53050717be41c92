"""Heads in groups, so that memory beyond q, k, v (the output included) stays below twice their size."""

from __future__ import annotations

import math

__all__ = ["heads_at_a_time"]


def heads_at_a_time(heads: int, parts: float) -> int:
    """Heads of a group such that the output and `parts` tensors of a group's size fit in twice q, k and v: six tensors
    of all heads. Groups are as equal as they can be, since each size compiles once; one head is the least."""
    most = max(1, min(heads, int(5 * heads / parts)))
    return math.ceil(heads / math.ceil(heads / most))
