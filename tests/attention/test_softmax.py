"""Masks as CUDA's attention kernel can read them; the kernel itself is for machines that have one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from freeloc_fx.attention.softmax import aligned, attend, nothing_seen


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    """Whole ones, views of others, and such that are the same for all samples, heads, rows or keys."""
    shape = [draw(st.sampled_from([1, n])) for n in (2, 3, draw(st.integers(1, 9)), draw(st.integers(1, 40)))]
    starts = [draw(st.integers(0, 3)) for _ in shape]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    whole = torch.randn([n + s for n, s in zip(shape, starts, strict=True)]).to(dtype)
    mask = whole[tuple(slice(s, None) for s in starts)]
    return mask.transpose(-1, -2).contiguous().transpose(-1, -2) if draw(st.booleans()) else mask


@given(masks(), st.integers(2, 40))
@example(torch.zeros(1, 1, 4, 1).transpose(-1, -2), 2)  # one row, whose stride no copy need set right
def test_rows_begin_at_multiples_of_16_bytes(mask: torch.Tensor, more: int) -> None:
    keys = mask.shape[-1] if mask.shape[-1] > 1 else more
    found = aligned(mask, keys)
    assert torch.equal(found, mask.expand(*mask.shape[:-1], keys))
    each = 16 // mask.element_size()
    assert found.stride(-1) == 1 and found.storage_offset() % each == 0
    assert not any(step % each for step in found.stride()[:-1])


def test_a_mask_that_can_be_read_is_not_copied() -> None:
    mask = torch.zeros(1, 1, 6, 16)
    assert aligned(mask, 16).data_ptr() == mask.data_ptr()
    assert aligned(mask[..., :13], 13).data_ptr() == mask.data_ptr()


def test_a_row_that_sees_nothing_counts_for_nothing() -> None:
    q, k, v = (torch.randn(2, 3, n, 16) for n in (4, 7, 7))
    mask = torch.zeros(2, 1, 4, 7)
    mask[1, :, 2] = float("-inf")
    lse = nothing_seen(mask, attend(q, k, v, mask, 0.25)[1])
    expected = (0.25 * q @ k.transpose(-1, -2) + mask).logsumexp(-1)
    torch.testing.assert_close(lse, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [1, 37, 45])
def test_any_mask_goes_through_the_kernel(dtype: torch.dtype, keys: int) -> None:
    q, k, v = (torch.randn(2, 3, n, 64, device="cuda", dtype=dtype) for n in (50, keys, keys))
    mask = torch.randn(1, 1, 50, keys, device="cuda").to(dtype)
    out, lse = attend(q, k, v, mask, 0.125)
    scores = 0.125 * q.double() @ k.double().transpose(-1, -2) + mask.double()
    assert (lse - scores.logsumexp(-1)).abs().max() < 2e-2
    assert (out - scores.softmax(-1) @ v.double()).abs().max() < 5e-2
