"""A plan of a clip of any size from a capture of a small picture: what is held does not grow with the clip's tokens.

RoPE of the real clip, read off at every token, takes tens of gigabytes at 720p and ten times the trained length. How it
turns with the frame does not depend on the picture in any model we know, so the call is captured with as many frames,
two pictures of a few tokens each. They must agree in everything but the picture; then the real picture is put in.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from freeloc_fx.errors import CaptureError, FreelocError
from freeloc_fx.graph.records import AttentionSite
from freeloc_fx.method.rope.temporal import alike
from freeloc_fx.planning.plan import Plan, make_plan
from freeloc_fx.planning.profile import Profile

from . import transform
from .backend import Backend
from .capture.conventions import check_limits, check_one_clip, config_of, layer_table, patches
from .capture.examples import example_inputs
from .capture.facts import facts_of
from .capture.rehearsal import plan_of_call
from .capture.shallow import shallow_copy
from .capture.state import lock_of

__all__ = ["plan_on_paper"]

log = logging.getLogger("freeloc_fx")

LARGE = 2**25
"""Numbers in q of one layer (128 MB in float32) past which a clip is planned from smaller pictures."""
PICTURES = ((2, 3), (3, 5))
"""Rows and columns of tokens of the two that are captured."""


def plan_on_paper(
    model: nn.Module, profile: Profile | str | Path | None = None, *, frames: int, height: int, width: int
) -> Plan:
    """The plan that `freeloc_fx.plan` makes, in memory that depends on frames and weights alone.

    Small clips, clips of one frame, and models that small pictures do not serve are planned at their real size.

    Args:
        model: a video transformer that is not transformed; it needs no weights where they say nothing about positions.
        profile: as of `plan`.
        frames: latent frames of the model's input.
        height: latent height of the model's input.
        width: latent width of the model's input.

    Returns:
        The plan.

    Raises:
        FreelocError: as `plan`.
    """
    size = (frames, height, width)
    tokens = math.prod(n // patch for n, patch in zip(size, patches(model), strict=True))
    config = config_of(model)
    channels = int(config.get("num_attention_heads") or 1) * int(config.get("attention_head_dim") or 128)
    rows, columns = (n // patch for n, patch in zip(size[1:], patches(model)[1:], strict=True))
    if frames > 1 and tokens * channels > LARGE and rows >= PICTURES[1][0] and columns >= PICTURES[1][1]:
        check_one_clip(model)
        check_limits(model, *size)
        chosen = transform.choose_profile(model, profile)
        try:
            found = _enlarged(model, chosen, size)
        except CaptureError as why:
            log.info("planned at its real size, as small pictures do not tell: %s", str(why).splitlines()[0])
        else:
            return make_plan(found, chosen, layers=len(layer_table(model)))
    return transform.plan(model, profile, frames=frames, height=height, width=width)


def _enlarged(model: nn.Module, profile: Profile, size: tuple[int, int, int]) -> list[AttentionSite]:
    """The attentions of a clip as two small pictures of as many frames tell them.

    Raises:
        CaptureError: they disagree, or a small picture cannot be captured.
    """
    frames, (_, rows, columns) = size[0], patches(model)
    real = (size[1] // rows, size[2] // columns)
    seen = [_seen(model, profile, (frames, rows * height, columns * width)) for height, width in PICTURES]
    if len(seen[0]) != len(seen[1]):
        raise CaptureError(f"{len(seen[0])} attentions in one picture, {len(seen[1])} in the other")
    found = []
    for one, other in zip(*seen, strict=True):
        if why := _unlike(one, other):
            raise CaptureError(f"{one.path}: {why}")
        found.append(_at(one, other, real))
    return found


def _seen(model: nn.Module, profile: Profile, size: tuple[int, int, int]) -> Sequence[AttentionSite]:
    """Every attention of the model at one size."""
    copied = shallow_copy(model)
    made = Backend(profile, layer_table(model), None, plan_only=True, model=copied).for_planning()
    try:
        arguments = example_inputs(model, *size)
        known = facts_of(model, arguments)
        with lock_of(model):
            plan_of_call(model, copied, made, known, arguments)
    except FreelocError:
        raise
    except Exception as error:  # of the model's own code, on a picture that is smaller than it takes
        raise CaptureError(f"at {size}: {type(error).__name__}: {error}") from error
    return made.sites or ()


def _unlike(one: AttentionSite, other: AttentionSite) -> str:
    """In what two records of one attention disagree beside the picture; empty where in nothing."""
    if (one.path, one.layer, one.kind) != (other.path, other.layer, other.kind):
        return f"{one.kind} at one size, {other.path}: {other.kind} at another"
    if one.rope is None or other.rope is None or one.grid is None or other.grid is None:
        return "" if one.kind != "video" else "RoPE was not found"
    if not alike(one.rope, other.rope) or one.rope.whole_turns != other.rope.whole_turns:
        return "how RoPE turns with the frame depends on the picture"
    if one.grid.further or other.grid.further:
        return f"{len(one.grid.further)} frames stand beside the clip, whose sizes a small picture does not tell"
    same = [replace(grid, height=1, width=1) for grid in (one.grid, other.grid)]
    if same[0] != same[1]:
        return f"beside its picture the sequence is {same[0]} at one size, {same[1]} at another"
    return ""


def _at(one: AttentionSite, other: AttentionSite, picture: tuple[int, int]) -> AttentionSite:
    """A record of a small picture, as it is at the real one.

    Tokens that are as many whatever the picture are text; others are the clip's.
    """

    def enlarged(small: tuple[int, ...], larger: tuple[int, ...]) -> tuple[int, ...]:
        if len(small) != 4 or len(larger) != 4:
            return small
        batch, heads, tokens, dim = small
        areas = [math.prod(area) for area in PICTURES]
        growth, rest = divmod(larger[2] - tokens, areas[1] - areas[0])
        if rest or larger[:2] != small[:2]:
            return small
        return batch, heads, tokens + growth * (math.prod(picture) - areas[0]), dim

    grid = one.grid
    if grid is not None and one.kind == "video":
        grid = replace(grid, height=picture[0], width=picture[1])
    q, k = enlarged(one.query_shape, other.query_shape), enlarged(one.key_shape, other.key_shape)
    # Reasons count tokens, too.
    (rows, columns), (height, width) = PICTURES[0], picture
    reason = one.reason.replace(f"of {rows} x {columns}", f"of {height} x {width}")
    reason = re.sub(rf"(the video's \d+ x ){rows * columns}\b", rf"\g<1>{height * width}", reason)
    for small, large in ((one.query_shape, q), (one.key_shape, k)):
        if small != large:
            reason = re.sub(rf"\b{small[2]}\b", str(large[2]), reason)
    return replace(one, grid=grid, query_shape=q, key_shape=k, reason=reason)
