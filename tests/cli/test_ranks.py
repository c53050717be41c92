"""`freeloc generate` on several ranks: one file, one bar, the file that one process writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import command
from ranks import on_ranks

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"


def both(folder: Path, frames: int, share: list[str], limit: float) -> None:
    asked = ["generate", PROMPT, "--frames", str(frames), "--steps", "1", "--attention", "tiles"]
    (alone,) = on_ranks(command, 1, asked, str(folder / "one.mp4"), limit=limit)
    first, second = on_ranks(command, 2, [*asked, *share], str(folder / "two.mp4"), limit=limit)
    assert alone["code"] == first["code"] == second["code"] == 0, (first, second)
    assert first["digest"] == alone["digest"] != ""
    assert first["out"].replace("two.", "one.").split()[:9] == alone["out"].split()[:9]
    assert first["err"].count("denoising") + first["err"].count("done") >= 1
    said = [line for line in second["err"].splitlines() if not line.startswith("[rank1]:W")]  # torch's own warnings
    assert second["out"] == "" and said == []
    assert sorted(path.name for path in folder.iterdir()) == [
        *("one.json", "one.mp4", "one.png", "two.json", "two.mp4", "two.png")
    ]


@pytest.mark.slow
def test_two_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    both(tmp_path, 85, ["--parallel", "ulysses"], 100)


@pytest.mark.slow
def test_ten_times_the_trained_length(tmp_path: Path) -> None:
    both(tmp_path, 801, ["--parallel", "ulysses", "--shard", "fsdp"], 300)


def streamed(rank: int, arguments: list[str], output: str) -> dict[str, Any]:
    """`command`, with every clip so large that its frames stream, a latent frame a call, and shares of equal length."""
    from freeloc_fx.cli import writing
    from freeloc_fx.generation import decoding, shared_decoding

    calls: list[tuple[int, int]] = []
    piece = decoding.wan_decode_piece
    decoding.wan_decode_piece = lambda *a, **k: (calls.append(a[1].shape[2]), piece(*a, **k))[1]  # type: ignore
    writing._STREAMED_FROM, decoding.PIXELS = 0, 1
    shared_decoding._each = lambda count, memory, ranks: -(-count // ranks)  # type: ignore
    writing.enlargement = lambda *_: 1  # type: ignore
    return command(rank, arguments, output) | {"calls": calls}


@pytest.mark.slow
def test_ranks_share_the_decoding_of_a_clip_that_streams(tmp_path: Path) -> None:
    # Not of the grammar: there are no scores of what is held by nobody.
    asked = ["generate", "a cat", "--frames", "85", "--steps", "1", "--attention", "tiles"]
    (alone,) = on_ranks(streamed, 1, asked, str(tmp_path / "one.mp4"))
    assert alone["code"] == 0, alone
    first, second = on_ranks(streamed, 2, [*asked, "--parallel", "ulysses"], str(tmp_path / "two.mp4"))
    assert first["code"] == second["code"] == 0, (first, second)
    assert first["digest"] == alone["digest"] != ""
    assert alone["calls"] == [1] * 22
    assert first["calls"] == [1] * 11 and second["calls"] == [1] * 22, "its share is half, after those it depends on"


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    output = str(tmp_path / "no.mp4")
    (one,) = on_ranks(command, 1, ["generate", PROMPT, "--parallel", "ulysses"], output)
    assert one["code"] == 2 and "torchrun --nproc_per_node" in one["err"]
    first, second = on_ranks(command, 2, ["generate", PROMPT], output)
    assert first["code"] == second["code"] == 2
    assert "expected --parallel ulysses, --shard fsdp or both" in first["err"]
    first, second = on_ranks(command, 2, ["generate", PROMPT, "--model", "tiny-joint", "--parallel", "ulysses"], output)
    assert first["code"] == second["code"] == 2
    assert "cannot share out its tokens over 2 ranks" in first["err"]
    assert not list(tmp_path.iterdir())
