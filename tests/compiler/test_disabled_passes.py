"""Passes by name: which ran over each graph and what they changed, and what happens without one of them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from models import wan
from transformed import LONG, run

from freeloc_fx import Profile, transform
from freeloc_fx.compiler.pipeline import PASSES
from freeloc_fx.compiler.runner import PassRun, name_of
from freeloc_fx.compiler.transform import passes_run
from freeloc_fx.errors import TransformError

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")
TEXT = 96
"""Text tokens, enough of them to be worth merging."""
SDPA, LONG_ATTENTION = "scaled_dot_product_attention", "freeloc_fx.long_attention.default"
OVER_TEXT = "freeloc_fx.attention_over_text.default"


@pytest.fixture
def model() -> Any:
    return wan()


def count(made: PassRun, operation: str) -> int:
    """How many more calls of an operation there are after a pass."""
    return sum(after - before for name, (before, after) in made.operations.items() if operation in name)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("no_such_pass",), r"\['no_such_pass'\]"),
        (("rewrite_attention", "b", "a"), r"\['a', 'b'\]"),
        ("rewrite_attention", r"\['rewrite_attention'\]"),  # a string is a collection of letters
    ],
)
def test_unknown_names_are_refused_at_once_with_the_list_of_names(model: Any, names: Any, found: str) -> None:
    known = ", ".join(name_of(one) for one in PASSES)
    with pytest.raises(ValueError, match=f"disable_passes: expected names out of {known}, found {found}"):
        transform(model, PROFILE, disable_passes=names)


def test_the_passes_are_listed_in_order_with_what_they_changed(model: Any) -> None:
    changed = transform(model, PROFILE, backend="eager")
    assert passes_run(changed) == []
    run(changed, text=TEXT)
    (runs,) = passes_run(changed)
    assert [one.name for one in runs] == [
        "name_modules", "inline_regions", "unify_attention", "find_attention", "find_key_mask", "infer_rope",
        "arrange_frames", "infer_token_grid", "annotate_sensitivity", "rewrite_attention", "merge_repeated_keys",
    ]  # fmt: skip
    by_name = {one.name: one for one in runs}
    assert by_name["find_attention"].matched == 4, "two layers, each with self and cross attention"
    rewrite, merge = by_name["rewrite_attention"], by_name["merge_repeated_keys"]
    assert (rewrite.matched, count(rewrite, SDPA), count(rewrite, LONG_ATTENTION)) == (2, -2, 2)
    assert (merge.matched, count(merge, SDPA), count(merge, OVER_TEXT)) == (2, -2, 2)
    assert all(one.seconds >= 0 for one in runs)
    assert not by_name["infer_rope"].operations, "an analysis changes no operation"
    assert str(by_name["infer_rope"]).endswith("operations as before")
    text = str(rewrite)
    assert text.startswith("rewrite_attention: 2 matched, ") and f"{LONG_ATTENTION} 0 -> 2 (+2)" in text


def test_each_captured_graph_has_its_own_list(model: Any) -> None:
    changed = transform(model, PROFILE, backend="eager")
    for frames in (LONG, LONG, 3):
        run(changed, frames=frames)
    long, short = passes_run(changed)
    assert long[-1].name == "merge_repeated_keys"
    assert short[-1].name == "annotate_sensitivity", "nothing is rewritten within the trained length"


def test_blocks_that_are_compiled_apart_are_cut_by_a_pass(model: Any) -> None:
    changed = transform(model, PROFILE)
    run(changed)
    (runs,) = passes_run(changed)
    assert runs[-1].name == "cut_blocks" and runs[-1].matched


def test_an_untransformed_model_has_no_passes(model: Any) -> None:
    with pytest.raises(TransformError, match="not a transformed model"):
        passes_run(model)


def test_without_merging_the_attention_to_text_is_as_it_was(model: Any) -> None:
    merged = transform(model, PROFILE, backend="eager")
    plain = transform(model, PROFILE, backend="eager", disable_passes=("merge_repeated_keys",))
    torch.testing.assert_close(run(plain, text=TEXT), run(merged, text=TEXT), atol=1e-5, rtol=1e-4)
    (runs,) = passes_run(plain)
    by_name = {one.name: one for one in runs}
    assert by_name["rewrite_attention"].matched == 2
    assert by_name["merge_repeated_keys"] == PassRun("merge_repeated_keys", None)
    assert str(by_name["merge_repeated_keys"]) == "merge_repeated_keys: switched off"
    assert sum(count(one, OVER_TEXT) for one in runs) == 0


def test_without_the_rewrite_the_model_runs_untransformed_and_says_so(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    changed = transform(model, PROFILE, backend="eager", disable_passes=("rewrite_attention",))
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        found = run(changed)
    assert torch.equal(found, run(model))
    assert [r.getMessage() for r in caplog.records if r.name == "freeloc_fx"] == [
        "rewrite_attention is switched off: 2 planned sites run as they are"
    ]
