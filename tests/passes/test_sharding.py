"""A rank's graph adopts the unsharded plan, or says why it is not a share of it; exchanges stand where they must."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from models import captured, wan, wan_inputs

from freeloc_fx import Profile
from freeloc_fx.compiler import pipeline
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.records import sites
from freeloc_fx.graph.sharding import Adopted, by_path
from freeloc_fx.method.shards import Shards
from freeloc_fx.passes.adopt_plan import adopt_plan
from freeloc_fx.passes.find_attention import find_attention
from freeloc_fx.passes.shard_sequence import shard_sequence

RANKS = 2
SENDING = "all_to_all_single.default"


@functools.cache
def seen(frames: int, **config: Any) -> Adopted:
    """The unsharded view of a Wan, by two ranks of which this is the first."""
    model = wan(**config)
    graph, capture = captured(model, wan_inputs(frames))
    for run in pipeline.analysis_passes(torch.nn.Module(), model, Profile(trained_frames=2)):
        run(graph, capture)
    return Adopted(by_path(site for _, site in sites(graph)), Shards(RANKS, 0), "0")


def share(frames: int, **config: Any) -> Any:
    """(graph, capture) of a rank that holds so many of the frames."""
    graph, capture = captured(wan(**config), wan_inputs(frames))
    find_attention(graph, capture)
    return graph, capture


def test_a_share_gets_the_records_of_all_tokens_and_an_exchange_at_each_self_attention() -> None:
    adopted, (graph, capture) = seen(12), share(6)
    assert adopt_plan(graph, capture, adopted=adopted) == 2
    assert shard_sequence(graph, capture, adopted=adopted) == 2
    graph.lint()
    video = [site for _, site in sites(graph) if site.kind == "video"]
    assert [(site.grid.frames, site.query_shape) for site in video] == [(12, (1, 1, 48, 12))] * 2  # type: ignore[union-attr]
    calls = Counter(str(node.target).rpartition("all_to_all")[2] for node in graph.nodes if SENDING in str(node.target))
    assert sum(calls.values()) == 2 * 4, "q, k, v and the result; text is whole on every rank"


def test_a_graph_that_holds_all_tokens_is_left_alone() -> None:
    adopted, (graph, capture) = seen(12), share(12)
    adopt_plan(graph, capture, adopted=adopted)
    before = len(graph.nodes)
    assert shard_sequence(graph, capture, adopted=adopted) == 0
    assert len(graph.nodes) == before


def test_tokens_that_are_no_share() -> None:
    adopted, (graph, capture) = seen(12), share(5)
    adopt_plan(graph, capture, adopted=adopted)
    with pytest.raises(
        CaptureError, match=r"blocks.0.attn1 on rank 0 of 2: expected its share of 48 tokens .*, found 20"
    ):
        shard_sequence(graph, capture, adopted=adopted)


def test_other_heads_and_other_attentions() -> None:
    graph, capture = share(6)
    with pytest.raises(CaptureError, match=r"blocks.0.attn1 on rank 0 of 2: expected batch, heads and head_dim"):
        adopt_plan(graph, capture, adopted=seen(12, num_attention_heads=4))
    with pytest.raises(CaptureError, match=r"blocks.1.attn1: attention 1 of this module stands in the graph of rank 0"):
        adopt_plan(graph, capture, adopted=seen(12, num_layers=1))
