"""The tensors that a rewritten attention reads beside q, k and v: cosines and sines, block masks, stripes, decays.

They are inputs of the compiled code, so that the next layer, length or denoising step of the same form finds it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from freeloc_fx.attention.cache import Cache
from freeloc_fx.method.spec import AttentionSpec

from .block_mask import block_states, ordered
from .calls import FlexCall, call_levels, member_specs
from .rotary import partners, rotary_tables
from .site import Site

__all__ = ["MASK", "masks", "read_tables", "site_tables"]

MASK = ("count", "index", "full_count", "full_index", "levels")
"""What one block mask consists of: FlexAttention's four tables, and the levels that its mask function reads."""


_tables = Cache(48)
"""(spec at a step, form, device) -> tables. It decides nothing about results: what is not there is made again."""


def site_tables(site: Site, step: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Every table of a site at one denoising step, the same tensors each time that they are asked for.

    Args:
        site: from `describe_site`.
        step: the denoising step, counted from 0.
        device: where the tables lie.

    Returns:
        Name -> tensor: "segment" and "place" (of each token), "partner" (of each channel), "cos.R" and "sin.R" of
        rotation R, "stripe.M" and "decay.M" of member M, and "count.M.C" and the other names of `MASK` of its call C.
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
            found[f"stripe.{number}"] = np.ascontiguousarray(stripe)
        if strategy.decay is not None:
            factor = np.ones((grid.places + text, grid.places + text), np.float32)
            factor[: grid.places, : grid.places] = member.decay()
            found[f"decay.{number}"] = factor
        for index, (call, shape) in enumerate(zip(site.calls[number], form.calls, strict=True)):
            if shape.masked:
                made = masks(replace(site, spec=spec), member, call, stripe, shape.padded)
                found |= {f"{name}.{number}.{index}": made[name] for name in MASK}
    return {
        name: (torch.from_numpy(value) if isinstance(value, np.ndarray) else value).to(device)
        for name, value in found.items()
    }


def masks(
    site: Site, member: AttentionSpec, call: FlexCall, stripe: np.ndarray, padded: bool = False
) -> dict[str, torch.Tensor]:
    """The tables of one call's block mask, built without looking at pairs of tokens.

    Args:
        site: says block size and segments.
        member: the strategy at one denoising step.
        call: one of its calls.
        stripe: bool (n, n), what STRIPE lets a token of a frame see.
        padded: whether single text keys may be hidden.

    Returns:
        The names of `MASK` -> int32 tensors (1, versions, query blocks[, key blocks]), and the levels, int8 (versions,
        segments, segments), without the first axis where there is one version.
    """
    levels, segments = call_levels(member, call), site.segments
    whole = None
    if padded:
        whole = np.arange(levels.shape[-1]) < site.spec.grid.places
    states = [block_states(table, stripe, segments, segments, site.form.block, whole) for table in levels]
    every = np.stack([every for _, every in states])
    partial = np.stack([some & ~every for some, every in states])
    made = dict(zip(MASK, (*ordered(partial), *ordered(every)), strict=False))
    return made | {"levels": torch.from_numpy(levels if len(levels) > 1 else levels[0])}
