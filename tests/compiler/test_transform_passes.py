"""Passes over a transformed model's graph: verified, named in errors, dumped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import wan
from transformed import ALL, run

from freeloc_fx import transform
from freeloc_fx.compat import stamps_regions
from freeloc_fx.compiler import pipeline
from freeloc_fx.errors import VerificationError


@pytest.fixture
def model() -> Any:
    return wan()


def test_verify_changes_nothing_about_the_output(model: Any) -> None:
    expected = run(transform(model, ALL, backend="eager"))
    assert torch.equal(run(transform(model, ALL, backend="eager", verify=True)), expected)


def with_pass(monkeypatch: pytest.MonkeyPatch, bad: Any) -> None:
    original = pipeline.passes_beside
    monkeypatch.setattr(pipeline, "passes_beside", lambda *given: [*original(*given), bad])


def test_a_pass_that_breaks_the_graph_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_order(graph: torch.fx.Graph, capture: Any) -> int:
        nodes = [n for n in graph.nodes if n.op == "call_function"]
        nodes[0].prepend(nodes[-1])
        return 0

    with_pass(monkeypatch, breaks_order)
    with pytest.raises(VerificationError, match="after breaks_order: the graph is not well formed"):
        run(transform(model, ALL, backend="eager"))


def test_a_pass_that_changes_a_shape_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def drops_a_transpose(graph: torch.fx.Graph, capture: Any) -> int:
        node = next(n for n in graph.nodes if "long_attention" in str(n.target))
        user = next(iter(node.users))
        user.replace_all_uses_with(node)
        return 0

    with_pass(monkeypatch, drops_a_transpose)
    with pytest.raises(VerificationError, match=r"after drops_a_transpose: node \w+: expected \(.+\) .*, found \(.+\)"):
        run(transform(model, ALL, backend="eager", verify=True))


def test_a_pass_that_changes_a_dtype_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubles(graph: torch.fx.Graph, capture: Any) -> int:
        node = next(n for n in graph.nodes if "long_attention" in str(n.target))
        with graph.inserting_before(node):
            wide = [graph.call_method("double", (n,)) for n in node.args[:3]]
        node.args = (*wide, *node.args[3:])
        return 0

    with_pass(monkeypatch, doubles)
    with pytest.raises(VerificationError, match=r"after doubles: .*expected .*float32, found .*float64"):
        run(transform(model, ALL, backend="eager", verify=True))


def test_a_rewrite_that_misses_a_site_is_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(graph: torch.fx.Graph, capture: Any) -> int:
        return 0

    monkeypatch.setattr(pipeline, "replacing_passes", lambda *given: [nothing])
    with pytest.raises(VerificationError, match="expected 2 sites replaced, found 0"):
        run(transform(model, ALL, backend="eager"))


def test_a_record_that_contradicts_its_node_is_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from freeloc_fx.graph.records import sites, write

    def lies(graph: torch.fx.Graph, capture: Any) -> int:
        write(sites(graph)[0][0], query_shape=(1, 2, 999, 12))
        return 0

    with_pass(monkeypatch, lies)
    with pytest.raises(VerificationError, match=r"after lies: site blocks\.0\.attn1: expected \(1, 2, 999, 12\)"):
        run(transform(model, ALL, backend="eager"))


def test_verify_notices_a_wrong_lowering(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transform promises to check each long attention against the reference the first time it runs."""
    from freeloc_fx.attention import op

    right = op.LOWERINGS["tiles"]
    monkeypatch.setitem(op.LOWERINGS, "tiles", lambda *given: right(*given) * 1.01)
    with pytest.raises(VerificationError, match="reference"):
        run(transform(model, ALL, backend="eager", attention="tiles", verify=True))


def test_dumps_are_numbered_files(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    monkeypatch.setenv("FREELOC_DUMP", str(folder))
    run(transform(model, ALL, backend="eager"))
    files = sorted(folder.iterdir())
    names = ["capture", "name_modules", "inline_regions", "unify_attention", "find_attention", "find_key_mask",
             "infer_rope", "arrange_frames", "infer_token_grid", "annotate_sensitivity", "rewrite_attention",
             "merge_repeated_keys"]  # fmt: skip
    assert [f.name.split("_", 1)[1] for f in files] == [f"{name}.txt" for name in names]
    numbers = [int(f.name.split("_")[0]) for f in files]
    assert numbers == list(range(numbers[0], numbers[0] + len(files)))
    texts = [f.read_text() for f in files]
    assert ("invoke_subgraph" in texts[0]) == stamps_regions()  # equal blocks, as Dynamo traced them once
    assert "scaled_dot_product_attention" in texts[2] and "long_attention" not in texts[2]
    assert "AttentionSite" not in texts[2] and "AttentionSite" in texts[4]
    assert texts[-1].count("torch.ops.freeloc_fx.long_attention.default") == 2


def test_without_the_switch_nothing_is_dumped(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FREELOC_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    run(transform(model, ALL, backend="eager"))
    assert list(tmp_path.iterdir()) == []
