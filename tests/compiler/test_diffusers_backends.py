"""diffusers' own attention back ends: stand-ins in place of the packages, through its dispatcher."""

from __future__ import annotations

import ctypes
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers import transformer_wan
from literal import attention, literal
from models import wan, wan_inputs
from slow import slow
from test_foreign_kernels import CALLS, FlashFunction, counted, dense

from freeloc_fx import Profile, plans, transform
from freeloc_fx.errors import CaptureError

dispatch = pytest.importorskip("diffusers.models.attention_dispatch")
PROFILE = Profile(trained_frames=4, layers="vrpr+tsa")


def flash_attn_func(
    q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return FlashFunction.apply(q, k, v, scale, window_size, return_attn_probs)


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return torch.ops.manner_flash._flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, scale, causal,
        window_size_left=window_size[0], window_size_right=window_size[1],
    )[0]  # fmt: skip


def sageattn(
    q: Any, k: Any, v: Any, tensor_layout: str = "HND", is_causal: bool = False, sm_scale: float | None = None,
    return_lse: bool = False, **more: Any,
) -> Any:  # fmt: skip
    """Looks at what no capture can look at, as the package does at the device."""
    assert ctypes.c_int(int(q.data_ptr() > 0)).value == 1
    counted("sage")
    if tensor_layout == "HND":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = dense(q, k, v, sm_scale)
    return out if tensor_layout == "NHD" else out.transpose(1, 2).contiguous()


@torch.compiler.disable
def opaque(*args: Any, **kwargs: Any) -> Any:
    return flash_attn_func(*args, **kwargs)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = dispatch._AttentionBackendRegistry
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)  # choosing one sets it for all
    for name in ("_CAN_USE_FLASH_ATTN", "_CAN_USE_SAGE_ATTN"):
        monkeypatch.setattr(dispatch, name, True)
    for function in (flash_attn_func, flash_attn_varlen_func, sageattn):
        monkeypatch.setattr(dispatch, function.__name__, function)
    package: Any = types.ModuleType("sageattention")
    package.sageattn = sageattn
    monkeypatch.setitem(sys.modules, "sageattention", package)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["flash", slow("flash_varlen"), slow("sage"), "flex"])
def test_a_chosen_backend_is_replaced_where_planned(backend: str) -> None:
    model = wan()
    long, short = wan_inputs(8), wan_inputs(4)
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    found = changed(**long)[0]
    made = plans(changed)[-1]
    with attention(literal(made, F.scaled_dot_product_attention)):
        expected = model(**long)[0]
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    model.set_attention_backend(backend)
    CALLS.clear()
    again = transform(model, PROFILE, backend="eager", attention="calls")
    found = again(**long)[0]
    assert plans(again)[-1].rewritten == 2
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    if backend != "flex":
        assert list(CALLS.values()) == [2], "attention to text is the backend's still"
    assert torch.equal(again(**short)[0], model(**short)[0])


@torch.no_grad()
def test_a_backend_that_nothing_captures_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "flash_attn_func", opaque)
    model = wan()
    model.set_attention_backend("flash")
    with pytest.raises(CaptureError, match=r"function: opaque.*set_attention_backend\('native'\)"):
        transform(model, PROFILE, backend="eager")(**wan_inputs(8))


@torch.no_grad()
def test_more_than_an_operator_takes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_lse(q: Any, k: Any, v: Any, **_: Any) -> Any:
        return sageattn(q, k, v, tensor_layout="NHD", return_lse=True)[0]

    model = wan()
    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", with_lse)
    with pytest.raises(CaptureError, match=r"sageattention\.sageattn: expected q, k, v.*, found return_lse"):
        transform(model, PROFILE, backend="eager")(**wan_inputs(8))
