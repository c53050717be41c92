"""The tensors that a rewritten attention reads beside q, k and v: cosines and sines, block masks, stripes, decays.

They are inputs of the compiled code, so that the next layer, length or denoising step of the same form finds it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from freeloc_fx.attention.cache import Cache
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.visibility import FULL, STRIPE

from .block_mask import block_states, ordered
from .calls import FlexCall, call_levels, member_specs
from .rotary import partners, rotary_tables
from .sight import WORD, bounds, packed
from .site import Site

__all__ = ["MASK", "masks", "read_tables", "site_tables"]

MASK = ("count", "index", "full_count", "full_index")
"""FlexAttention's four tables of one block mask."""


_tables = Cache(48, weigh=lambda tables: sum(table.nbytes for table in tables.values()), most=2 * 1024**3, least=8)
"""(spec at a step, form, device) -> tables. It decides nothing about results: what is not there is made again. Block
masks of 720,000 tokens take up to 250 MB, and a strategy that follows denoising steps has some for each step."""


def site_tables(site: Site, step: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Every table of a site at one denoising step, the same tensors each time that they are asked for.

    Args:
        site: from `describe_site`.
        step: the denoising step, counted from 0.
        device: where the tables lie.

    Returns:
        Name -> tensor: "segment" and "place" (of each token), "word" and "bit" (of each segment), "partner" (of each
        channel), "cos.R" and "sin.R" of rotation R, "bounds.M" or "stripe.M" and "decay.M" of member M, and "count.M.C"
        and the other names that `masks` gives of its call C.
    """
    spec = site.spec.at(step)
    return _tables.get((spec, site.form, device), lambda: _made(site, spec, device))


def read_tables(site: Site, device: torch.device) -> list[str]:
    """Names of the tables that `attend` reads itself; the others are for `vrpr_rotary`.

    Args:
        site: from `describe_site`.
        device: where the tables lie.
    """
    rotary = ("cos.", "sin.", "partner")
    masked = any(call.masked or call.decayed for member in site.form.members for call in member.calls)
    names = [name for name in site_tables(site, 0, device) if not name.startswith(rotary)]
    return names if masked else []


def _made(site: Site, spec: AttentionSpec, device: torch.device) -> dict[str, torch.Tensor]:
    found: dict[str, np.ndarray | torch.Tensor] = {}
    grid, text = spec.grid, bool(spec.grid.text)
    segment, place = site.segments.of_token()
    if any(call.masked or call.decayed for member in site.form.members for call in member.calls) or site.rotations:
        found["segment"] = segment
    if any(call.masked for member in site.form.members for call in member.calls):
        own = np.arange(grid.places + text)
        found["word"], found["bit"] = (own // WORD).astype(np.int32), packed(np.eye(WORD, dtype=bool))[0][own % WORD]
    if any(call.striped for member in site.form.members for call in member.calls):
        found["place"] = np.minimum(place, grid.tokens - 1)  # text is never under a stripe
    if site.rotations:
        found["partner"] = partners(spec.rope)
    for number, rotation in enumerate(site.rotations):
        found[f"cos.{number}"], found[f"sin.{number}"] = rotary_tables(rotation.rope, rotation.angles(), text)
    for number, (member, form) in enumerate(zip(member_specs(spec), site.form.members, strict=True)):
        strategy = member.strategy
        stripe = strategy.visibility.stripe(grid.height, grid.width)
        if any(call.striped for call in form.calls):
            limits = bounds(stripe, grid.height, grid.width) if form.axes else None
            name = "stripe" if limits is None else "bounds"
            found[f"{name}.{number}"] = np.ascontiguousarray(stripe) if limits is None else limits
        if strategy.decay is not None:
            factor = np.ones((grid.places + text, grid.places + text), np.float32)
            factor[: grid.places, : grid.places] = member.decay()
            found[f"decay.{number}"] = factor
        for index, (call, shape) in enumerate(zip(site.calls[number], form.calls, strict=True)):
            if shape.masked:
                # Each step's tables are of one shape; and Inductor's kernel for CPU wants all indices.
                fixed = site.spec.strategy.period > 1 or device.type != "cuda"
                made = masks(replace(site, spec=spec), member, call, stripe, shape.padded, fixed)
                found |= {f"{name}.{number}.{index}": table for name, table in made.items()}
    return {
        name: (torch.from_numpy(value) if isinstance(value, np.ndarray) else value).to(device)
        for name, value in found.items()
    }


def masks(
    site: Site,
    member: AttentionSpec,
    call: FlexCall,
    stripe: np.ndarray,
    padded: bool = False,
    fixed: bool = True,
) -> dict[str, torch.Tensor]:
    """The tables of one call's block mask, built without looking at pairs of tokens.

    Args:
        site: says block size and segments.
        member: the strategy at one denoising step.
        call: one of its calls.
        stripe: bool (n, n), what STRIPE lets a token of a frame see.
        padded: whether single text keys may be hidden.
        fixed: see `ordered`.

    Returns:
        The names of `MASK` -> int32 tensors (1, versions, query blocks[, key blocks or fewer]); and "seen" and, where
        the call has pairs along the stripe, "near": what is seen whole, and along the stripe, int32 (words, versions,
        segments) as `sight.packed` has it, without the second axis where there is one version.
    """
    levels, segments = call_levels(member, call), site.segments
    whole = None
    if padded:
        whole = np.arange(levels.shape[-1]) < site.spec.grid.places
    states = [block_states(table, stripe, segments, segments, site.form.block, whole) for table in levels]
    every = np.stack([every for _, every in states])
    partial = np.stack([some & ~every for some, every in states])
    made = dict(zip(MASK, (*ordered(partial, fixed), *ordered(every, fixed)), strict=True))
    kinds = {"seen": FULL, "near": STRIPE} if call.striped else {"seen": FULL}
    words = {name: packed((levels if len(levels) > 1 else levels[0]) == kind) for name, kind in kinds.items()}
    return made | {name: torch.from_numpy(table) for name, table in words.items()}
