"""One attention by the nodes of the rewritten graph, without a graph around it: for comparison and for measuring.

On CUDA it is compiled, as in a graph. Elsewhere the nodes run one by one, with the scores of all pairs in memory: torch
cannot compile what they are made of for CPU (Inductor there has no log-sum-exp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.running import running
from freeloc_fx.attention.text import valid_keys
from freeloc_fx.compat import flex_as_it_is
from freeloc_fx.method.spec import AttentionSpec

from .attend import Sum, add_call, attend, joined
from .backends import check_backend
from .options import FlexOptions
from .rotary import vrpr_rotary
from .site import SiteForm, check_site, describe_site
from .tables import site_tables
from .valid import visible_keys

__all__ = ["flex"]


def flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: AttentionSpec,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    *,
    options: FlexOptions | None = None,
    step: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Run a long attention as the rewritten graph does.

    Args:
        q: (batch, heads, tokens, head_dim), floating point, already rotated by the model's RoPE.
        k: as q.
        v: as q.
        spec: the strategy, grid and RoPE; a mixture is run whole.
        scale: factor on q k; None for 1 / sqrt(head_dim). The strategy's temperature multiplies it.
        key_mask: the model's padding mask, see `text.valid_keys`; None for none.
        options: see `FlexOptions`; None for the defaults.
        step: the denoising step, for a strategy that follows it; None for that of the call that is running.
        backend: of torch.compile; None for "inductor" on CUDA and no compiler elsewhere.

    Returns:
        (batch, heads, tokens, head_dim) in q's dtype.

    Raises:
        CaptureError: a key mask that is no padding of text, see `text.valid_keys`, or what CUDA's kernel cannot run.
    """
    valid_keys(key_mask, q.shape[0], spec.grid)  # refuses what is no padding
    step = running().step if step is None else step
    if spec.strategy.stages:
        spec = spec.at(step)
    padded = key_mask is not None and spec.grid.text > 0
    check_backend(options or FlexOptions(), q.device, q.dtype, q.shape[-1])
    check_site("alone", spec, tuple(q.shape), q.device, options)
    options = (options or FlexOptions()).on(q.device)
    site = describe_site(spec, tuple(q.shape), q.dtype, scale=scale, padded=padded, options=options)
    tables = dict(site_tables(site, step, q.device))
    if padded:
        assert key_mask is not None
        grid = spec.grid
        tables["valid"] = visible_keys(key_mask, q.shape[0], grid.sequence, grid.text_first, grid.video)
    if backend is None and q.is_cuda:
        backend = "inductor"
    if backend is None:
        with flex_as_it_is():
            return _run(site.form, q, k, v, tables, add_call)

    def compiled(form: SiteForm, member: int, number: int, values: _Turned, *before: torch.Tensor | None) -> Sum:
        shapes = tuple(_like(x) for x in (*values.whole.values(), *before))
        call = _compiled.get((form, member, number, backend, shapes), lambda: _compile(form, member, number, backend))
        return call(values.whole, values.tables, *before)

    return _run(site.form, q, k, v, tables, compiled)


_compiled = Cache(64)
"""Form, call, compiler and shapes -> compiled call. It decides nothing: what is not there is made again."""


def _like(x: torch.Tensor | None) -> Any:
    return None if x is None else (tuple(x.shape), x.stride(), x.dtype, x.device)


def _compile(form: SiteForm, member: int, number: int, backend: str) -> Callable[..., Sum]:
    """One call by itself, as in a graph: a compiler that is given all of them holds all their results at once."""

    def call(
        whole: Mapping[str, torch.Tensor],
        tables: Mapping[str, torch.Tensor],
        total: torch.Tensor | None,
        norm: torch.Tensor | None,
    ) -> Sum:
        return add_call(form, member, number, _Turned(whole, tables), total, norm)

    call.__code__ = call.__code__.replace()  # Dynamo counts what it compiles by code object
    compiled: Callable[..., Sum] = torch.compile(call, backend=backend, fullgraph=True, dynamic=False)
    return compiled


def _run(
    form: SiteForm,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: Mapping[str, torch.Tensor],
    run: Callable[..., Sum],
) -> torch.Tensor:
    parts, first = [], 0
    for heads in form.groups:
        part = slice(first, first + heads)
        whole = {which: x[:, part] for which, x in (("q", q), ("k", k), ("v", v))}
        # Groups of one size are one compiled call: which heads they are is told by tensors alone.
        own = {name: x[:, part] if name.startswith(_BY_HEAD) and x.shape[1] > 1 else x for name, x in tables.items()}
        parts.append(attend(form, _Turned(whole, own), run))
        first += heads
    return joined(parts)


_BY_HEAD = ("cos.", "sin.")
"""Begin the names of tables that may have a row for each head."""


class _Turned:
    """Tables, and some heads of q, k and v by the names of `attend.operand`, turned when they are read, not kept."""

    def __init__(self, whole: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor]) -> None:
        self.whole, self.tables = whole, tables

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.tables:
            return self.tables[name]
        which, *rotation = name.split(".")
        x = self.whole[which]
        if not rotation:
            return x
        cos, sin = self.tables[f"cos.{rotation[0]}"], self.tables[f"sin.{rotation[0]}"]
        return vrpr_rotary(x, cos, sin, self.tables["segment"], self.tables["partner"])
