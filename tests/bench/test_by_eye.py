"""The pairs ordered by eye: what was drawn, what was chosen, and the counts that are reported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import by_eye
import numpy as np
import pytest


def test_each_dozen_has_direct_sampling_in_half_of_its_pairs() -> None:
    pairs = by_eye.drawn()
    assert pairs == by_eye.drawn()  # the same ones each time, or a choice would be of other videos
    assert len({p["seed"] for p in pairs}) == len(pairs) == by_eye.DOZENS * by_eye.DOZEN
    for first in range(0, len(pairs), by_eye.DOZEN):
        dozen = pairs[first : first + by_eye.DOZEN]
        assert sum("direct" in (p["A"], p["B"]) for p in dozen) == 6
        assert all(p["A"] != p["B"] for p in dozen)
        assert Counter(p["frames"] for p in dozen) == {801: by_eye.LONG, 321: by_eye.DOZEN - by_eye.LONG}


def test_choices_are_of_pairs_and_say_what_was_seen() -> None:
    known = {p["pair"] for p in by_eye.drawn()}
    choices = by_eye.choices()
    assert choices and set(choices) <= known
    for choice in choices.values():
        assert choice["better"] in ("A", "B", "-") and len(choice["seen"]) > 20


def test_agreement_counts_each_dozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up scores: the composite follows the brightness of a video, the one of before its opposite."""
    chosen = {p["pair"]: {"better": "A" if n % 3 else "B", "seen": "made up"} for n, p in enumerate(by_eye.drawn())}
    monkeypatch.setattr(by_eye, "choices", lambda: chosen)
    for pair in by_eye.drawn():
        for side, level in (("A", 200), ("B", 100)):
            np.save(tmp_path / f"{pair['pair']}-{side}.npy", np.full((2, 4, 4, 3), level, np.uint8))

    def score(video: np.ndarray, prompt: str) -> Any:
        names = ("constancy", "permanence", "pops", "loop", "repeated", "freeze", "motion", "identity")
        value = float(video.mean())
        return SimpleNamespace(composite=value, composite_before=-value, **dict.fromkeys(names, 0.5))

    monkeypatch.setattr(by_eye, "score", score)
    found = by_eye.agreement(tmp_path)
    assert [a["composite"] for a in found["agrees"]] == [8] * by_eye.DOZENS
    assert [a["composite_before"] for a in found["agrees"]] == [4] * by_eye.DOZENS
    text = by_eye.table(found)
    assert "Dozen 2: of 12 pairs composite agrees in 8, composite_before agrees in 4." in text


def test_a_pair_without_videos_keeps_its_scores_and_takes_todays_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair, *_), other = by_eye.drawn(), {"A": "B", "B": "A", "-": "A"}
    known = json.loads((by_eye.RESULTS / "by_eye.json").read_text())["rows"][0]
    now = {"better": other[known["better"]], "seen": "another choice than before"}
    monkeypatch.setattr(by_eye, "choices", lambda: {pair["pair"]: now})
    (row,) = by_eye.agreement(tmp_path)["rows"]
    assert row == {**known, **now}


def test_the_counts_reported_are_those_of_the_rows() -> None:
    found = json.loads((by_eye.RESULTS / "by_eye.json").read_text())
    rows, choices = found["rows"], by_eye.choices()
    assert {row["pair"]: row["better"] for row in rows} == {pair: c["better"] for pair, c in choices.items()}
    for number, agrees in enumerate(found["agrees"]):
        part = rows[number * by_eye.DOZEN : (number + 1) * by_eye.DOZEN]
        part = [row for row in part if row["better"] != "-"]
        assert agrees["pairs"] == len(part)
        for name in by_eye.SCORES:
            right = sum((row[name][0] > row[name][1]) == (row["better"] == "A") for row in part)
            assert agrees[name] == right
