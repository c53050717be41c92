"""Strategies that a probe tries beside its rule's assignment: when one is taken, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_probe import generate, run, small

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.errors import ProfileError, StrategyError
from freeloc_fx.probing.trials import choose

Rewards = dict[str, list[float]]


@pytest.fixture(scope="module")
def model() -> Any:
    return small()


def test_a_strategy_is_taken_only_where_the_seeds_agree() -> None:
    ruled = [0.5, 0.7, 0.6, 0.4]
    steady = [r + g for r, g in zip(ruled, (0.02, 0.03, 0.02, 0.03), strict=True)]
    erratic = [r + g for r, g in zip(ruled, (0.4, -0.2, 0.3, -0.1), strict=True)]
    chosen, trials = choose({"rule": ruled, "steady": steady, "erratic": erratic}, "rule")
    assert chosen == "steady"
    assert trials["erratic"].difference > trials["steady"].difference
    assert trials["steady"].error == pytest.approx(0.01 / np.sqrt(3) / 2, rel=1e-6)
    assert choose({"rule": ruled, "erratic": erratic}, "rule")[0] == "rule"
    assert choose({"rule": ruled, "same": list(ruled)}, "rule")[0] == "rule"


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_no_choice_is_worse_than_the_rule(values: list[list[float]]) -> None:
    rewards = {str(number): row for number, row in enumerate(values)}
    chosen, trials = choose(rewards, "0")
    assert np.mean(rewards[chosen]) >= np.mean(rewards["0"])
    assert all(trials[chosen].difference >= t.difference for t in trials.values() if t.better)


def nearness(strategy: str) -> Any:
    """A reward for videos like those of a strategy."""
    wanted = freeloc_fx.transform(SMALL["model"], Profile(trained_frames=3, layers=strategy), backend="eager")

    def reward(video: torch.Tensor, seed: int) -> float:
        goal = generate(wanted, video.shape[2], seed)
        return -float((video - goal).norm() / goal.norm())

    return reward


SMALL: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _small(model: Any) -> None:
    SMALL["model"] = model


@pytest.mark.slow
def test_what_the_videos_say_beats_the_rule(tmp_path: Path) -> None:
    made: list[tuple[int, int]] = []

    def counted(watched: Any, frames: int, seed: int) -> torch.Tensor:
        made.append((frames, seed))
        return generate(watched, frames, seed)

    def probed(**changes: Any) -> Profile:
        return run(
            SMALL["model"], generate=counted, seeds=(0, 1, 2),
            reward=nearness("window"), candidates=["window", "tsa", "window"], journal=tmp_path / "j", **changes,
        )  # fmt: skip

    names: list[tuple[int, int]] = []
    found = probed(on_unit=lambda done, total, name: names.append((done, total)))
    assert len(made) == 3 * 2 + 3 * 3  # seeds, lengths; then strategies, seeds
    assert names[-1] == (len(made), len(made)) and [n for n, _ in names] == list(range(1, len(made) + 1))
    assert found.layers == "window" and found.lengths is None
    said: Any = found.provenance["lengths"]["7"]  # type: ignore[index]
    (ruled,) = set(said["rule"].values())  # this model's layers are one group
    assert set(said["trials"]) == {"window", "tsa", ruled}
    assert said["trials"]["window"]["rewards"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert said["trials"][ruled]["difference"] == 0
    assert "tried in every layer" in str(found.provenance["rule"])  # type: ignore[index]
    found.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == found
    made.clear()
    assert probed() == found and not made  # the journal has all of it


@pytest.mark.slow
def test_a_candidate_is_tried_at_its_lengths_only(tmp_path: Path) -> None:
    names: list[str] = []
    found = run(
        SMALL["model"], generate=generate, seeds=(0, 1, 2), target_frames=None, lengths=(7, 5),
        reward=nearness("window"), candidates={"window": [5], "tsa": None},
        on_unit=lambda done, total, name: names.append(f"{done} of {total} {name}"),
    )  # fmt: skip
    lengths: Any = found.provenance["lengths"]  # type: ignore[index]
    (ruled,) = set(lengths["7"]["rule"].values())
    assert set(lengths["7"]["trials"]) == {"tsa", ruled}
    assert set(lengths["5"]["trials"]) == {"tsa", "window", ruled}
    assert found.at(5).layers == "window" and found.at(7).layers != "window"
    assert names[-1].startswith(f"{len(names)} of {len(names)} ")


@pytest.mark.slow
def test_a_journal_tells_a_solved_temperature_from_a_matched_one(tmp_path: Path) -> None:
    names: dict[bool, list[str]] = {}
    for matched in (False, True):
        names[matched] = []
        run(
            SMALL["model"], generate=generate, seeds=(0, 1, 2), reward=lambda video, seed: float(video.std()),
            candidates=["vrpr+temp"], temperature=matched, journal=tmp_path / "j",
            on_unit=lambda done, total, name, to=names[matched]: to.append(name),
        )  # fmt: skip
    solved, other = ({n for n in found if "vrpr+temp" in n} for found in names.values())
    assert len(solved) == len(other) == 3 and not solved & other


def test_rewards_of_another_name_are_not_taken_over(tmp_path: Path) -> None:
    journal = {"generate": generate, "reward": lambda video, seed: float(video.std()), "journal": tmp_path / "j"}
    run(SMALL["model"], reward_name="spread", **journal)
    with pytest.raises(ProfileError, match=r"another probe \(different: reward\)"):
        run(SMALL["model"], reward_name="composite", **journal)
    run(SMALL["model"], reward_name="spread", **journal)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward": None}, ProfileError, r"candidates: .* expected reward=f\(video, seed\), found none"),
        ({"seeds": (0, 1)}, ProfileError, "candidates: expected at least 3 seeds to compare their videos, found 2"),
        (
            {"candidates": {"window": [9]}},
            ProfileError,
            "'window' is to be tried at 9, expected lengths of the probe: 7",
        ),
        ({"candidates": ["windo"]}, StrategyError, "unknown strategy 'windo'"),
        ({"candidates": ["ntk+pi"]}, StrategyError, r"'ntk\+pi': two parts set the frequencies"),
    ],
)
def test_bad_trials_fail_before_any_generation(changes: dict[str, Any], error: Any, message: str) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a generation was made")

    arguments = {"seeds": (0, 1, 2), "reward": lambda video, seed: 0.0, "candidates": ["window"], **changes}
    with pytest.raises(error, match=message):
        run(SMALL["model"], generate=never, **arguments)
