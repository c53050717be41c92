"""A probe that is killed, at any moment and any number of times, ends in the profile of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_probe
import torch
from small_probe import generate, run, small

from freeloc_fx.files import DamagedFileError
from freeloc_fx.probing import run as probe_run
from freeloc_fx.probing.journal import Units


@pytest.fixture(scope="module")
def model() -> Any:
    return small()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Dies at the n-th moment: a unit begins; half a file is written; all of it, not yet renamed; it is renamed.

    Yields what a unit calls when it begins. The clearing up that a real kill would not do is left out.
    """
    left = step

    def moment() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    rename, unlink = os.replace, Path.unlink

    def torn(handle: int) -> None:
        try:
            moment()
        except Killed:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            raise

    def renamed(source: Any, target: Any) -> None:
        moment()
        rename(source, target)
        moment()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", torn)
        patch.setattr(os, "replace", renamed)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None if left < 0 else unlink(path, missing_ok))
        yield moment


@pytest.mark.slow
def test_killed_fifty_times_and_resumed_gives_the_identical_profile(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"seeds": (0, 1), "lengths": (5,)}
    expected = run(model, **settings, journal=tmp_path / "whole")
    expected.save(tmp_path / "expected.json")
    real = {}  # what the units gave, so that fifty probes do not generate again
    for path in (tmp_path / "whole").glob("unit-*.json"):
        data = json.loads(path.read_text())
        real[data["unit"]] = data["result"]
    assert len(real) == 6
    random = np.random.default_rng(0)
    kills, folders, begun = 0, 0, 0
    while kills < 50:
        folder = tmp_path / f"killed {folders}"
        folders += 1
        worked: list[str] = []
        while True:
            with killed_at(int(random.integers(0, 12)), monkeypatch) as moment:

                def unit(_: Any, unit: Any, trained: Any, moment: Callable[[], None] = moment) -> Any:
                    nonlocal begun
                    begun += 1
                    moment()
                    worked.append(unit.name)  # noqa: B023
                    return real[unit.name]

                monkeypatch.setattr(probe_run._Run, "unit", unit)
                try:
                    found = run(model, **settings, journal=folder)
                except Killed:
                    kills += 1
                    continue
            break
        assert found == expected
        found.save(tmp_path / "found.json")
        assert (tmp_path / "found.json").read_bytes() == (tmp_path / "expected.json").read_bytes()
        assert set(worked) == set(real)
    assert kills >= 50
    assert begun <= folders * len(real) + kills  # a kill costs at most the unit in progress


@pytest.mark.slow
def test_a_real_kill_and_a_resume_give_the_identical_profile(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {[str(Path(small_probe.__file__).parent), str(Path(__file__).parents[2])]!r}
        import torch
        torch.set_num_threads({torch.get_num_threads()})
        import small_probe
        from diffusers import WanTransformer3DModel
        model = WanTransformer3DModel.from_pretrained({str(tmp_path / "model")!r}).eval()
        tell = lambda done, total, name: print(name, flush=True)
        small_probe.run(model, seeds=(0, 1), journal={str(tmp_path / "journal")!r}, on_unit=tell)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "observe seed 0 frames 3"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    left = len(list((tmp_path / "journal").glob("unit-*.json")))
    assert 1 <= left < 4
    made: list[int] = []

    def counted(model: Any, frames: int, seed: int) -> torch.Tensor:
        made.append(frames)
        return generate(model, frames, seed)

    found = run(model, seeds=(0, 1), generate=counted, journal=tmp_path / "journal")
    assert len(made) == 4 - left
    assert found == run(model, seeds=(0, 1))


@pytest.mark.parametrize("damage", ["", "half", "no object", "another unit", "bytes"])
def test_a_damaged_unit_is_worked_out_again_and_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    units = Units(tmp_path, {"a": 1})
    made: list[str] = []

    def work(name: str) -> dict[str, Any]:
        made.append(name)
        return {"of": name, "why": "ä" * 30}

    assert units.get("one", lambda: work("one")) == units.get("two", lambda: work("two")) | {"of": "one"}
    file = units._path("one")
    whole = file.read_bytes()
    file.write_bytes(
        {
            "": b"",
            "half": whole[: len(whole) // 2],
            "no object": b"5\n",
            "another unit": units._path("two").read_bytes(),
            "bytes": b"\xff\xfe" + whole,
        }[damage]
    )
    again = Units(tmp_path, {"a": 1})
    assert again.get("one", lambda: work("one"))["of"] == "one" and made == ["one", "two", "one"]
    assert file.name in caplog.text and "worked out again" in caplog.text
    assert file.read_bytes() == whole and again.get("two", lambda: work("two"))["of"] == "two" and len(made) == 3


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe"])
def test_a_journal_that_does_not_say_whose_it_is(tmp_path: Path, content: bytes) -> None:
    Units(tmp_path, {"a": 1})
    (tmp_path / "job.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"job\.json.*: expected JSON, found .*delete the folder"):
        Units(tmp_path, {"a": 1})
