"""Calls of somebody else's attention kernels, in the manner of the operators and functions that packages register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from literal import attention
from spelled import spelled
from test_attention_kinds import DIM, HEADS, KINDS, PROFILE, TRAINED, build, given
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention, noop_mask

from freeloc_fx import Profile, plans, transform
from freeloc_fx.errors import CaptureError

CALLS: dict[str, int] = {}
NATIVE = F.scaled_dot_product_attention


def dense(q: Any, k: Any, v: Any, scale: float | None, logits: torch.Tensor | None = None) -> torch.Tensor:
    """q, k, v (batch, tokens, heads, dim) with fewer heads of keys; what a kernel computes, counted."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if logits is not None:
        scores = torch.zeros(1, q.shape[1], 1, k.shape[2] + 1)
        scores[0, :, 0, -1] = logits
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=scores.to(q.dtype), scale=scale, enable_gqa=True)
        return out.transpose(1, 2).contiguous()
    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True).transpose(1, 2).contiguous()


def counted(name: str) -> None:
    CALLS[name] = CALLS.get(name, 0) + 1


# flash_attn: operators of fixed and of packed lengths, behind an autograd function; and the third version's


@torch.library.custom_op("manner_flash::_flash_attn_forward", mutates_args=())
def flash_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float, softmax_scale: float, causal: bool,
    window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: torch.Tensor | None,
    return_softmax: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    counted("flash")
    return dense(q, k, v, softmax_scale), q.new_zeros(q.shape[:3])


@flash_forward.register_fake
def _(q: Any, *_: Any, **__: Any) -> Any:
    return torch.empty_like(q), q.new_empty(q.shape[:3])


@torch.library.custom_op("manner_flash::_flash_attn_varlen_forward", mutates_args=())
def flash_varlen_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, dropout_p: float, softmax_scale: float, causal: bool,
    window_size_left: int = -1, window_size_right: int = -1, softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None, return_softmax: bool = False, block_table: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None, zero_tensors: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    counted("varlen")
    parts = []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(cu[i]), int(cu[i + 1])) for cu in (cu_seqlens_q, cu_seqlens_k))
        parts.append(dense(q[rows][None], k[keys][None], v[keys][None], softmax_scale)[0])
    return torch.cat(parts), q.new_zeros(q.shape[:2])


@flash_varlen_forward.register_fake
def _(q: Any, *_: Any, **__: Any) -> Any:
    return torch.empty_like(q), q.new_empty(q.shape[:2])


@torch.library.custom_op("manner_flash_3::_flash_attn_forward", mutates_args=())
def flash_3_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float | None = None, causal: bool = False,
    qv: torch.Tensor | None = None, q_descale: torch.Tensor | None = None, window_size_left: int = -1,
    window_size_right: int = -1, attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: bool | None = None, sm_margin: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    counted("flash 3")
    return dense(q, k, v, softmax_scale), q.new_zeros(q.shape[:3])


@flash_3_forward.register_fake
def _(q: Any, *_: Any, **__: Any) -> Any:
    return torch.empty_like(q), q.new_empty(q.shape[:3])


class FlashFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, scale: float, window: tuple[int, int], with_lse: bool) -> Any:
        out, lse = torch.ops.manner_flash._flash_attn_forward(
            q, k, v, 0.0, scale, causal=False, window_size_left=window[0], window_size_right=window[1], softcap=0.0,
            alibi_slopes=None, return_softmax=False,
        )  # fmt: skip
        out = out[..., : q.shape[-1]]
        return (out, lse) if with_lse else out


def flash(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    out: torch.Tensor = FlashFunction.apply(q, k, v, DIM**-0.5, (-1, -1), False)
    return out


def flash_window(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    out: torch.Tensor = FlashFunction.apply(q, k, v, DIM**-0.5, (8, 8), False)
    return out


def flash_lse(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    out, lse = FlashFunction.apply(q, k, v, DIM**-0.5, (-1, -1), True)
    result: torch.Tensor = out + 0 * lse[..., None]
    return result


def flash_lse_dropped(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    """In the manner of hosts whose functions always give both, in a shape of their own."""
    out, lse = FlashFunction.apply(q, k, v, DIM**-0.5, (-1, -1), True)
    lse.transpose(1, 2).unsqueeze(-1)
    result: torch.Tensor = out
    return result


def flash_3(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    out: torch.Tensor = torch.ops.manner_flash_3._flash_attn_forward(q, k, v, 0.3, False)[0]
    return out


def varlen(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    batch, tokens = q.shape[:2]
    starts = torch.arange(batch + 1, dtype=torch.int32) * tokens
    packed = (x.flatten(0, 1) for x in (q, k, v))
    out = torch.ops.manner_flash._flash_attn_varlen_forward(
        *packed, starts, starts, tokens, tokens, 0.0, DIM**-0.5, False
    )
    result: torch.Tensor = out[0].unflatten(0, (batch, tokens))
    return result


def varlen_of_the_call(own: Any, q: Any, k: Any, v: Any, more_k: Any, more_v: Any, mask: Any) -> torch.Tensor:
    tokens = q.shape[1]
    starts = F.pad(mask.sum(-1).flatten().cumsum(0), (1, 0)).int()
    packed = (x.flatten(0, 1) for x in (q, k, v))
    out = torch.ops.manner_flash._flash_attn_varlen_forward(
        *packed, starts, starts, tokens, tokens, 0.0, DIM**-0.5, False
    )
    result: torch.Tensor = out[0].unflatten(0, q.shape[:2])
    return result


# sage: a function of either layout, in the graph by whichever wrapper put it there


@torch.library.custom_op("manner::sageattn", mutates_args=())
def sage_operator(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tensor_layout: str = "HND", is_causal: bool = False,
    sm_scale: float | None = None, return_lse: bool = False,
) -> torch.Tensor:  # fmt: skip
    counted("sage")
    if tensor_layout == "NHD":
        return dense(q, k, v, sm_scale)
    return dense(*(x.transpose(1, 2) for x in (q, k, v)), sm_scale).transpose(1, 2).contiguous()


@sage_operator.register_fake
def _(q: Any, *_: Any, **__: Any) -> Any:
    return torch.empty_like(q)


def sage(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out: torch.Tensor = torch.ops.manner.sageattn(q, k, v, sm_scale=0.3)
    return out.transpose(1, 2)


def sage_nhd(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    out: torch.Tensor = torch.ops.manner.sageattn(q, k, v, tensor_layout="NHD")
    return out


# SGLang: one operator for samples of one length and for packed ones, which may count learned logits


@torch.library.custom_op("manner::flash_attn_varlen_func_op", mutates_args=())
def host_operator(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None, max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
    page_table: torch.Tensor | None = None, softmax_scale: float | None = None, causal: bool = False,
    window_size: list[int] | None = None, softcap: float = 0.0, return_softmax_lse: bool = False,
    sinks: torch.Tensor | None = None, ver: int = 4,
) -> torch.Tensor:  # fmt: skip
    counted("host")
    return dense(q, k, v, softmax_scale, sinks)


@host_operator.register_fake
def _(q: Any, *_: Any, **__: Any) -> Any:
    return torch.empty_like(q)


def host(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    tokens = q.shape[1]
    out: torch.Tensor = torch.ops.manner.flash_attn_varlen_func_op(
        q, k, v, max_seqlen_q=tokens, max_seqlen_k=tokens, softmax_scale=0.3, window_size=[-1, -1]
    )
    return out


# xformers: tokens before heads, as flash_attn


@torch.library.custom_op("manner::memory_efficient_attention_forward", mutates_args=())
def efficient(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: torch.Tensor | None = None, p: float | None = 0.0,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    counted("efficient")
    return dense(q, k, v, scale)


@efficient.register_fake
def _(q: Any, *_: Any, **__: Any) -> Any:
    return torch.empty_like(q)


def memory_efficient(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    out: torch.Tensor = torch.ops.manner.memory_efficient_attention_forward(q, k, v, None, 0.0, 0.3)
    return out


# flex_attention without a mask, with one that hides nothing, with one that hides something


def flex(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out: torch.Tensor = flex_attention(q, k, v, enable_gqa=True)  # type: ignore[assignment]
    return out.transpose(1, 2)


def everything(tokens: int) -> BlockMask:
    return create_block_mask(noop_mask, None, None, tokens, tokens, device="cpu", BLOCK_SIZE=16)


def nearby(tokens: int) -> BlockMask:
    return create_block_mask(lambda b, h, i, j: (i - j).abs() < 9, None, None, tokens, tokens, device="cpu")


TOKENS = [n * TRAINED * 6 for n in (1, 2)]
MASKS = {"flex_full": {n: everything(n) for n in TOKENS}, "flex_near": {n: nearby(n) for n in TOKENS}}


def flex_full(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out: Any = flex_attention(q, k, v, block_mask=MASKS["flex_full"][q.shape[2]], enable_gqa=True)
    return out.transpose(1, 2)


def flex_near(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out: Any = flex_attention(q, k, v, block_mask=MASKS["flex_near"][q.shape[2]], enable_gqa=True)
    return out.transpose(1, 2)


def flex_scored(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out: Any = flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s - 0.01 * (i - j).abs(), enable_gqa=True)
    return out.transpose(1, 2)


# What is found


MEANT: dict[str, Callable[..., torch.Tensor]] = {
    one.__name__: one
    for one in (flash, flash_lse_dropped, flash_3, varlen, sage, sage_nhd, host, memory_efficient, flex, flex_full)
}
REFUSED: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "flash_window": (flash_window, r"_flash_attn_forward .*its window_size_left is 8.*set_attention_backend"),
    "flash_lse": (flash_lse, "_flash_attn_forward .*more than its first result is read"),
    "varlen_of_the_call": (varlen_of_the_call, "_flash_attn_varlen_forward .*where its samples begin"),
    "flex_near": (flex_near, "flex_attention .*mask function"),
    "flex_scored": (flex_scored, "flex_attention .*score function"),
}
KINDS.update(MEANT | {name: function for name, (function, _) in REFUSED.items()})


def eager(kind: str) -> bool:
    """Whether the model can be run as it is with F.scaled_dot_product_attention swapped."""
    return "flex" not in kind


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("kind", MEANT)
def test_a_kernel_that_means_dense_attention_is_replaced(kind: str) -> None:
    model = build(kind, groups=2)
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    batch = 1 if "flex" in kind else 2
    short, long = given(TRAINED, batch), given(2 * TRAINED, batch)
    assert torch.equal(changed(**short), model(**short))
    CALLS.clear()
    found = changed(**long)
    assert not CALLS, "both layers are rewritten"
    made = plans(changed)[-1]
    assert made.rewritten == 2 and made.grid.frames == 2 * TRAINED and not made.grid.text
    same = model
    if not eager(kind):
        same = build("grouped", groups=2)
    with attention(spelled(made, NATIVE)):
        expected = same(**long)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert (same(**long) - expected).norm() > 1e-3 * expected.norm(), "the strategy does not show in the output"


@torch.no_grad()
def test_a_layer_that_nothing_replaces_calls_its_own_kernel() -> None:
    model = build("flash")
    changed = transform(model, Profile(TRAINED, {1: "vrpr"}), backend="eager", attention="calls")
    CALLS.clear()
    changed(**given(2 * TRAINED))
    assert CALLS == {"flash": 1} and plans(changed)[-1].rewritten == 1
    CALLS.clear()
    changed(**given(TRAINED))
    assert CALLS == {"flash": 2}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_kernel_that_means_something_else_is_named(kind: str) -> None:
    call = given(2 * TRAINED)
    if kind == "varlen_of_the_call":
        call["mask"] = torch.ones(1, 2 * TRAINED * 6, dtype=torch.bool)
    with torch.no_grad(), pytest.raises(CaptureError, match=rf"blocks\.\d\.attn: other: {REFUSED[kind][1]}"):
        transform(build(kind, HEADS), PROFILE, backend="eager")(**call)
