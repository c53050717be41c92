"""What ranks exchange and hold, counted, against sums written out here."""

from __future__ import annotations

import numpy as np
import pytest
from models import wan

from freeloc_fx import Profile, plan
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.evaluation.cost import make_spec
from freeloc_fx.evaluation.sharing import exchanged_bytes, halo_bytes, rank_memory
from freeloc_fx.method.visibility import NONE


def test_four_tensors_leave_but_for_the_own_part() -> None:
    # Ranks that divide everything: q, k, v and the result, of each its share of tokens times the other ranks' heads.
    assert exchanged_bytes(24, 8, 16, 4) == 4 * (24 // 4) * (8 - 2) * 16 * 2
    assert exchanged_bytes(24, 8, 16, 1) == 0


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_a_halo_is_what_own_frames_see_elsewhere(ranks: int) -> None:
    spec = make_spec("vrpr+tsa", 4, 3, 5, 12, trained=5)
    levels = spec.strategy.visibility.levels(spec.grid.frames)
    most = 0
    for own in np.array_split(np.arange(spec.grid.frames), ranks):
        seen = {j for i in own for j in range(spec.grid.frames) if levels[i, j] != NONE} - set(own.tolist())
        most = max(most, len(seen))
    assert halo_bytes(spec, 2, ranks) == most * 15 * 2 * 12 * 2 * 2
    assert (halo_bytes(spec, 2, ranks) == 0) == (ranks == 1)


def test_what_a_rank_holds() -> None:
    model = wan()
    made = plan(model, Profile(trained_frames=5, layers="vrpr"), frames=8, height=4, width=4)
    blocks, parameters = layer_table(model), sum(p.numel() for p in model.parameters())
    one = rank_memory(made, model, blocks, 1)
    assert one.weights == 2 * parameters
    assert one.attention == 6 * 32 * 24 * 2
    assert one.feed_forward == (2 * 32 * 24 + 2 * 32 * 32) * 2
    assert one.peak == one.weights + max(one.attention, one.feed_forward)
    shared = rank_memory(made, model, blocks, 2, share_weights=True, feed_forward_chunks=2)
    assert shared.weights == 2 * (parameters // 2 + parameters // 2)
    assert shared.attention == 8 * 16 * 24 * 2, "and a tensor that is sent, and one that comes"
    assert shared.feed_forward == (2 * 16 * 24 + 2 * 8 * 32) * 2
    offloaded = rank_memory(made, model, blocks, 1, offload=True)
    assert offloaded.weights == 2 * 2 * (parameters // 2), "the block that runs, and the next"
    assert offloaded.attention == one.attention
