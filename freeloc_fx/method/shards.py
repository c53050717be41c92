"""How tokens and heads are shared out over the ranks of a process group: each rank holds neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Layout", "Shards", "diffusers_takes", "exchanged_elements", "layout_of"]


@dataclass(frozen=True)
class Shards:
    """The ranks that share something out.

    Args:
        ranks: how many there are.
        rank: which of them this is, from 0.
    """

    ranks: int
    rank: int

    def sizes(self, count: int) -> tuple[int, ...]:
        """Give how many of `count` neighbours each rank holds, as torch.tensor_split shares them out.

        Args:
            count: tokens, or heads; the ranks need not divide it, and the first ones then hold one more.
        """
        least, more = divmod(count, self.ranks)
        return tuple(least + (rank < more) for rank in range(self.ranks))

    def part(self, count: int, rank: int | None = None) -> slice:
        """Give which of `count` neighbours a rank holds.

        Args:
            count: as of `sizes`.
            rank: the rank; None for this one.
        """
        sizes, at = self.sizes(count), self.rank if rank is None else rank
        return slice(sum(sizes[:at]), sum(sizes[: at + 1]))


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a sequence lie: each stretch of it is shared out on its own, or whole on every rank.

    A joint model's ranks hold [text, video] each; the sequence is [all text, all video].

    Args:
        shards: the ranks.
        stretches: (tokens, whether they are shared out) in the order of the sequence.
    """

    shards: Shards
    stretches: tuple[tuple[int, bool], ...]

    @property
    def tokens(self) -> int:
        """Tokens of the whole sequence."""
        return sum(tokens for tokens, _ in self.stretches)

    def lengths(self, rank: int, *, sent: bool = False) -> tuple[int, ...]:
        """Give the tokens of each stretch that lie on a rank.

        Args:
            rank: the rank.
            sent: count nothing for a stretch that lies whole everywhere, as nobody has to be sent it.
        """
        return tuple(
            self.shards.sizes(tokens)[rank] if shared else 0 if sent else tokens for tokens, shared in self.stretches
        )

    def places(self, rank: int) -> tuple[slice, ...]:
        """Give where in the whole sequence the tokens of a rank lie, one run for each stretch.

        Args:
            rank: the rank.
        """
        found, first = [], 0
        for tokens, shared in self.stretches:
            own = self.shards.part(tokens, rank) if shared else slice(0, tokens)
            found.append(slice(first + own.start, first + own.stop))
            first += tokens
        return tuple(found)


def layout_of(shards: Shards, stretches: Sequence[int], video: int, local: int) -> Layout | None:
    """The layout in which a rank holds `local` tokens; None where there is none.

    Args:
        shards: the ranks.
        stretches: tokens of the sequence's stretches in order; 0 for one that is not there.
        video: which of them is the video, which is shared out; the others are too, or lie whole on every rank.
        local: tokens that this rank holds.
    """
    # Fewer tokens than ranks cannot have been shared out: nobody's part of such a text may be nothing.
    everything = [(tokens, tokens >= shards.ranks) for tokens in stretches]
    video_only = [(tokens, place == video) for place, tokens in enumerate(stretches)]
    for form in (everything, video_only):
        layout = Layout(shards, tuple(stretch for stretch in form if stretch[0]))
        if sum(layout.lengths(shards.rank)) == local:
            return layout
    return None


def diffusers_takes(heads: int, ranks: int, anything: bool) -> bool:
    """Tell whether diffusers 0.42.1 exchanges so many heads itself.

    It fills heads up to a multiple of the ranks, and stops where the last rank would hold none but such.

    Args:
        heads: of an attention.
        ranks: that share them.
        anything: its `ulysses_anything`; without it ranks have to divide the heads.
    """
    more = -heads % ranks
    return more == 0 or (anything and more < -(-heads // ranks))


def exchanged_elements(layout: Layout, heads: int, head_dim: int) -> tuple[int, int]:
    """Numbers that this rank sends to others for one attention: (for its q, k and v, for its result).

    Args:
        layout: of the sequence.
        heads: of the attention, on all ranks together.
        head_dim: channels of a head.
    """
    shards = layout.shards
    shares = shards.sizes(heads)
    own = sum(layout.lengths(shards.rank, sent=True))
    others = sum(sum(layout.lengths(rank)) for rank in range(shards.ranks) if rank != shards.rank)
    return 3 * own * (heads - shares[shards.rank]) * head_dim, others * shares[shards.rank] * head_dim
