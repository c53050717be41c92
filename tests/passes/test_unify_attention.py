"""Attention of other forms is spelled anew, and the model's own calls come back where nothing took their place."""

from __future__ import annotations

import torch
import torch.fx as fx
import torch.nn.functional as F
from models import DiT, captured, latents

from freeloc_fx.graph.records import sites, stand_in
from freeloc_fx.passes.find_attention import find_attention
from freeloc_fx.passes.restore_attention import restore_attention
from freeloc_fx.passes.unify_attention import unify_attention


def spelling(graph: fx.Graph) -> list[tuple[str, str, str]]:
    return [(node.op, str(node.target), str(node.args) + str(node.kwargs)) for node in graph.nodes]


def test_grouped_heads_become_one_form_and_come_back() -> None:
    graph, capture = captured(DiT(how="grouped"), {"hidden_states": latents(4, 2, 3)})
    before = spelling(graph)
    assert unify_attention(graph, capture) == 2
    graph.lint()
    assert find_attention(graph, capture) == 2, "the calls that others stand for are no attentions of their own"
    for _, site in sites(graph):
        assert (site.kind, site.query_shape) == ("video", site.key_shape)
    assert restore_attention(graph, capture) == 2
    graph.lint()
    assert spelling(graph) == before and not sites(graph)


def test_what_reads_other_operands_meanwhile_stays() -> None:
    """An exchange of tokens between processes stands around the new spelling only."""
    graph, capture = captured(DiT(how="grouped", layers=1), {"hidden_states": latents(4, 2, 3)})
    unify_attention(graph, capture)
    (node,) = (node for node in graph.nodes if stand_in(node) is not None)
    with graph.inserting_before(node):
        node.replace_input_with(node.args[0], graph.call_method("clone", (node.args[0],)))
    assert restore_attention(graph, capture) == 0
    graph.lint()
    calls = [n for n in graph.nodes if n.target is F.scaled_dot_product_attention]
    assert calls == [node], "the model's own call is gone"


def test_plain_causal_and_cross_attention_are_left_alone() -> None:
    for how in ("plain", "causal", "cross"):
        given: dict[str, object] = {"hidden_states": latents(4, 2, 3)}
        if how == "cross":
            given["context"] = torch.randn(1, 9, 32)
        graph, capture = captured(DiT(how=how), given)
        before = spelling(graph)
        assert unify_attention(graph, capture) == 0 and spelling(graph) == before
