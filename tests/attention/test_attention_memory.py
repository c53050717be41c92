"""Heads in groups: the same result, and less than twice the memory of q, k and v in every lowering and dtype."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from attention_cases import distance
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx.attention import op
from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.calls import lowering as calls_module
from freeloc_fx.attention.calls.lowering import calls
from freeloc_fx.attention.flex import attend as attend_module
from freeloc_fx.attention.flex import site as site_module
from freeloc_fx.attention.flex.alone import flex
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.attention.flex.site import describe_site
from freeloc_fx.attention.heads import heads_at_a_time
from freeloc_fx.evaluation.cost import make_spec, peak_bytes
from freeloc_fx.method.spec import AttentionSpec

HEADS = 5
MIXTURES = ("freelong", "freelong++", "longdiff")
TORCHS = ("flex_attention in test", "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::bmm")
"""Operations whose scratch is torch's, not ours: how much they take differs between processors (bfloat16 is packed
where there is AMX)."""
STRATEGIES = ("vrpr", "tsa", "vrpr+tsa", "window", "anchors", "riflex", "clip", "group", "ultravico")


@given(st.integers(1, 200), st.floats(0.5, 300))
def test_groups_are_even_and_fit(heads: int, parts: float) -> None:
    group = heads_at_a_time(heads, parts)
    assert 1 <= group <= heads
    assert group == 1 or group * parts <= 5 * heads
    groups = -(-heads // group)
    assert groups == 1 or heads_at_a_time(heads, parts * 0.99) >= group
    assert group - (heads - (groups - 1) * group) < groups, "the last group is much smaller than the others"


def of_every_head(spec: AttentionSpec, seed: int = 0) -> AttentionSpec:
    """With rates of its own for each head, as LTX and Mochi have."""
    pace = torch.rand(HEADS, generator=torch.Generator().manual_seed(seed)) + 0.5
    omega = tuple(tuple(rate * float(p) for rate in spec.rope.omega[0]) for p in pace)
    return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, omega=omega))


def tensors(
    spec: AttentionSpec, dim: int, dtype: torch.dtype = torch.float32, heads: int = HEADS
) -> tuple[torch.Tensor, ...]:
    """As models hold them: (batch, tokens, heads, head_dim) in memory."""
    random = torch.Generator().manual_seed(1)
    shape = (1, spec.grid.sequence, heads, dim)
    return tuple(torch.randn(shape, generator=random).to(dtype).transpose(1, 2) for _ in range(3))


def marked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give every run of FlexAttention the first name of `TORCHS` in the profiler; the list grows by one each time."""
    found: list[int] = []
    inner = attend_module.flex_attention

    def run(*arguments: Any, **named: Any) -> Any:
        found.append(1)
        with torch.profiler.record_function(TORCHS[0]):
            return inner(*arguments, **named)

    monkeypatch.setattr(attend_module, "flex_attention", run)
    return found


WAYS = [("flex", name) for name in (*STRATEGIES, *MIXTURES)] + [("calls", name) for name in STRATEGIES]
"""Mixtures through `calls` are tested below."""


@pytest.mark.parametrize("text", [0, 6])
@pytest.mark.parametrize(("way", "name"), WAYS)
def test_heads_in_groups_change_nothing(way: str, name: str, text: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = of_every_head(make_spec(name, 2, 2, 3, 16, text, trained=5))
    q, k, v = tensors(spec, 16)
    mask = None
    if text:  # the last two are padding
        mask = torch.ones(1, 1, 1, spec.grid.sequence, dtype=torch.bool)
        mask[..., -2:] = False
    sizes: list[int] = []
    if way == "flex":
        form = describe_site(spec, tuple(q.shape), q.dtype, options=FlexOptions(heads=2)).form
        sizes += form.groups
        found = flex(q, k, v, spec, key_mask=mask, options=FlexOptions(heads=2))
    else:
        make: Any = calls_module.make_cuts
        monkeypatch.setattr(calls_module, "make_cuts", lambda *a: dataclasses.replace(make(*a), group=2))
        monkeypatch.setattr(calls_module, "known_cuts", Cache(64))
        sample: Any = calls_module.Sample
        monkeypatch.setattr(calls_module, "Sample", lambda *a: (sizes.append(a[0].shape[0]), sample(*a))[1])
        found = calls(q, k, v, spec, key_mask=mask)
    assert sizes == [2, 2, 1]
    assert distance(found, op.run("reference", q, k, v, spec, key_mask=mask)) <= 1e-5


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("way", ["tiles", "calls"])
def test_mixtures_in_groups_change_nothing(way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = of_every_head(make_spec(name, 2, 2, 3, 16, 6, trained=5))
    q, k, v = tensors(spec, 16)
    sizes: list[int] = []
    monkeypatch.setattr(op, "heads_at_a_time", lambda heads, _: heads)
    whole = op.run("reference", q, k, v, spec)
    monkeypatch.setattr(op, "heads_at_a_time", lambda *_: 2)
    inner: Any = op._mixed
    monkeypatch.setattr(op, "_mixed", lambda *a: (sizes.append(a[1].shape[1]), inner(*a))[1])
    found = op.run(way, q, k, v, spec)
    assert sizes == [2, 2, 1]
    assert distance(found, whole) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("way", ["tiles", "calls"])
def test_mixtures_take_less_than_twice_q_k_and_v(way: str, name: str, dtype: torch.dtype) -> None:
    spec = make_spec(name, 4, 8, 8, 64, trained=9)
    q, k, v = tensors(spec, 64, dtype)
    with torch.no_grad():
        op.run(way, q, k, v, spec)  # tables
        peak = peak_bytes(lambda: op.run(way, q, k, v, spec), apart=TORCHS)
    assert q.nbytes <= peak < 2 * 3 * q.nbytes, f"{peak / 3 / q.nbytes:.2f} times q, k and v"


@pytest.mark.parametrize("text", [0, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*STRATEGIES, "freelong"])
@pytest.mark.parametrize("way", ["flex", "calls"])
def test_less_than_twice_q_k_and_v(
    way: str, name: str, dtype: torch.dtype, text: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output counts; q, k and v do not. What torch's attention holds inside a call is torch's: without a compiler,
    as on CPU, FlexAttention holds all scores. All else is what the rewritten graph holds: its turned q and k, results
    of every version, running sums."""
    monkeypatch.setattr(site_module, "SPARED", 0)
    monkeypatch.setattr(site_module, "_sites", Cache(64))
    # Uncompiled FlexAttention holds all scores: seconds at the larger size.
    spec = make_spec(name, *((2, 4, 8) if way == "flex" else (4, 8, 8)), 64, text, trained=9)
    heads = 12 if way == "flex" else HEADS
    q, k, v = tensors(spec, 64, dtype, heads)
    calls_of_flex = marked(monkeypatch)

    def run() -> torch.Tensor:
        return op.run(way, q, k, v, spec)

    with torch.no_grad():
        expected = run()  # tables
        del calls_of_flex[:]
        found: list[torch.Tensor] = []
        peak = peak_bytes(lambda: found.append(run()), apart=TORCHS)
    assert bool(calls_of_flex) == (way == "flex"), "FlexAttention did not run"
    assert torch.equal(found[0], expected)
    assert q.nbytes <= peak < 2 * 3 * q.nbytes, f"{peak / 3 / q.nbytes:.2f} times q, k and v"


def test_what_attention_takes_inside_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention on CPU holds the scores of all pairs; what it returns is all that is left when they are apart."""
    spec = make_spec("tsa", 4, 8, 8, 64, trained=9)
    q, k, v = tensors(spec, 64)
    marked(monkeypatch)

    def run() -> torch.Tensor:
        return flex(q, k, v, spec)

    with torch.no_grad():
        out = run()
        whole, ours = peak_bytes(run), peak_bytes(run, apart=TORCHS)
    assert whole > 4 * HEADS * spec.grid.video**2, "the scores"
    assert ours <= 2.1 * out.nbytes, "the result, once more in its final layout"


def test_wan_runs_in_few_groups_and_in_one_where_nothing_merges() -> None:
    def groups(name: str, dtype: torch.dtype, heads: int = 12, side: int = 30) -> tuple[int, ...]:
        spec = make_spec(name, 4, side, side, 128)
        return describe_site(spec, (1, heads, spec.grid.sequence, 128), dtype).form.groups

    assert groups("vrpr+tsa", torch.bfloat16) == (4, 4, 4)
    assert groups("tsa", torch.bfloat16) == groups("tsa", torch.float32) == (12,)
    assert groups("vrpr+tsa", torch.bfloat16, side=4) == (12,), "too little memory to save"
