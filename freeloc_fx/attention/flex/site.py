"""What one rewritten attention is made of, as values without tensors: which rotations, which calls, how they merge.

Two attentions of equal `SiteForm` are the same code; they differ by the tensors that they are given (`tables`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.heads import heads_at_a_time
from freeloc_fx.compat import release
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Mixture

from .block_mask import Block, Segments
from .calls import FlexCall, Version, flex_calls, member_specs
from .options import FlexOptions, with_kernel_sizes
from .sight import bounds

__all__ = ["CallForm", "MemberForm", "Rotation", "Site", "SiteForm", "check_site", "describe_site", "working_parts"]


SPARED = 256 * 1024**2
"""Heads run in groups only where all at once would take more bytes than this: below, another call costs more."""


@dataclass(frozen=True)
class CallForm:
    """One FlexAttention call.

    Args:
        query: number of the rotation that makes its queries; None for q as it is.
        key: number of the rotation that makes its keys; None for k as it is.
        versions: of its queries.
        masked: whether it has a block mask.
        striped: whether the block mask has pairs along the stripe.
        padded: whether the block mask reads the model's key mask.
        decayed: whether it has a score function.
    """

    query: int | None
    key: int | None
    versions: int
    masked: bool
    striped: bool
    padded: bool
    decayed: bool


@dataclass(frozen=True)
class MemberForm:
    """One strategy.

    Args:
        calls: whose results merge by log-sum-exp.
        scale: factor on q k.
        axes: of the bounds that say what a token sees along the stripe, see `sight.bounds`; 0 where a table says it.
    """

    calls: tuple[CallForm, ...]
    scale: float
    axes: int = 0

    @property
    def merges(self) -> bool:
        """Whether there is more than one result to merge."""
        return sum(call.versions for call in self.calls) > 1


@dataclass(frozen=True)
class SiteForm:
    """A whole attention.

    Args:
        members: the strategies to run side by side, one where nothing is mixed.
        mixture: how their outputs become one; None for one strategy.
        grid: the tokens of the sequence.
        groups: heads that run at a time, adding up to all.
        block: tokens of a query and of a key block.
        kernel_options: FlexAttention's, as sorted items.
        far: whether keys and values are copied head by head, since the kernel cannot reach the last token of a view.
    """

    members: tuple[MemberForm, ...]
    mixture: Mixture | None
    grid: TokenGrid
    groups: tuple[int, ...]
    block: tuple[int, int]
    kernel_options: tuple[tuple[str, Any], ...] = ()
    far: bool = False

    @property
    def calls(self) -> int:
        """FlexAttention calls for one group of heads."""
        return sum(len(member.calls) for member in self.members)


@dataclass(frozen=True)
class Rotation:
    """Angles by which q or k turns, in one version or more.

    Args:
        turn: latent frames by the strategy's frequencies, float64 (versions, frames).
        change: layout that takes the model's frequencies to the strategy's, for frame numbers; None for no change.
        rope: the strategy's frequencies.
        times: when each frame is, by which `change` turns it.
    """

    turn: np.ndarray
    change: RopeLayout | None
    rope: RopeLayout
    times: tuple[float, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal rotations."""
        return (self.turn.shape, self.turn.tobytes(), self.change, self.rope)

    def angles(self) -> np.ndarray:
        """Radians, float64 (versions, heads or 1, frames, pairs)."""
        angle = self.turn[:, None, :, None] * np.asarray(self.rope.omega)[None, :, None]
        if self.change is not None:
            index = np.asarray(self.times)
            angle = angle + index[None, None, :, None] * np.asarray(self.change.omega)[None, :, None]
        return angle


@dataclass(frozen=True)
class Site:
    """A `SiteForm` beside what its tables are made of.

    Args:
        spec: what the attention computes.
        form: its code.
        shape: of q: (batch, heads, tokens, head_dim).
        rotations: by number.
        calls: of each member.
    """

    spec: AttentionSpec
    form: SiteForm
    shape: tuple[int, ...]
    rotations: tuple[Rotation, ...]
    calls: tuple[tuple[FlexCall, ...], ...]

    @property
    def segments(self) -> Segments:
        """The sequence's."""
        grid = self.spec.grid
        return Segments.of_sizes(grid.sizes, grid.text_first, grid.text_last)


def working_parts(members: tuple[MemberForm, ...], dtype: torch.dtype) -> float:
    """Working memory beside the output at the largest moment, in tensors of the size of one group's q.

    Args:
        members: the strategies that run side by side, whose outputs are all held.
        dtype: of q, k and v.
    """
    wide = max(1.0, 4 / dtype.itemsize)  # a float32 tensor
    most = 0.0
    for held, member in enumerate(members):
        running = wide if member.merges else 0.0
        for number, call in enumerate(member.calls):
            turned = (call.versions if call.query is not None else 0) + (call.key is not None)
            before = running if number else 0.0
            attending = before + turned + call.versions
            # Without a compiler: the results, one of them alone and in float32, and the sum before and after.
            merging = before + call.versions + 1 + 3 * wide if member.merges else 0.0
            most = max(most, held + attending, held + merging)
    return most + len(members) - 1 + 1  # v in one piece, where a batch must be folded into the heads


def describe_site(
    spec: AttentionSpec,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    scale: float | None = None,
    padded: bool = False,
    options: FlexOptions | None = None,
) -> Site:
    """Decide how FlexAttention computes a spec.

    Args:
        spec: the strategy without stages, grid and RoPE.
        shape: of q: (batch, heads, tokens, head_dim).
        dtype: of q, k and v.
        scale: factor on q k; None for 1 / sqrt(head_dim). A strategy's temperature multiplies it.
        padded: whether the model gives a key mask.
        options: block size, kernel options and heads at a time; None for the defaults.

    Returns:
        The site.
    """
    options = options or FlexOptions()
    return _sites.get(
        (spec, shape, dtype, scale, padded, options), lambda: _described(spec, shape, dtype, scale, padded, options)
    )


_sites = Cache(64)
"""What `describe_site` was asked -> its answer."""


def _described(
    spec: AttentionSpec,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    scale: float | None,
    padded: bool,
    options: FlexOptions,
) -> Site:
    factor = 1 / math.sqrt(shape[-1]) if scale is None else scale
    rotations: dict[tuple[Any, ...], tuple[int, Rotation]] = {}
    members, calls = [], []
    for member in member_specs(spec):
        rope, change = member.effective_rope, member.frequency_change()

        def number(turn: np.ndarray, needed: bool, rope: RopeLayout = rope, change: Any = change) -> int | None:
            if not needed and change is None:
                return None
            made = Rotation(turn, change, rope, tuple(spec.grid.times.tolist()))
            return rotations.setdefault(made.key, (len(rotations), made))[0]

        own, forms = tuple(flex_calls(member)), []
        for call in own:
            text_padded = padded and call.text
            forms.append(
                CallForm(
                    number(_turns(call.versions), call.turns_queries),
                    number(call.turn[None], call.turns_keys),
                    len(call.versions),
                    masked=not call.dense or text_padded,
                    striped=call.striped,
                    padded=text_padded,
                    decayed=member.strategy.decay is not None,
                )
            )
        axes = _axes(member) if any(form.striped and form.masked for form in forms) else 0
        members.append(MemberForm(tuple(forms), factor * member.strategy.temperature, axes))
        calls.append(own)
    block = options.block or choose_block(spec)
    sides = (block, block) if isinstance(block, int) else block
    form = SiteForm(
        tuple(members),
        spec.strategy.mixture,
        spec.grid,
        _groups(tuple(members), shape, dtype, options),
        sides,
        with_kernel_sizes(options.kernel_options, sides, shape[-1], dtype, options.memory),
        _too_far(shape),
    )
    return Site(spec, form, shape, tuple(rotation for _, rotation in rotations.values()), tuple(calls))


def _too_far(shape: tuple[int, ...]) -> bool:
    """Whether a token of a head may lie 2**31 numbers from the first one, with those of all heads between them.

    Before torch 2.14 CUDA's kernel counts so in 32 bits, whatever the tensor's size: it would read elsewhere without a
    word. A model's k and v may be a third each of one tensor.
    """
    _, heads, tokens, dim = shape
    return release("torch") < (2, 14) and 3 * heads * dim * tokens >= 2**31


def _turns(versions: tuple[Version, ...]) -> np.ndarray:
    return np.stack([version.turn for version in versions])


def _axes(member: AttentionSpec) -> int:
    """Axes of the bounds along the stripe; 0 for none, and where denoising steps differ in it."""
    grid, strategy = member.grid, member.strategy
    rules = {strategy.at(step).visibility for step in range(strategy.period)}
    found = [bounds(rule.stripe(grid.height, grid.width), grid.height, grid.width) for rule in rules]
    counts = {0 if limits is None else len(limits) for limits in found}
    return counts.pop() if len(counts) == 1 else 0


def check_site(
    path: str, spec: AttentionSpec, shape: tuple[int, ...], device: torch.device, options: FlexOptions | None = None
) -> None:
    """Refuse what FlexAttention cannot run.

    Args:
        path: of the site, for the message.
        spec: what its attention computes.
        shape: of q: (batch, heads, tokens, head_dim).
        device: where it runs.
        options: choices about FlexAttention; None for the defaults.

    Raises:
        CaptureError: on CUDA heads of less than 16 channels, or blocks whose sides are no multiples of 16.
    """
    if device.type != "cuda":
        return
    about = f"site {path}, strategy {spec.strategy.name!r}: FlexAttention on CUDA wants"
    if shape[-1] < 16:
        raise CaptureError(f"{about} head_dim >= 16, found {shape[-1]}; use attention='calls'")
    block = None if options is None else options.block
    if block is not None and any(side % 16 for side in ((block,) if isinstance(block, int) else block)):
        raise CaptureError(f"{about} attention.flex.block of multiples of 16, found {block}")


def choose_block(spec: AttentionSpec) -> Block:
    """Tokens of a side of a block for one frame size, so that few blocks are partial.

    bench/block_masks.py has the counts: at 1560 tokens a frame blocks of 128 compute 1.21 times the visible pairs,
    blocks of 64 1.10 times, but the kernel then works on tiles of a quarter of the size. So 128, FlexAttention's
    default, unless frames are so small that most blocks would be partial, which masks element by element.

    Args:
        spec: the strategy, grid and RoPE.
    """
    return 128 if spec.grid.tokens >= 128 else 64


def _groups(
    members: tuple[MemberForm, ...], shape: tuple[int, ...], dtype: torch.dtype, options: FlexOptions
) -> tuple[int, ...]:
    heads = shape[1]
    parts = working_parts(members, dtype) + (2 if _too_far(shape) else 0)  # the copies of k and v
    if options.heads is not None:
        size = min(heads, options.heads)
    elif math.prod(shape) * dtype.itemsize * parts <= SPARED:
        size = heads
    else:
        size = heads_at_a_time(heads, parts)
    return tuple(min(size, heads - first) for first in range(0, heads, size))
