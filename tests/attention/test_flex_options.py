"""Sizes of FlexAttention's kernel and the blocks of its masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.flex import attend, options, site
from freeloc_fx.attention.flex.alone import flex
from freeloc_fx.attention.flex.options import FlexOptions, with_kernel_sizes
from freeloc_fx.attention.flex.site import check_site, describe_site
from freeloc_fx.errors import CaptureError
from freeloc_fx.evaluation.cost import make_spec

SIDES = st.integers(1, 24).map(lambda n: 16 * n)


@pytest.fixture(params=[(2, 13), (2, 14)], ids=["2.13", "2.14"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Torch's, as far as the options know."""
    found: tuple[int, int] = request.param
    monkeypatch.setattr(options, "release", lambda _: found)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIDES, SIDES, st.sampled_from([16, 64, 96, 128, 256]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_kernels_sizes_divide_blocks(
    version: tuple[int, int], rows: int, keys: int, head_dim: int, dtype: torch.dtype
) -> None:
    found = dict(with_kernel_sizes((), (rows, keys), head_dim, dtype))
    powers = all(side & (side - 1) == 0 for side in (rows, keys))
    for name, side in (("BLOCK_M", rows), ("BLOCK_N", keys)):
        # Inductor's own are powers of two up to 128, which it makes smaller itself from torch 2.14 on.
        own = min(side, 128) if version >= (2, 14) and powers else 128
        size = found.get(name, own)
        assert side % size == 0 and size >= 16 and size & (size - 1) == 0
    assert found.get("IS_DIVISIBLE") == (None if 128 % rows == 128 % keys == 0 else False)
    assert ("BLOCK_M" in found or "BLOCK_N" in found) == found.pop("FORCE_USE_FLEX_ATTENTION", False)


@pytest.mark.parametrize(
    "chosen", [{"BLOCK_M": 32, "BLOCK_N": 16}, {"fwd_BLOCK_M": 32, "fwd_BLOCK_N": 16}, {"BACKEND": "FLASH"}]
)
def test_what_the_user_chose_stays(chosen: dict[str, Any], version: tuple[int, int]) -> None:
    before = tuple(sorted(chosen.items()))
    assert with_kernel_sizes(before, (64, 64), 128, torch.bfloat16) == before


@pytest.mark.parametrize(("size", "small"), [((5, 9), True), ((30, 52), False)])
def test_a_site_of_small_frames_sets_the_kernels_sizes(
    size: tuple[int, int], small: bool, version: tuple[int, int]
) -> None:
    spec = make_spec("vrpr+tsa", 4, *size, 64, trained=6)
    chosen = FlexOptions((("num_stages", version[1]),))
    form = describe_site(spec, (1, 2, spec.grid.sequence, 64), torch.bfloat16, options=chosen).form
    added = {"BLOCK_M": 64, "BLOCK_N": 64, "FORCE_USE_FLEX_ATTENTION": True} if small and version < (2, 14) else {}
    assert dict(form.kernel_options) == {"num_stages": version[1], **added}


@pytest.mark.parametrize("block", [[48], (16, 16, 16), 0, True])
def test_blocks_are_a_number_or_a_pair(block: Any) -> None:
    with pytest.raises(ValueError, match=r"attention\.flex\.block: expected a positive integer or a pair"):
        FlexOptions.read({"block": block})


@pytest.mark.parametrize("block", [40, (128, 24)])
def test_blocks_of_no_multiple_of_16_are_refused_on_cuda(block: Any) -> None:
    spec, shape = make_spec("vrpr+tsa", 4, 5, 9, 64, trained=6), (1, 2, 945, 64)
    chosen = FlexOptions.read({"block": block})
    check_site("a", spec, shape, torch.device("cpu"), chosen)
    check_site("a", spec, shape, torch.device("cuda"), FlexOptions.read({"block": 48}))
    with pytest.raises(CaptureError, match=r"site a, .*flex.block of multiples of 16, found"):
        check_site("a", spec, shape, torch.device("cuda"), chosen)


@pytest.mark.parametrize(
    ("memory", "head_dim", "dtype", "expected"),
    [
        (101_376, 128, torch.float32, {"BLOCK_M": 64, "BLOCK_N": 32, "fwd_num_stages": 1}),  # 4090, A10
        (101_376, 256, torch.float32, {"BLOCK_M": 32, "BLOCK_N": 16, "fwd_num_stages": 1}),
        (101_376, 256, torch.bfloat16, {"BLOCK_M": 64, "BLOCK_N": 32, "fwd_num_stages": 1}),
        (101_376, 128, torch.bfloat16, {}),  # 98,304 bytes
        (65_536, 128, torch.float16, {"BLOCK_M": 64, "BLOCK_N": 32, "fwd_num_stages": 1}),  # T4
        (65_536, 256, torch.float16, {"BLOCK_M": 32, "BLOCK_N": 16, "fwd_num_stages": 1}),
        (166_912, 96, torch.float32, {"fwd_num_stages": 2}),  # A100
        (166_912, 128, torch.float32, {}),
        (232_448, 96, torch.float32, {}),  # H100
        (None, 96, torch.float32, {}),
    ],
)
def test_a_kernel_fits_into_shared_memory(
    memory: int | None, head_dim: int, dtype: torch.dtype, expected: dict[str, int], version: tuple[int, int]
) -> None:
    found = dict(with_kernel_sizes((), (128, 128), head_dim, dtype, memory))
    assert found.pop("FORCE_USE_FLEX_ATTENTION", False) == ("BLOCK_M" in expected)
    assert found == expected
    chosen = (("BLOCK_M", 16), ("BLOCK_N", 16), ("num_stages", 3))
    assert with_kernel_sizes(chosen, (128, 128), head_dim, dtype, memory) == chosen


def test_keys_and_values_that_old_kernels_do_not_reach_are_copied(
    version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wan 14B at 1280x720 from 39 latent frames on; the copies change nothing."""
    monkeypatch.setattr(site, "release", lambda _: version)
    monkeypatch.setattr(site, "_sites", Cache(9))
    large = make_spec("tsa", 4, 45, 80, 128)
    for heads, far in ((40, True), (2, False)):
        form = describe_site(large, (1, heads, large.grid.sequence, 128), torch.bfloat16).form
        assert form.far == (far and version < (2, 14))
    spec = make_spec("vrpr+tsa", 4, 3, 4, 16, trained=6)
    q, k, v = (torch.randn(1, spec.grid.sequence, 2, 16).transpose(1, 2) for _ in range(3))
    near = flex(q, k, v, spec)
    monkeypatch.setattr(site, "_too_far", lambda _: True)
    monkeypatch.setattr(site, "_sites", Cache(9))
    seen: list[bool] = []
    plain = attend.flex_attention

    def called(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
        seen.append(k.is_contiguous() and v.is_contiguous())
        return plain(q, k, v, **options)

    monkeypatch.setattr(attend, "flex_attention", called)
    copied = flex(q, k, v, spec)
    assert seen and all(seen) and not v.is_contiguous()
    torch.testing.assert_close(copied, near)
