"""`freeloc inspect --graph`: a block before and after the rewrite."""

from __future__ import annotations

from typer.testing import CliRunner

from freeloc_fx.cli.app import app


def test_the_first_block_is_printed_before_and_after() -> None:
    shown = CliRunner().invoke(app, ["inspect", "--graph", "--strategy", "vrpr", "--frames", "161"])
    assert shown.exit_code == 0, shown.output
    before, _, after = shown.stdout.partition("blocks.0 after")
    assert "blocks.0 before" in before and "flex_attention(" not in before
    assert after.count("= flex_attention(") == 3 and after.count("= freeloc_fx.vrpr_rotary(") == 4
    assert "_self_dict_" not in after
