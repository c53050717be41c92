"""Keys that are packed by how many tokens each clip has, which a block is given as a tensor: Wan's own code does so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from literal import attention, literal
from test_other_code_bases import DIM, PROFILE, TRAINED, OfLists, clips, result, turn_each

from freeloc_fx import plans, transform
from freeloc_fx.compiler.capture.told import Lengths, Sizes, tell, with_lengths
from freeloc_fx.errors import CaptureError


@torch.library.custom_op("manner_packed::_flash_attn_varlen_forward", mutates_args=())
def packed_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, dropout_p: float, softmax_scale: float, causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    parts = []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(cu[i]), int(cu[i + 1])) for cu in (cu_seqlens_q, cu_seqlens_k))
        one = (x[None].transpose(1, 2) for x in (q[rows], k[keys], v[keys]))
        parts.append(F.scaled_dot_product_attention(*one, scale=softmax_scale)[0].transpose(0, 1).contiguous())
    return torch.cat(parts), q.new_zeros(q.shape[:2])


@packed_forward.register_fake
def _(q: Any, *_: Any) -> Any:
    return torch.empty_like(q), q.new_empty(q.shape[:2])


def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    batch, tokens = q.shape[:2]
    own = torch.tensor([tokens] * batch, dtype=torch.int32)
    k, v = (torch.cat([one[:n] for one, n in zip(x, lengths, strict=True)]) for x in (k, v))
    starts = (torch.cat([n.new_zeros([1]), n]).cumsum(0, dtype=torch.int32) for n in (own, lengths))
    operator = torch.ops.manner_packed._flash_attn_varlen_forward
    out = operator(q.flatten(0, 1), k, v, *starts, tokens, tokens, 0.0, DIM**-0.5, False)
    found: torch.Tensor = out[0].unflatten(0, (batch, tokens))
    return found


def packing(own: Any, x: torch.Tensor, seq_lens: Any, grid_sizes: Any, freqs: torch.Tensor) -> torch.Tensor:
    heads = x.shape[-1] // DIM
    q, k = (norm(of(x)).unflatten(-1, (heads, DIM)) for norm, of in ((own.norm_q, own.q), (own.norm_k, own.k)))
    q, k = turn_each(q, grid_sizes, freqs), turn_each(k, grid_sizes, freqs)
    found: torch.Tensor = own.o(packed(q, k, own.v(x).unflatten(-1, (heads, DIM)), seq_lens).flatten(2))
    return found


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> tuple[OfLists, OfLists]:
    """The same weights: with keys that are packed, and with an attention that pads."""
    torch.manual_seed(3)
    plain = OfLists().eval().requires_grad_(False)
    other = OfLists().eval().requires_grad_(False)
    other.load_state_dict(plain.state_dict())
    for block in other.blocks:
        cls = type("PackingAttention", (type(block.self_attn),), {"forward": packing})
        monkeypatch.setattr(block.self_attn, "__class__", cls)
    return other, plain


@pytest.mark.filterwarnings("ignore:lengths are not used")
@pytest.mark.parametrize("count", [1, 3])
def test_clips_of_one_length(models: tuple[OfLists, OfLists], count: int) -> None:
    model, plain = models
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    short, long = clips(TRAINED, count), clips(2 * TRAINED + 1, count)
    assert torch.equal(result(changed, short), result(model, short))
    found = result(changed, long)
    plan = plans(changed)[-1]
    assert plan.rewritten == 2 and plan.grid.frames == 2 * TRAINED + 1
    with attention(literal(plan, F.scaled_dot_product_attention)):
        expected = result(plain, long)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert (result(plain, long) - expected).norm() > 1e-3 * expected.norm(), "the strategy does not show in the output"


def test_keys_that_padding_is_cut_from_are_refused(models: tuple[OfLists, OfLists]) -> None:
    changed = transform(models[0], PROFILE, backend="eager")
    given = clips(2 * TRAINED)
    with pytest.raises(CaptureError, match=r"self_attn: cross: 52 query tokens attend to 48 other tokens"):
        result(changed, given | {"seq_len": given["seq_len"] + 4})


def test_only_numbers_that_the_sizes_give_are_told() -> None:
    sizes, lengths, steps = torch.tensor([[5, 2, 3], [4, 2, 3]]), torch.tensor([30, 24]), torch.tensor([30, 31])
    told, named = tell((lengths, steps, sizes), {"more": lengths.int()})
    assert isinstance(told[0], Lengths) and told[1] is steps and isinstance(told[2], Sizes)
    again, others = with_lengths(told, named)
    assert torch.equal(again[0], lengths) and again[0].dtype == torch.int64
    assert torch.equal(others["more"], lengths.int()) and others["more"].dtype == torch.int32
    assert tell((lengths,), {})[0][0] is lengths
