"""How tokens and heads are shared out over ranks, against torch.tensor_split."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from freeloc_fx.method.shards import Layout, Shards, diffusers_takes, exchanged_elements, layout_of

RANKS = st.integers(1, 9)


@given(RANKS, st.integers(0, 60))
def test_ranks_hold_what_tensor_split_gives_them(ranks: int, count: int) -> None:
    whole = torch.arange(count)
    for rank, part in enumerate(whole.tensor_split(ranks)):
        shards = Shards(ranks, rank)
        assert shards.sizes(count) == tuple(len(one) for one in whole.tensor_split(ranks))
        assert torch.equal(whole[shards.part(count)], part)


@given(RANKS, st.integers(0, 20), st.integers(10, 60), st.integers(0, 20), st.booleans())
def test_a_layout_is_told_by_the_tokens_of_a_rank(ranks: int, first: int, video: int, last: int, shared: bool) -> None:
    stretches = [first, video, last]
    for rank in range(ranks):
        shards = Shards(ranks, rank)
        text = shared and first >= ranks and last >= ranks
        mine = shards.sizes(video)[rank] + sum(shards.sizes(n)[rank] if text else n for n in (first, last))
        found = layout_of(shards, stretches, 1, mine)
        assert found is not None and found.tokens == sum(stretches)
        assert sum(found.lengths(rank)) == mine
    assert layout_of(Shards(ranks, 0), stretches, 1, sum(stretches) + 1) is None


def test_every_token_that_is_shared_out_lies_on_one_rank() -> None:
    shards = Shards(4, 0)
    layout = Layout(shards, ((5, True), (21, True), (3, False)))
    places = [layout.places(rank) for rank in range(4)]
    for index in (0, 1):
        assert sorted(n for place in places for n in range(place[index].start, place[index].stop)) == list(
            range(0, 5) if index == 0 else range(5, 26)
        )
    assert [place[2] for place in places] == [slice(26, 29)] * 4
    assert layout.lengths(0, sent=True) == (2, 6, 0)


def test_what_is_exchanged_by_hand() -> None:
    layout = Layout(Shards(2, 0), ((8, True),))
    # Of four tokens' q, k and v three of six heads leave; of the result the other four tokens' three heads.
    assert exchanged_elements(layout, 6, 2) == (3 * 4 * 3 * 2, 4 * 3 * 2)
    assert exchanged_elements(Layout(Shards(1, 0), ((8, True),)), 6, 2) == (0, 0)


def test_which_heads_diffusers_exchanges_itself() -> None:
    """As its `_maybe_pad_qkv_head` asserts: fewer heads to fill up than a rank then holds."""
    assert [heads for heads in range(1, 13) if diffusers_takes(heads, 4, True)] == [4, 7, 8, 10, 11, 12]
    assert [heads for heads in range(1, 13) if diffusers_takes(heads, 4, False)] == [4, 8, 12]
    assert not diffusers_takes(40, 16, True)
