"""`freeloc bench`, and the counting and measuring that it shares with the scripts in bench/."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from freeloc_fx.attention import op
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.attention.flex.site import describe_site
from freeloc_fx.attention.flex.tables import masks
from freeloc_fx.attention.registry import Specs
from freeloc_fx.cli.app import app
from freeloc_fx.evaluation.cost import count_blocks, make_spec, mask_cost, peak_bytes


def test_all_questions_in_one_table_each(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arguments = [
        "bench",
        "--size",
        "2x4",
        "--extension",
        "2",
        "--runs",
        "1",
        "--strategies",
        "tsa",
        "--json",
        str(file),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for word in ("time of one long attention", "tiles of 128x128", "peak memory", "tsa", "dense"):
        assert word in result.output
    rows = json.loads(file.read_text())
    assert rows.keys() == {"attention", "masks", "memory"}
    assert [r["strategy"] for r in rows["attention"]] == ["dense", "tsa"]
    assert rows["attention"][0]["of dense"] == 1.0
    assert rows["attention"][1]["tokens"] == 41 * 8
    assert 0 < rows["memory"][0]["of q, k, v"] < 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "expected attention, masks, memory, found 'nothing'"),
        (["masks", "--size", "8"], "--size: expected height x width, such as 8x8, found '8'"),
        (["masks", "--strategies", "wrong"], "unknown strategy 'wrong'"),
        (["attention", "--attention", "fast"], "found 'fast'"),
        (["masks", "--device", "gpu0"], "--device: expected a device that torch can use here, found 'gpu0'"),
        (["memory", "--device", "cuda:77"], "--device: expected a device that torch can use here, found 'cuda:77'"),
        (["attention", "--device", "meta"], "found 'meta'"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize("strategy", ["direct", "tsa", "vrpr", "vrpr+tsa"])
@pytest.mark.parametrize("block", [16, (32, 16)])
def test_counted_tiles_are_those_of_the_masks(strategy: str, block: int | tuple[int, int]) -> None:
    known = make_spec(strategy, 2, 2, 5)
    height, width = (block, block) if isinstance(block, int) else block
    site = describe_site(known, (1, 1, known.grid.video, 128), torch.float32, options=FlexOptions(block=block))
    stripe = known.strategy.visibility.stripe(2, 5)
    tokens, full, partial, area = known.grid.video, 0, 0, 0
    shape = (-(-tokens // height), -(-tokens // width))
    for call in site.calls[0]:
        if call.dense:
            full += shape[0] * shape[1]
            area += tokens**2
            continue
        made = masks(site, known, call, stripe)
        full += int(made["full_count"].sum())
        partial += int(made["count"].sum())
        for version in range(len(call.versions)):
            seen = np.zeros(shape, int)
            for count, index in (("count", "index"), ("full_count", "full_index")):
                for row, number in enumerate(made[count][0, version].tolist()):
                    seen[row, made[index][0, version, row, :number].numpy()] = 1
            area += int(np.kron(seen, np.ones((height, width), int))[:tokens, :tokens].sum())
    found = count_blocks(known, block)
    assert (found.full, found.partial, found.area) == (full, partial, area)
    assert found.full + found.partial + found.empty == found.dense
    assert found.calls == len(site.calls[0])


def test_building_masks_costs_time_and_memory() -> None:
    seconds, peak = mask_cost(make_spec("tsa", 2, 4, 4), block=16, runs=1)
    assert seconds > 0
    assert peak >= 4 * 4 * 41**2  # four index tables


def test_peak_counts_what_lives_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(1000)
        del first
        second = torch.empty(500)
        return torch.cat([second, second])

    assert peak_bytes(run) == 4 * (500 + 1000)


@pytest.mark.parametrize("strategy", ["vrpr", "tsa", "vrpr+tsa"])
@pytest.mark.parametrize("extension", [2, 4])
def test_long_attention_needs_less_than_twice_q_k_and_v(strategy: str, extension: int) -> None:
    """At every length; the output counts. Later calls, when the tables that all layers share are there."""
    known = make_spec(strategy, extension, 8, 8, 16)
    q, k, v = (torch.randn(1, known.grid.video, 4, 16).transpose(1, 2) for _ in range(3))
    specs = Specs()
    key = specs.add(known)
    with torch.no_grad():
        op.long_attention(q, k, v, key, "tiles", None)
        peak = peak_bytes(lambda: op.long_attention(q, k, v, key, "tiles", None))
    assert q.nbytes <= peak < 2 * 3 * q.nbytes
