"""Which masks are padding of single keys, in whatever size a model passes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx.method.key_masks import explains, is_per_key


@given(st.integers(1, 3), st.integers(4, 30))
def test_shapes_with_one_value_a_key(batch: int, tokens: int) -> None:
    for shape in ((tokens,), (batch, tokens), (1, tokens), (batch, 1, 1, tokens), (1, 1, 1, tokens)):
        assert is_per_key(shape, batch, tokens)
    for other in ((tokens, tokens), (batch, 1, tokens, tokens), (batch, 2, 1, tokens), (batch, 1, 1, tokens + 1), None):
        assert not is_per_key(other, batch, tokens)


def outer(mask: torch.Tensor) -> torch.Tensor:
    rows = mask.view(-1, 1, 1, mask.shape[-1]).repeat(1, 1, mask.shape[-1], 1)
    return rows & rows.transpose(2, 3)


def additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -1e5)[:, None, None].expand(-1, 2, mask.shape[-1], -1)


EXPLAINED: dict[str, Any] = {"outer": outer, "additive": additive, "as it is": lambda m: m[:, None, None]}
NOT: dict[str, Any] = {
    "causal": lambda m: m[:, None, None] & torch.ones(m.shape[-1], m.shape[-1]).tril().bool(),
    "constant": lambda m: torch.ones(1, 1, m.shape[-1], m.shape[-1], dtype=torch.bool),
    "shifted": lambda m: m.roll(1, -1)[:, None, None],
    "fails": lambda m: m.view(3, 7),
    "other size": lambda m: F.pad(m, (1, 0))[:, None, None],
}


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.parametrize("batch", [1, 3])
def test_masks_that_say_no_more_than_their_keys(name: str, batch: int) -> None:
    assert explains(EXPLAINED[name], (batch, 11), torch.bool)


@pytest.mark.parametrize("name", NOT)
def test_masks_that_say_something_else(name: str) -> None:
    assert not explains(NOT[name], (2, 11), torch.bool)


def test_only_visible_or_added_values_are_masks() -> None:
    assert explains(lambda m: m[:, None, None], (2, 11), torch.float32)
    assert not explains(lambda m: m[:, None, None], (2, 11), torch.int64)
