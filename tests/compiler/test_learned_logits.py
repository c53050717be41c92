"""Attentions whose softmax counts a learned logit of each head, as kernels take it by the name of sinks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from literal import attention
from slow import slow
from spelled import spelled
from test_attention_kinds import HEADS, KINDS, PROFILE, TRAINED, Clips, build, given
from test_foreign_kernels import CALLS, NATIVE

from freeloc_fx import Profile, plans, transform
from freeloc_fx.errors import CaptureError
from freeloc_fx.probing.observe import Recorder
from freeloc_fx.probing.run import watched_copy
from freeloc_fx.probing.statistics import ProbeSettings


def logits(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    q, k = q.to(v), k.to(v)  # turned in float32
    out: torch.Tensor = torch.ops.manner.flash_attn_varlen_func_op(q, k, v, softmax_scale=0.3, sinks=own.sinks)
    return out


KINDS["logits"] = logits


def model_of(groups: int = 2, shape: tuple[int, ...] = (HEADS,)) -> Clips:
    model = build("logits", groups)
    for index, block in enumerate(model.blocks):
        block.attn.sinks = torch.nn.Parameter(torch.linspace(-1, 5, HEADS)[: shape[0]] + index, requires_grad=False)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("lowering", "groups", "strategy"),
    [
        ("calls", 2, "vrpr+tsa"),
        ("tiles", HEADS, "vrpr"),
        ("reference", 1, "tsa"),
        slow("flex", 2, "vrpr+tsa"),
    ],
)
def test_a_rewritten_attention_counts_its_logits(lowering: str, groups: int, strategy: str) -> None:
    model = model_of(groups)
    changed = transform(model, Profile(TRAINED, strategy), backend="eager", attention=lowering)
    short, long = (given(n * TRAINED, 2) for n in (1, 2))
    assert torch.equal(changed(**short), model(**short))
    CALLS.clear()
    found = changed(**long)
    assert not CALLS, "both layers are rewritten"
    made = plans(changed)[-1]
    assert made.rewritten == 2 and made.grid.frames == 2 * TRAINED and made.grid.text == 1
    with attention(spelled(made, NATIVE)):
        expected = model(**long)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert (model(**long) - expected).norm() > 1e-3 * expected.norm(), "the strategy does not show in the output"
    for block in model.blocks:  # shared by the changed model, and read anew in each call
        block.attn.sinks += 2
    assert (changed(**long) - found).norm() > 1e-3 * found.norm(), "the logits do not show in the output"
    with attention(spelled(made, NATIVE)):
        expected = model(**long)
    assert (changed(**long) - expected).norm() <= 1e-4 * expected.norm()


@torch.no_grad()
def test_logits_keep_their_digits_in_bfloat16() -> None:
    """A logit of 5.37 in bfloat16 is 5.375; what the rewritten attention counts is what the kernel was given."""
    model = model_of(HEADS)
    for block in model.blocks:
        block.attn.sinks += 0.37
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    long = given(2 * TRAINED)
    changed(**long)
    made = plans(changed)[-1]
    with attention(spelled(made, NATIVE)):
        expected = model(**long)
    with torch.autocast("cpu", torch.bfloat16):
        found = changed(**long).float()
    assert (found - expected).norm() <= 2e-2 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("lowering", ["calls", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_that_shut_a_head_or_are_none(lowering: str, dtype: torch.dtype) -> None:
    """A logit that is far above all scores leaves nothing of a head, and -inf is no logit."""
    model = model_of(HEADS)
    given_logits = torch.tensor([-math.inf, 2.5e4, -2.5e4, 1.0])
    for block in model.blocks:
        block.attn.sinks = torch.nn.Parameter(given_logits, requires_grad=False)
    changed = transform(model, PROFILE, backend="eager", attention=lowering)
    long = given(2 * TRAINED)
    changed(**long)
    with attention(spelled(plans(changed)[-1], NATIVE)):
        expected = model(**long)
    if dtype == torch.float16:
        model, long = model.half(), {key: value.half() for key, value in long.items()}
        changed = transform(model, PROFILE, backend="eager", attention=lowering)
    found = changed(**long).float()
    bound = 1e-4 if dtype == torch.float32 else 5e-3
    assert (found - expected).norm() <= bound * expected.norm()


def to_all(own: Any, q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
    """The layer's own attention, and one more of the first half of the frames to all of them."""
    host = torch.ops.manner.flash_attn_varlen_func_op
    out, half = host(q, k, v, sinks=own.sinks), q.shape[1] // 2
    more = host(q[:, :half].contiguous(), k, v, sinks=own.sinks)
    return torch.cat([out[:, :half] + more, out[:, half:]], 1)


KINDS["to_all"] = to_all


@torch.no_grad()
def test_fewer_queries_than_keys_are_no_video_of_their_own() -> None:
    model = build("to_all")
    for block in model.blocks:
        block.attn.sinks = torch.nn.Parameter(torch.linspace(-1, 5, HEADS), requires_grad=False)
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    CALLS.clear()
    changed(**given(2 * TRAINED))
    assert plans(changed)[-1].rewritten == 2 and CALLS == {"host": 2}, "the second attention of each layer stays"


@torch.no_grad()
def test_a_layer_that_nothing_replaces_calls_its_own_kernel() -> None:
    model = model_of()
    changed = transform(model, Profile(TRAINED, {1: "vrpr"}), backend="eager", attention="calls")
    CALLS.clear()
    changed(**given(2 * TRAINED))
    assert CALLS == {"host": 1} and plans(changed)[-1].rewritten == 1


@torch.no_grad()
def test_other_logits_than_one_a_head_are_refused_by_name() -> None:
    with pytest.raises(CaptureError, match=r"flash_attn_varlen_func_op .*learned logits \(1,\), expected one a head"):
        transform(model_of(shape=(1,)), PROFILE, backend="eager")(**given(2 * TRAINED))


@torch.no_grad()
def test_without_its_pass_nothing_is_rewritten() -> None:
    changed = transform(model_of(), PROFILE, backend="eager", disable_passes={"carry_sinks"})
    with pytest.raises(CaptureError, match=r"blocks\.0\.attn: carry_sinks is switched off"):
        changed(**given(2 * TRAINED))


@torch.no_grad()
def test_a_probe_sees_attention_that_counts_them() -> None:
    """Much of the attention goes to logits that are large, so what is seen of the frames changes; the output stays."""
    seen = []
    for more in (0.0, 30.0):
        model = model_of()
        for block in model.blocks:
            block.attn.sinks += more
        recorder = Recorder(f"logits {more}", ProbeSettings.for_length(TRAINED), 0, trained=TRAINED)
        found = watched_copy(model, recorder)(**given(TRAINED))
        recorder.close()
        expected = model(**given(TRAINED))
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert set(recorder.rows) == {0, 1}
        seen.append({key: value for key, value in recorder.rows[1][0].items()})
    assert seen[0].keys() == seen[1].keys()
    assert any((seen[0][key] != seen[1][key]).any() for key in seen[0])
